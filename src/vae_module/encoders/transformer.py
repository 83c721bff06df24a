"""The transformer encoder: a crystal, atom by atom, to one hidden vector an atom."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from src.data.batch import CrystalBatch
from src.errors import ConfigError
from src.vae_module.transformer import (
    Activation,
    PaddingPlan,
    Transformer,
    check_choice,
    full_precision,
    sinusoidal_positions,
)

CoordFeatures = Literal["fourier", "linear"]
LatticeFeatures = Literal["parameters", "matrix"]
Positions = Literal["none", "sinusoidal"]


class TransformerEncoder(nn.Module):
    """Embed elements, fractional coordinates and the lattice, and mix the atoms of each crystal.

    `coord_features`: "fourier" sees sin and cos of 2πk·f for k = 1..`num_frequencies`, so the two ends of the cell are
    one place; "linear" sees the three numbers. `lattice_features`: "parameters" sees the scaled lengths and the angles,
    the same for every rotation; "matrix" sees the nine numbers. `positions`: "none" leaves atoms unordered, so that
    permuting them permutes the output; "sinusoidal" marks each with its place in the list, as the published format.
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
        coord_features: CoordFeatures = "fourier",
        num_frequencies: int = 8,
        lattice_features: LatticeFeatures = "parameters",
        positions: Positions = "none",
        max_num_elements: int = 100,
    ) -> None:
        super().__init__()
        check_choice("encoder.coord_features", coord_features, get_args(CoordFeatures))
        check_choice("encoder.lattice_features", lattice_features, get_args(LatticeFeatures))
        check_choice("encoder.positions", positions, get_args(Positions))
        if coord_features == "fourier" and num_frequencies < 1:
            raise ConfigError(f"encoder.num_frequencies: got {num_frequencies}; expected at least 1")
        self.d_model, self.max_num_elements = d_model, max_num_elements
        self.coord_features, self.lattice_features, self.positions = coord_features, lattice_features, positions
        self.num_frequencies = num_frequencies
        self.atom_type_embedder = nn.Embedding(max_num_elements, d_model)
        self.lattices_embedder = _embedder(9 if lattice_features == "matrix" else 6, d_model)
        self.frac_coords_embedder = _embedder(3 if coord_features == "linear" else 6 * num_frequencies, d_model)
        self.transformer = Transformer(
            d_model=d_model,
            nhead=nhead,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            norm_first=norm_first,
            activation=activation,
        )

    def forward(self, crystals: CrystalBatch) -> Float[Tensor, "N D"]:
        """Return one hidden vector of `d_model` numbers an atom."""
        with full_precision(crystals.frac_coords):
            tokens = (
                self.atom_type_embedder(crystals.atom_types)
                + self.lattices_embedder(self._lattice_features(crystals))[crystals.batch]
                + self.frac_coords_embedder(self._coord_features(crystals.frac_coords))
            )
        if self.positions == "sinusoidal":
            tokens = tokens + sinusoidal_positions(crystals.token_idx, self.d_model)
        return self.transformer(tokens, PaddingPlan.of(crystals))

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
