"""The MLP encoder: each atom on its own, beside the mean over its crystal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.encoders.embedding import CrystalEmbedding
from crystalvae.vae_module.layers.mlp import Activation, PooledMLP
from crystalvae.vae_module.layers.modulation import per_atom


class MLPEncoder(CrystalEmbedding):
    """Embed elements, fractional coordinates and the lattice; atoms hear of each other through their mean alone.

    Permuting atoms permutes the output. `num_layers` to `dropout` are as for `PooledMLP`; further options are those of
    `CrystalEmbedding`.
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
        **embedding: Any,
    ) -> None:
        super().__init__(d_model=d_model, d_condition=d_condition, **embedding)
        self.mlp = PooledMLP(
            part="encoder",
            d_model=d_model,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            hidden_dims=hidden_dims,
            activation=activation,
            dropout=dropout,
            d_condition=d_condition,
        )

    def forward(self, crystals: CrystalBatch, condition: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "N D"]:
        """Return one hidden vector of `d_model` numbers per atom; `condition`: one vector per crystal."""
        return self.mlp(self.embed(crystals), crystals, per_atom(condition, crystals.batch))
