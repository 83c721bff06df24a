"""The transformer decoder: one latent vector per atom to elements, coordinates and the lattice."""

from __future__ import annotations

from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor

from crystalvae.checks import check_choice
from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.decoders.heads import CrystalReadOff, DecodedCrystals
from crystalvae.vae_module.encoders.transformer import Positions
from crystalvae.vae_module.layers.attention import PaddingPlan
from crystalvae.vae_module.layers.modulation import per_atom
from crystalvae.vae_module.layers.transformer import Activation, Transformer, sinusoidal_positions

__all__ = ["DecodedCrystals", "TransformerDecoder"]


class TransformerDecoder(CrystalReadOff):
    """Mix the latent vectors of each crystal by self-attention and read off elements, coordinates and the lattice.

    Further options are those of `CrystalReadOff`, `positions` as `TransformerEncoder`.
    """

    def __init__(
        self,
        *,
        d_model: int,
        nhead: int,
        num_layers: int,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: Activation = "gelu",
        positions: Positions = "none",
        d_condition: int | None = None,
        **read_off: Any,
    ) -> None:
        super().__init__(d_model=d_model, d_condition=d_condition, **read_off)
        check_choice("decoder.positions", positions, get_args(Positions))
        self.positions = positions
        self.transformer = Transformer(
            d_model=d_model,
            nhead=nhead,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            norm_first=norm_first,
            activation=activation,
            d_condition=d_condition,
        )
        self._add_heads()

    def forward(
        self, tokens: Float[Tensor, "N D"], crystals: CrystalBatch, condition: Float[Tensor, "B C"] | None = None
    ) -> DecodedCrystals:
        """Decode hidden vectors; of `crystals` only the atom counts are read, and the elements where they are given.

        `condition`: the condition vector of each crystal.
        """
        tokens = self.add_elements(tokens, crystals)
        if self.positions == "sinusoidal":
            tokens = tokens + sinusoidal_positions(crystals.token_idx, self.d_model)
        hidden = self.transformer(tokens, PaddingPlan.of(crystals), per_atom(condition, crystals.batch))
        return self.read_off(hidden, crystals)
