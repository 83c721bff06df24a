"""What every encoder sees of a crystal: elements, coordinates and the lattice, each embedded."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.checks import check_choice, check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.layers.precision import full_precision

CoordFeatures = Literal["fourier", "linear"]
LatticeFeatures = Literal["parameters", "matrix"]


class CrystalEmbedding(nn.Module):
    """Base of the encoders: embeds elements, fractional coordinates and the lattice in `d_model` numbers.

    `coord_features`: "fourier" sees sin and cos of 2πk·f for k = 1..`num_frequencies`, so the two ends of the cell are
    one place; "linear" sees the three numbers. `lattice_features`: "parameters" sees the scaled lengths and the angles,
    the same for every rotation; "matrix" sees the nine numbers. With `d_condition` the encoder's layer norms adapt to
    what each crystal is told: vectors of that width, which `forward` then takes.
    """

    def __init__(
        self,
        *,
        d_model: int,
        coord_features: CoordFeatures = "fourier",
        num_frequencies: int = 8,
        lattice_features: LatticeFeatures = "parameters",
        max_num_elements: int = 100,
        d_condition: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("encoder.coord_features", coord_features, get_args(CoordFeatures))
        check_choice("encoder.lattice_features", lattice_features, get_args(LatticeFeatures))
        if coord_features == "fourier":
            check_count("encoder.num_frequencies", num_frequencies)
        check_count("encoder.d_model", d_model)
        check_count("encoder.max_num_elements", max_num_elements)
        if d_condition is not None:
            check_count("encoder.d_condition", d_condition)
        self.d_model, self.max_num_elements, self.d_condition = d_model, max_num_elements, d_condition
        self.coord_features, self.lattice_features = coord_features, lattice_features
        self.num_frequencies = num_frequencies
        self.atom_type_embedder = nn.Embedding(max_num_elements, d_model)
        self.lattices_embedder = _embedder(9 if lattice_features == "matrix" else 6, d_model)
        self.frac_coords_embedder = _embedder(3 if coord_features == "linear" else 6 * num_frequencies, d_model)

    def embed(self, crystals: CrystalBatch) -> Float[Tensor, "N D"]:
        """Return the sum of the three embeddings for each atom."""
        with full_precision(crystals.frac_coords):
            return self.embed_surroundings(crystals) + self.embed_coords(crystals)

    def embed_surroundings(self, crystals: CrystalBatch) -> Float[Tensor, "N D"]:
        """Return the embeddings of each atom's element and its crystal's lattice, the same for every origin."""
        with full_precision(crystals.frac_coords):
            lattices = self.lattices_embedder(self._lattice_features(crystals))[crystals.batch]
            try:
                return self.atom_type_embedder(crystals.atom_types) + lattices
            except IndexError as error:
                found = f"{int(crystals.atom_types.min())} to {int(crystals.atom_types.max())}"
                raise ConfigError(
                    f"atom_types: got elements {found}; this model knows those of atomic numbers up to "
                    f"{self.max_num_elements - 1}"
                ) from error

    def embed_coords(self, crystals: CrystalBatch) -> Float[Tensor, "N D"]:
        """Return the embedding of each atom's fractional coordinates."""
        with full_precision(crystals.frac_coords):
            return self.frac_coords_embedder(self._coord_features(crystals.frac_coords))

    def _coord_features(self, frac_coords: Float[Tensor, "N 3"]) -> Float[Tensor, "N F"]:
        if self.coord_features == "linear":
            return frac_coords
        k = torch.arange(1, self.num_frequencies + 1, device=frac_coords.device)
        phase = (2 * torch.pi * frac_coords[:, :, None] * k).flatten(1)
        return torch.cat((phase.sin(), phase.cos()), dim=-1)

    def _lattice_features(self, crystals: CrystalBatch) -> Float[Tensor, "B F"]:
        if self.lattice_features == "matrix":
            return crystals.lattices.flatten(1)
        return torch.cat((crystals.lengths_scaled, crystals.angles_radians - torch.pi / 2), dim=-1)


def _embedder(num_features: int, d_model: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_features, d_model, bias=False), nn.SiLU(), nn.Linear(d_model, d_model))
