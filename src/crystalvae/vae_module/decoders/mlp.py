"""The MLP decoder: each atom's latent on its own, beside the mean over its crystal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.decoders.heads import CrystalReadOff, DecodedCrystals
from crystalvae.vae_module.layers.mlp import Activation, PooledMLP
from crystalvae.vae_module.layers.modulation import per_atom


class MLPDecoder(CrystalReadOff):
    """Decode each atom from its own latent vector and the mean over its crystal.

    Permuting atoms permutes the output. `num_layers` to `dropout` are as for `PooledMLP`; further options are those of
    `CrystalReadOff`.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_layers: int | None,
        dim_feedforward: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        d_condition: int | None = None,
        **read_off: Any,
    ) -> None:
        super().__init__(d_model=d_model, d_condition=d_condition, **read_off)
        self.mlp = PooledMLP(
            part="decoder",
            d_model=d_model,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            hidden_dims=hidden_dims,
            activation=activation,
            dropout=dropout,
            d_condition=d_condition,
        )
        self._add_heads()

    def forward(
        self, tokens: Float[Tensor, "N D"], crystals: CrystalBatch, condition: Float[Tensor, "B C"] | None = None
    ) -> DecodedCrystals:
        """Decode hidden vectors; of `crystals` only the atom counts are read, and the elements where they are given.

        `condition`: the condition vector of each crystal.
        """
        hidden = self.mlp(self.add_elements(tokens, crystals), crystals, per_atom(condition, crystals.batch))
        return self.read_off(hidden, crystals)
