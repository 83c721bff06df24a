"""The transformer encoder: a crystal, atom by atom, to one hidden vector per atom."""

from __future__ import annotations

from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from crystalvae.checks import check_choice
from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.encoders.embedding import CrystalEmbedding
from crystalvae.vae_module.layers.attention import PaddingPlan
from crystalvae.vae_module.layers.modulation import per_atom
from crystalvae.vae_module.layers.transformer import Activation, Transformer, sinusoidal_positions

Positions = Literal["none", "sinusoidal"]


class TransformerEncoder(CrystalEmbedding):
    """Embed elements, fractional coordinates and the lattice, and mix the atoms of each crystal by self-attention.

    Further options are those of `CrystalEmbedding`. `positions`: "none" leaves atoms
    unordered, so that permuting them permutes the output; "sinusoidal" marks each with its place in the list, as the
    published format.
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
        **embedding: Any,
    ) -> None:
        super().__init__(d_model=d_model, d_condition=d_condition, **embedding)
        check_choice("encoder.positions", positions, get_args(Positions))
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

    def forward(self, crystals: CrystalBatch, condition: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "N D"]:
        """Return one hidden vector of `d_model` numbers per atom; `condition`: one vector per crystal."""
        tokens = self.embed(crystals)
        if self.positions == "sinusoidal":
            tokens = tokens + sinusoidal_positions(crystals.token_idx, self.d_model)
        return self.transformer(tokens, PaddingPlan.of(crystals), per_atom(condition, crystals.batch))
