"""Genes: the discrete part of a crystal, its space group and which element sits on which Wyckoff positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.symmetric.source import ORBIT_SITES, SPACE_GROUP, pad_sites
from crystalvae.data.symmetric.tables import SpaceGroupTables, space_group_tables
from crystalvae.errors import DataError

Gene = tuple[int, tuple[tuple[int, int], ...]]
"""One gene as plain numbers: space group, and (atomic number, number of the site in the group) for each orbit."""
Pattern = tuple[int, tuple[tuple[int, int], ...]]
"""A gene with the places of its elements in the order of `element_order` instead of the elements."""


@dataclass(frozen=True, eq=False)
class Genes:
    """Space groups and orbits of B crystals, in order: by `element_order`, then by letter; padded to K orbits.

    `elements` are atomic numbers (0 beyond the end), `sites` numbers of Wyckoff positions within the group, 0 for
    letter a (-1 beyond the end).
    """

    space_groups: Int[Tensor, "B"]
    elements: Int[Tensor, "B K"]
    sites: Int[Tensor, "B K"]

    @classmethod
    def of(cls, crystals: CrystalBatch) -> Genes:
        """Read the genes of crystals in the symmetric description (`data.canonical=symmetric`)."""
        missing = [name for name in (SPACE_GROUP, ORBIT_SITES) if name not in crystals.properties]
        if missing:
            raise DataError(
                f"crystals have no {' and '.join(missing)}: genes are of crystals in the symmetric description; "
                "set data.canonical=symmetric"
            )
        groups = crystals.properties[SPACE_GROUP].long()
        sites = crystals.properties[ORBIT_SITES].long()
        tables = space_group_tables(crystals.device)
        sizes = orbit_sizes(tables, groups, sites)
        firsts = crystals.ptr[:-1, None] + sizes.cumsum(dim=1) - sizes
        elements = torch.where(sites >= 0, crystals.atom_types[firsts.clamp_max(crystals.num_nodes - 1)], 0)
        return cls(groups, elements, sites)

    @classmethod
    def from_list(cls, genes: Sequence[Gene]) -> Genes:
        """Collect single genes."""
        elements = [torch.tensor([element for element, _ in pairs]) for _, pairs in genes]
        sites = [torch.tensor([site for _, site in pairs]) for _, pairs in genes]
        return cls(torch.tensor([group for group, _ in genes]), pad_sites(elements).clamp_min(0), pad_sites(sites))

    def to_list(self) -> list[Gene]:
        """Return genes as plain numbers, which can be compared and looked up."""
        rows = zip(self.space_groups.tolist(), self.elements.tolist(), self.sites.tolist(), strict=True)
        return [
            (group, tuple((z, s) for z, s in zip(elements, sites, strict=True) if s >= 0))
            for group, elements, sites in rows
        ]

    def __len__(self) -> int:
        return len(self.space_groups)

    def __getitem__(self, rows: Tensor) -> Genes:
        return Genes(self.space_groups[rows], self.elements[rows], self.sites[rows])

    @property
    def sizes(self) -> Int[Tensor, "B K"]:
        """Atoms in each orbit, 0 beyond the end."""
        return orbit_sizes(space_group_tables(self.sites.device), self.space_groups, self.sites)

    @property
    def num_atoms(self) -> Int[Tensor, "B"]:
        """Atoms in the primitive cell."""
        return self.sizes.sum(dim=1)

    def atom_types(self) -> Int[Tensor, "N"]:
        """Return the element of every atom, crystal by crystal, orbit by orbit."""
        return torch.repeat_interleave(self.elements.flatten(), self.sizes.flatten())


def orbit_sizes(tables: SpaceGroupTables, groups: Int[Tensor, "B"], sites: Int[Tensor, "B K"]) -> Int[Tensor, "B K"]:
    """Return the number of atoms in each orbit, 0 where the site is -1."""
    rows = tables.first_site[groups - 1, None] + sites.clamp_min(0)
    return torch.where(sites >= 0, tables.multiplicity[rows], 0)


@dataclass(frozen=True, eq=False)
class KnownGenes:
    """N crystals with the same numbers of atoms of K elements, in order; `pattern_numbers` say which of `patterns`."""

    elements: Int[Tensor, "N K"]
    pattern_numbers: Int[Tensor, "N"]
    patterns: Sequence[Pattern]
