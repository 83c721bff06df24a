"""What every decoder ends with: elements, coordinates and the lattice read off hidden vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.checks import check_choice, check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import wrap
from crystalvae.errors import ConfigError
from crystalvae.vae_module.layers.pooling import mean_over_atoms
from crystalvae.vae_module.layers.precision import full_precision

CoordOutput = Literal["circle", "raw"]


@dataclass(frozen=True, eq=False)
class DecodedCrystals:
    """What a decoder says about N atoms in B crystals, before elements are picked and cells are built.

    `atom_logits` is None where elements are given (structure prediction). `coord_vectors` holds, where coordinates are
    decoded on the circle, the vector for each axis whose angle is 2πf. `lengths_scaled` are lengths / n^(1/3) in Å,
    `angles` radians, both unbounded.
    """

    atom_logits: Float[Tensor, "N E"] | None
    frac_coords: Float[Tensor, "N 3"]
    coord_vectors: Float[Tensor, "N 3 2"] | None
    lengths_scaled: Float[Tensor, "B 3"]
    angles: Float[Tensor, "B 3"]

    def to_mapping(self) -> dict[str, Tensor]:
        """Return it by the names of `VAEModule.decode`, where what there is not is left out."""
        named = {
            "frac_coords": self.frac_coords,
            "lattices": torch.cat((self.lengths_scaled, self.angles), dim=-1),
            "lengths": self.lengths_scaled,
            "angles": self.angles,
            "atom_types": self.atom_logits,
            "coord_vectors": self.coord_vectors,
        }
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def from_mapping(cls, named: Mapping[str, Tensor]) -> DecodedCrystals:
        """Return what `to_mapping` named."""
        return cls(
            atom_logits=named.get("atom_types"),
            frac_coords=named["frac_coords"],
            coord_vectors=named.get("coord_vectors"),
            lengths_scaled=named["lengths"],
            angles=named["angles"],
        )


class CrystalReadOff(nn.Module):
    """Base of the decoders: embeds given elements, and reads crystals off the hidden vectors of their atoms.

    A decoder calls `_add_heads` when it has made its own layers, so that parameters stand in the order of the flow.

    `coord_output`: "circle" gives each coordinate as the angle of a vector, so that nothing happens at the cell's edge;
    "raw" gives the number itself. `atom_type_input` adds an embedding of the given elements to the latents; it defaults
    to true where elements are not predicted (`atom_type_predict` false) and is refused where they are. With
    `d_condition` the decoder's layer norms adapt to the conditions of each crystal: vectors of that width, which
    `forward` then takes.
    """

    def __init__(
        self,
        *,
        d_model: int,
        coord_output: CoordOutput = "circle",
        atom_type_predict: bool = True,
        atom_type_input: bool | None = None,
        max_num_elements: int = 100,
        d_condition: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("decoder.coord_output", coord_output, get_args(CoordOutput))
        check_count("decoder.d_model", d_model)
        check_count("decoder.max_num_elements", max_num_elements)
        if atom_type_predict and atom_type_input:
            raise ConfigError(
                "decoder.atom_type_input: got true together with atom_type_predict=true; a decoder that is given the "
                "elements cannot be asked to predict them: set one of the two to false"
            )
        if d_condition is not None:
            check_count("decoder.d_condition", d_condition)
        self.d_condition = d_condition
        self.d_model, self.coord_output, self.max_num_elements = d_model, coord_output, max_num_elements
        self.atom_type_predict = atom_type_predict
        self.atom_type_input = not atom_type_predict if atom_type_input is None else atom_type_input
        self.atom_type_embedder = nn.Embedding(max_num_elements, d_model) if self.atom_type_input else None

    def _add_heads(self) -> None:
        self.atom_types_head = nn.Linear(self.d_model, self.max_num_elements) if self.atom_type_predict else None
        self.frac_coords_head = nn.Linear(self.d_model, 6 if self.coord_output == "circle" else 3, bias=False)
        self.lattice_head = nn.Linear(self.d_model, 6, bias=False)

    def add_elements(self, tokens: Float[Tensor, "N D"], crystals: CrystalBatch) -> Float[Tensor, "N D"]:
        """Add the embedding of the elements where they are given; of `crystals` nothing else is read."""
        return tokens if self.atom_type_embedder is None else tokens + self.atom_type_embedder(crystals.atom_types)

    def read_off(self, hidden: Float[Tensor, "N D"], crystals: CrystalBatch) -> DecodedCrystals:
        """Read elements and coordinates off each atom, the lattice off the mean over atoms, in float32."""
        with full_precision(hidden):
            return self._read_off(hidden.float(), crystals)

    def _read_off(self, hidden: Float[Tensor, "N D"], crystals: CrystalBatch) -> DecodedCrystals:
        coords = self.frac_coords_head(hidden)
        vectors = coords.view(-1, 3, 2) if self.coord_output == "circle" else None
        if vectors is not None:
            coords = wrap(torch.atan2(vectors[..., 1], vectors[..., 0]) / (2 * torch.pi))
        lattice = self.lattice_head(mean_over_atoms(hidden, crystals))
        return DecodedCrystals(
            atom_logits=None if self.atom_types_head is None else self.atom_types_head(hidden),
            frac_coords=coords,
            coord_vectors=vectors,
            lengths_scaled=lattice[:, :3],
            angles=lattice[:, 3:],
        )
