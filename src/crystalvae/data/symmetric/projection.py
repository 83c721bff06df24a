"""Projections onto a space group and its Wyckoff sites, for batches: the result has the symmetry exactly.

All of them are averages over operations, so linear in what they are given but for the choice of lattice vectors;
gradients pass, and what is symmetric already comes back as it is.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import lattice_from_parameters, wrap
from crystalvae.data.symmetric.source import ORBIT_SITES, SPACE_GROUP
from crystalvae.data.symmetric.tables import space_group_tables
from crystalvae.errors import DataError

_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class AtomSites:
    """Where each of N atoms stands in its crystal's symmetry; the crystals' atoms come orbit by orbit.

    `orbit` is the number of an atom's orbit in the whole batch, `first` the first atom of each of O orbits, `image` the
    number of the atom within its orbit, `site` the row of its Wyckoff position in `SpaceGroupTables`.
    `space_groups` (B,) are from 1.
    """

    space_groups: Int[Tensor, "B"]
    orbit: Int[Tensor, "N"]
    first: Int[Tensor, "O"]
    image: Int[Tensor, "N"]
    site: Int[Tensor, "N"]

    @classmethod
    def of(cls, crystals: CrystalBatch) -> AtomSites:
        """Read the sites of crystals in the symmetric description."""
        missing = [name for name in (SPACE_GROUP, ORBIT_SITES) if name not in crystals.properties]
        if missing:
            raise DataError(f"crystals have no {' and '.join(missing)}; set data.canonical=symmetric")
        groups, sites = crystals.properties[SPACE_GROUP].long(), crystals.properties[ORBIT_SITES].long()
        found = cls.from_orbits(groups, sites)
        if len(found.orbit) != crystals.num_nodes:
            raise DataError(f"orbits of {len(found.orbit)} atoms together; expected {crystals.num_nodes}")
        return found

    @classmethod
    def from_orbits(cls, space_groups: Int[Tensor, "B"], sites: Int[Tensor, "B K"]) -> AtomSites:
        """Spread orbits over their atoms; `sites` are numbers within the groups, -1 beyond the last one."""
        tables = space_group_tables(sites.device)
        rows = (tables.first_site[space_groups - 1, None] + sites)[sites >= 0]
        sizes = tables.multiplicity[rows]
        orbit = torch.repeat_interleave(torch.arange(len(rows), device=sites.device), sizes)
        first = sizes.cumsum(0) - sizes
        image = torch.arange(len(orbit), device=sites.device) - first[orbit]
        return cls(space_groups, orbit, first, image, rows[orbit])

    @property
    def multiplicity(self) -> Int[Tensor, "N"]:
        """Atoms in the orbit of each atom."""
        return space_group_tables(self.site.device).multiplicity[self.site]

    @property
    def freedom(self) -> Int[Tensor, "N"]:
        """Free coordinates of the site of each atom."""
        return space_group_tables(self.site.device).freedom[self.site]

    @property
    def symmetry(self) -> Int[Tensor, "N"]:
        """Number of the site-symmetry symbol of each atom, in `SpaceGroupTables.symmetries`."""
        return space_group_tables(self.site.device).symmetry[self.site]

    @property
    def letter(self) -> Int[Tensor, "N"]:
        """Number of the Wyckoff letter of each atom, 0 for a."""
        tables = space_group_tables(self.site.device)
        return self.site - tables.first_site[tables.group[self.site] - 1]


def project_lattices(lattices: Float[Tensor, "B 3 3"], space_groups: Int[Tensor, "B"]) -> Float[Tensor, "B 3 3"]:
    """Return cells with the symmetry of their groups: scalar products of the vectors averaged over the rotations.

    Rows are the vectors in Å; orientation as in `lattice_from_parameters`. Volumes never shrink.
    """
    rotation = space_group_tables(lattices.device).rotation[space_groups - 1].to(lattices.dtype)
    metric = lattices @ lattices.transpose(1, 2)
    metric = torch.einsum("bgji,bjk,bgkl->bil", rotation, metric, rotation) / rotation.shape[1]
    lengths = metric.diagonal(dim1=1, dim2=2).sqrt()
    cosines = metric / (lengths[:, :, None] * lengths[:, None])
    pairs = torch.stack((cosines[:, 1, 2], cosines[:, 0, 2], cosines[:, 0, 1]), dim=1)
    return lattice_from_parameters(lengths, torch.acos(pairs.clamp(-1 + 1e-6, 1 - 1e-6)))


def project_coordinates(frac_coords: Float[Tensor, "N 3"], sites: AtomSites) -> Float[Tensor, "N 3"]:
    """Return coordinates in [0, 1) on the atoms' sites: images of each orbit averaged back, and made anew.

    Every atom is taken back to the first one of its orbit, the places found so are averaged (the nearest images of
    them), the average is moved onto the site, and its images are the atoms.
    """
    tables = space_group_tables(frac_coords.device)
    images = tables.first_image[sites.site] + sites.image
    rotation = tables.image_rotation[images].to(frac_coords.dtype)
    translation = tables.image_translation[images].to(frac_coords.dtype)
    back = torch.linalg.solve(rotation, (frac_coords - translation)[..., None])[..., 0]
    size = sites.multiplicity.to(frac_coords.dtype)[:, None]
    centre = back[sites.first]
    for _ in range(_ROUNDS):  # the nearest images may be others around a better centre
        apart = back - centre[sites.orbit]
        apart = apart - apart.detach().round()
        centre = centre + torch.zeros_like(centre).index_add(0, sites.orbit, apart / size)
    return atoms_of_orbits(onto_sites(centre, sites.site[sites.first]), sites)


def atoms_of_orbits(firsts: Float[Tensor, "O 3"], sites: AtomSites) -> Float[Tensor, "N 3"]:
    """Return the coordinates in [0, 1) of all atoms, given those of the first one of each orbit, on its site."""
    tables = space_group_tables(firsts.device)
    images = tables.first_image[sites.site] + sites.image
    rotation = tables.image_rotation[images].to(firsts.dtype)
    translation = tables.image_translation[images].to(firsts.dtype)
    return wrap(torch.einsum("nij,nj->ni", rotation, firsts[sites.orbit]) + translation)


def onto_sites(points: Float[Tensor, "O 3"], sites: Int[Tensor, "O"]) -> Float[Tensor, "O 3"]:
    """Return the nearest points of Wyckoff sites (rows of `SpaceGroupTables`), their images by lattice vectors too."""
    tables = space_group_tables(points.device)
    rotation = tables.mean_rotation[sites].to(points.dtype)
    translation = tables.mean_translation[sites].to(points.dtype)
    shifts = _shifts().to(points)
    whole = points.detach().floor()
    candidates = (points - whole)[:, None] - shifts  # (O, S, 3)
    moved = torch.einsum("oij,osj->osi", rotation, candidates) + translation[:, None]
    nearest = (moved - candidates).detach().square().sum(dim=-1).argmin(dim=1)
    rows = torch.arange(len(points), device=points.device)
    return moved[rows, nearest] + shifts[nearest] + whole


def _shifts() -> Float[Tensor, "S 3"]:
    return torch.tensor(list(itertools.product((-1.0, 0.0, 1.0, 2.0), repeat=3)))


def project(crystals: CrystalBatch, sites: AtomSites | None = None) -> CrystalBatch:
    """Return crystals with the symmetry of their groups and sites, which their properties name unless `sites` does."""
    sites = AtomSites.of(crystals) if sites is None else sites
    return crystals.replace(
        lattices=project_lattices(crystals.lattices, sites.space_groups),
        frac_coords=project_coordinates(crystals.frac_coords, sites),
    )
