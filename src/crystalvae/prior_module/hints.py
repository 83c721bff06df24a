"""What the flow is told of a crystal beside its elements: its symmetry, and a crystal that it may be like."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.symmetric.projection import AtomSites
from crystalvae.data.symmetric.space_groups import NUM_SPACE_GROUPS
from crystalvae.data.symmetric.tables import space_group_tables

_HARMONICS = (1, 2, 4)
_AXES = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)


@dataclass(frozen=True, eq=False)
class Hints:
    """What is known of crystals beside their elements: where their atoms sit, and a crystal that each may be like.

    `latents` are those of the likely crystal, with the elements exchanged, `elements` what it had (0 where no crystal
    is known), `distance` how unlike the elements are.
    """

    sites: AtomSites
    latents: Float[Tensor, "N L"]
    elements: Int[Tensor, "N"]
    distance: Float[Tensor, "B"]


class HintEmbedder(nn.Module):
    """Vectors for atoms and for crystals from hints, all of them zero to begin with."""

    def __init__(self, *, latent_dim: int, d_model: int) -> None:
        super().__init__()
        self.symmetry = SymmetryEmbedder(d_model=d_model)
        self.latents = nn.Linear(latent_dim, d_model)
        self.elements = nn.Linear(d_model, d_model, bias=False)
        self.distance = nn.Linear(2, d_model)
        for layer in (self.latents, self.elements, self.distance):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.latents.bias)
        nn.init.zeros_(self.distance.bias)

    def forward(
        self, hints: Hints, crystals: CrystalBatch, of_elements: Float[Tensor, "E D"]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "B D"]]:
        """Return a vector for each atom and one for each crystal; `of_elements` are the vectors of the elements."""
        atoms, groups = self.symmetry(hints.sites)
        known = (hints.elements > 0)[:, None].to(hints.latents.dtype)
        exchanged = F.embedding(hints.elements, of_elements) - F.embedding(crystals.atom_types, of_elements)
        atoms = atoms + known * (self.latents(hints.latents) + self.elements(exchanged))
        told = known[crystals.ptr[:-1]]
        return atoms, groups + self.distance(torch.cat((told, told * hints.distance[:, None]), dim=1))


class SymmetryEmbedder(nn.Module):
    """Vectors for atoms, from their sites, and for crystals, from their space groups; all are zero to begin with.

    An atom's place is A·x + b, with x near the first atom of its orbit: A and b (the latter as sines and cosines, as it
    is known up to lattice vectors) are read, so that sites seen rarely are understood, too. Of a cell it is read how
    the group averages the six scalar products of its vectors. Beside these, which all groups share, space groups,
    Wyckoff positions, site symmetries, multiplicities, freedoms, and the number of the atom within its orbit are known
    by short learned vectors.
    """

    def __init__(self, *, d_model: int) -> None:
        super().__init__()
        tables = space_group_tables()
        largest = int(tables.multiplicity.max())
        self.site_embedder = nn.Embedding(len(tables.multiplicity), 48)
        self.symmetry_embedder = nn.Embedding(len(tables.symmetries), 16)
        self.multiplicity_embedder = nn.Embedding(largest + 1, 8)
        self.freedom_embedder = nn.Embedding(4, 4)
        self.image_embedder = nn.Embedding(largest, 16)
        self.group_embedder = nn.Embedding(NUM_SPACE_GROUPS + 1, 64)
        widths = [part.embedding_dim for part in self.children() if isinstance(part, nn.Embedding)]
        self.atoms = nn.Linear(9 + 6 * len(_HARMONICS) + sum(widths[:-1]), d_model)
        self.crystals = nn.Linear(36 + widths[-1], d_model)
        for layer in (self.atoms, self.crystals):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, sites: AtomSites) -> tuple[Float[Tensor, "N D"], Float[Tensor, "B D"]]:
        """Return a vector for each atom and one for each crystal."""
        of_atoms = (
            place_features(sites),
            self.site_embedder(sites.site),
            self.symmetry_embedder(sites.symmetry),
            self.multiplicity_embedder(sites.multiplicity),
            self.freedom_embedder(sites.freedom),
            self.image_embedder(sites.image),
        )
        of_crystals = (cell_features(sites.space_groups), self.group_embedder(sites.space_groups))
        return self.atoms(torch.cat(of_atoms, dim=1)), self.crystals(torch.cat(of_crystals, dim=1))


def place_features(sites: AtomSites) -> Float[Tensor, "N F"]:
    """Return A, and cos and sin of multiples of 2πb, for places A·x + b of atoms with x near their sites."""
    tables = space_group_tables(sites.site.device)
    images = tables.first_image[sites.site] + sites.image
    rotation = tables.image_rotation[images]
    matrix = rotation @ tables.mean_rotation[sites.site]
    shift = (rotation @ tables.mean_translation[sites.site][..., None])[..., 0] + tables.image_translation[images]
    phases = torch.cat([2 * math.pi * k * shift for k in _HARMONICS], dim=1)
    return torch.cat((matrix.flatten(1), phases.cos(), phases.sin()), dim=1).float()


def cell_features(space_groups: Int[Tensor, "B"]) -> Float[Tensor, "B 36"]:
    """Return the matrices that average the scalar products (aa, bb, cc, bc, ac, ab) over the groups' rotations."""
    tables = space_group_tables(space_groups.device)
    rotation = tables.rotation[space_groups - 1]
    rows, columns = (list(part) for part in _AXES)
    units = torch.zeros(6, 3, 3, dtype=rotation.dtype, device=rotation.device)
    units[range(6), rows, columns] = 1.0
    units = (units + units.transpose(1, 2)).clamp_max(1.0)
    averaged = torch.einsum("bgji,ujk,bgkl->buil", rotation, units, rotation) / rotation.shape[1]
    return averaged[:, :, rows, columns].flatten(1).float()
