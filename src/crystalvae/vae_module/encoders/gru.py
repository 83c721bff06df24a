"""The GRU encoder: the atoms of a crystal as a sequence."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.encoders.embedding import CoordFeatures, CrystalEmbedding, LatticeFeatures
from crystalvae.vae_module.layers.gru import AtomGRU
from crystalvae.vae_module.layers.modulation import per_atom


class GRUEncoder(CrystalEmbedding):
    """Embed elements, fractional coordinates and the lattice, and run along the atoms in both directions.

    A crystal is read in the order in which its atoms are listed: unlike with the other encoders, permuting them does
    not permute the output, and another choice of the first atom is another input. Of the arbitrary choices in a
    crystal's description it ignores only the rotation and the image of an atom (with the default features). Batches and
    the other crystals in them make no difference. `coord_features`, `lattice_features` and `d_condition` as
    `CrystalEmbedding`.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_layers: int,
        dropout: float = 0.0,
        coord_features: CoordFeatures = "fourier",
        num_frequencies: int = 8,
        lattice_features: LatticeFeatures = "parameters",
        max_num_elements: int = 100,
        d_condition: int | None = None,
    ) -> None:
        super().__init__(
            d_model=d_model,
            coord_features=coord_features,
            num_frequencies=num_frequencies,
            lattice_features=lattice_features,
            max_num_elements=max_num_elements,
            d_condition=d_condition,
        )
        self.gru = AtomGRU(
            part="encoder", d_model=d_model, num_layers=num_layers, dropout=dropout, d_condition=d_condition
        )

    def forward(self, crystals: CrystalBatch, condition: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "N D"]:
        """Return one hidden vector of `d_model` numbers per atom; `condition`: one vector per crystal."""
        return self.gru(self.embed(crystals), crystals, per_atom(condition, crystals.batch))
