"""The GRU encoder: the atoms of a crystal as a sequence."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.encoders.embedding import CrystalEmbedding
from crystalvae.vae_module.layers.gru import AtomGRU
from crystalvae.vae_module.layers.modulation import per_atom


class GRUEncoder(CrystalEmbedding):
    """Embed elements, fractional coordinates and the lattice, and run along the atoms in both directions.

    A crystal is read in the order in which its atoms are listed: unlike with the other encoders, permuting them does
    not permute the output, and another choice of the first atom is another input. Of the arbitrary choices in a
    crystal's description it ignores only the rotation and the image of an atom (with the default features). Batches and
    the other crystals in them make no difference. Further options are those of
    `CrystalEmbedding`.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_layers: int,
        dropout: float = 0.0,
        d_condition: int | None = None,
        **embedding: Any,
    ) -> None:
        super().__init__(d_model=d_model, d_condition=d_condition, **embedding)
        self.gru = AtomGRU(
            part="encoder", d_model=d_model, num_layers=num_layers, dropout=dropout, d_condition=d_condition
        )

    def forward(self, crystals: CrystalBatch, condition: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "N D"]:
        """Return one hidden vector of `d_model` numbers per atom; `condition`: one vector per crystal."""
        return self.gru(self.embed(crystals), crystals, per_atom(condition, crystals.batch))
