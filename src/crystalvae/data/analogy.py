"""Crystal structures by analogy: known crystals of similar elements, with the elements exchanged. No model at all.

The reference that every learned structure prediction has to beat, and candidates for whoever wants some quickly.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from crystalvae.data.canonical import element_order
from crystalvae.data.prototypes.substitution import element_table
from crystalvae.data.wyckoff_genes import Arrays, StoredGenes
from crystalvae.errors import ConfigError

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from crystalvae.data.batch import CrystalBatch

ROW_WEIGHT = 0.7
"""What a difference of one row of the periodic table counts, in differences of one group."""
DECAY = 1.5
"""Crystals at a distance d have the similarity exp(-DECAY·d), unless distances are learned: those are in nats."""
NEAREST = 600
"""Crystals (each once for every order of its elements) whose similarities are summed; farther ones add nothing."""
MOST_ORDERS = 5040
"""Where more orders of elements than this are possible only the best of each crystal is looked at."""
LAST_RADIUS = 96
"""Curium has the last covalent radius known; heavier elements are given it too."""


@dataclass(frozen=True, eq=False)
class Analogue:
    """A candidate structure: the known crystal `source` with its elements exchanged and its volume adapted.

    `distance` is how unlike the two sets of elements are, 0 for the same elements; `similarity` is the sum of
    exp(-1.5·distance), or exp(-distance) where distances are learned, over all known crystals with this arrangement, by
    which candidates are ordered. Candidates with equal `gene` put the same elements on the same sites of the same space
    group (`source`'s).
    """

    numbers: Int[np.ndarray, "n"]
    frac_coords: Float[np.ndarray, "n 3"]
    lattice: Float[np.ndarray, "3 3"]
    source: str
    distance: float
    similarity: float
    space_group: int
    gene: object

    @property
    def arrays(self) -> Arrays:
        """Atomic numbers, fractional coordinates and lattice rows in Å."""
        return self.numbers, self.frac_coords, self.lattice

    def to_structure(self) -> Structure:
        """Return a pymatgen structure."""
        from pymatgen.core import Structure

        return Structure(self.lattice, self.numbers.tolist(), self.frac_coords)


@dataclass(frozen=True, eq=False)
class ElementMetric:
    """How far elements are from each other, and crystals: Σ scale · apart over their elements, exp(-decay · that).

    `apart` is by atomic number. `scales` are by the number of elements of a crystal and the place of each of them in
    the order of electronegativity; crystals of more elements than there are rows for have the scales of the last.
    """

    apart: Float[np.ndarray, "E E"]
    scales: Float[np.ndarray, "C K"] | None = None
    decay: float = DECAY

    def rows(self, wanted: Int[np.ndarray, "S"]) -> Float[np.ndarray, "S E"]:
        """Return the distances of each wanted element from all."""
        table = self.apart[wanted]
        if self.scales is None:
            return table
        places = element_order().numpy()[wanted].argsort().argsort()
        last = len(self.scales) - 1
        return table * self.scales[min(len(wanted), last), np.minimum(places, self.scales.shape[1] - 1)][:, None]


@dataclass(frozen=True, eq=False)
class _Family:
    """The crystals with given numbers of atoms per element: M of them, S elements each, P orders to try."""

    crystals: Int[np.ndarray, "M"]
    elements: Int[np.ndarray, "M S"]
    orders: Int[np.ndarray, "P S"] | None


class AnalogyLibrary:
    """Known crystals, to be searched for analogues of a composition.

    Cells are taken as they are: a composition finds crystals with the same numbers of atoms per element in the cell,
    whatever the elements. Genes (`wyckoff_genes`) are found when needed, 2 ms per crystal, and kept in `cache`.
    `metric` is by default that of `element_distances`.

    Raises `ValueError` unless there is one id per crystal.
    """

    def __init__(self, *, crystals: Sequence[Arrays], ids: Sequence[str], cache: Path | None = None) -> None:
        if len(crystals) != len(ids):
            raise ValueError(f"AnalogyLibrary.ids: expected {len(crystals)}, one per crystal, got {len(ids)}")
        self.crystals, self.ids = crystals, ids
        self.genes = StoredGenes(crystals, path=cache)
        self.metric = ElementMetric(element_distances())
        members: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = defaultdict(list)
        for index, (numbers, _, _) in enumerate(crystals):
            elements, counts = _slots(numbers)
            members[counts].append((index, elements))
        self._families = {
            counts: _Family(
                crystals=np.array([index for index, _ in entries]),
                elements=np.stack([elements for _, elements in entries]),
                orders=_orders(counts),
            )
            for counts, entries in members.items()
        }

    @classmethod
    def of(cls, crystals: CrystalBatch, ids: Sequence[str], *, cache_dir: Path | None = None) -> AnalogyLibrary:
        """Return the library of a batch of crystals, its genes kept in the folder `cache_dir`."""
        path = None if cache_dir is None else cache_dir / "genes"
        return cls(crystals=crystals.to_arrays(), ids=list(ids), cache=path)

    def __len__(self) -> int:
        return len(self.crystals)

    def sizes(self, unit: Sequence[int] | Int[np.ndarray, "n"]) -> list[int]:
        """Return for which numbers of formula units of `unit` (atomic numbers) there are crystals, in order."""
        _, counts = _slots(unit)
        multiples = (
            family[0] // counts[0]
            for family in self._families
            if len(family) == len(counts) and family[0] % counts[0] == 0
        )
        return sorted({size for size in multiples if tuple(size * count for count in counts) in self._families})

    def families(self) -> Iterator[tuple[Int[np.ndarray, "M S"], list[object]]]:
        """Yield elements and genes of the crystals with the same numbers of atoms per element, all genes being found.

        Elements, and places in genes, are in the order of electronegativity; a crystal without symmetry has a gene of
        its own.
        """
        found: dict[tuple[int, ...], list[tuple[np.ndarray, object]]] = defaultdict(list)
        ranks = element_order().numpy()
        for index, (numbers, _, _) in enumerate(self.crystals):
            elements, counts = np.unique(numbers, return_counts=True)
            order, gene = ranks[elements].argsort(), self.genes[index]
            key = gene.of_elements(order.tolist()) if gene.space_group else index
            found[tuple(counts[order].tolist())].append((elements[order], key))
        for entries in found.values():
            yield np.stack([elements for elements, _ in entries]), [key for _, key in entries]

    def search(
        self,
        composition: Sequence[int] | Int[np.ndarray, "n"],
        *,
        count: int = 20,
        exclude: Collection[str] = (),
    ) -> list[Analogue]:
        """Return up to `count` candidates for the atomic numbers of one cell, one per gene, the likeliest first.

        1. Crystals with the same numbers of atoms per element are compared element by element, in every order that
           keeps the numbers of atoms: their distance is the sum over the elements of |Δgroup| + 0.7·|Δrow|, or what
           `metric` says.
        2. Those whose elements would take the same places (one gene) are one candidate, and their similarities
           exp(-1.5·distance) are added up; candidates are ordered by that sum, the nearest crystal stands for each.
        3. Its elements are exchanged, and its volume multiplied by Σ r'^3 / Σ r^3, r the covalent radii of its atoms.

        Crystals whose ids are in `exclude` are passed over. The list is empty where no crystal has such numbers of
        atoms, and where an element is unknown (0). Raises `ConfigError` for a count below 1 or without atoms.
        """
        wanted, counts = _slots(composition)
        if count < 1 or not counts:
            raise ConfigError(f"analogues: got count={count} for {sum(counts)} atoms; expected at least 1 of each")
        family = self._families.get(counts)
        if family is None or wanted.min() < 1:
            return []
        sums: dict[object, float] = defaultdict(float)
        nearest: dict[object, tuple[int, np.ndarray, float]] = {}
        for member, order, distance in _nearest(counts, family, self.metric.rows(wanted)):
            index = int(family.crystals[member])
            if exclude and self.ids[index] in exclude:
                continue
            places = np.argsort(family.elements[member]).argsort()[order]  # elements by atomic number, as genes have it
            gene = self.genes[index]
            key = gene.of_elements(places.tolist()) if gene.space_group else index
            sums[key] += float(np.exp(-self.metric.decay * distance))
            nearest.setdefault(key, (index, order, distance))
        ranked = sorted(sums, key=lambda key: -sums[key])[:count]
        return [self._exchanged(wanted, *nearest[key], sums[key], key) for key in ranked]

    def search_formula(
        self, unit: Sequence[int] | Int[np.ndarray, "n"], *, sizes: Sequence[int] | None = None, count: int = 20
    ) -> list[Analogue]:
        """Return candidates for cells of `sizes` formula units of `unit`, by default of all sizes that crystals have.

        A gene that crystals have in cells of several sizes is one candidate, the likeliest of these.
        """
        chosen = self.sizes(unit) if sizes is None else sizes
        found = [entry for size in chosen for entry in self.search(np.tile(np.asarray(unit), size), count=count)]
        best: dict[object, Analogue] = {}
        for entry in sorted(found, key=lambda entry: -entry.similarity):
            best.setdefault(entry.gene, entry)
        return list(best.values())[:count]

    def _exchanged(
        self, wanted: np.ndarray, index: int, order: np.ndarray, distance: float, similarity: float, gene: object
    ) -> Analogue:
        numbers, frac_coords, lattice = self.crystals[index]
        before, _ = _slots(numbers)
        new = np.zeros(int(before.max()) + 1, dtype=np.int64)
        new[before[order]] = wanted
        exchanged = new[numbers]
        scale = (_volumes(exchanged) / _volumes(numbers)) ** (1 / 3)
        sorting = exchanged.argsort(kind="stable")
        return Analogue(
            numbers=exchanged[sorting],
            frac_coords=frac_coords[sorting],
            lattice=lattice * scale,
            source=self.ids[index],
            distance=distance,
            similarity=similarity,
            space_group=self.genes[index].space_group,
            gene=gene,
        )


@cache
def element_distances() -> Float[np.ndarray, "E E"]:
    """Return |Δgroup| + 0.7·|Δrow| between the elements by atomic number, NaN for 0.

    Groups and rows are pymatgen's, for which the lanthanides and the actinides are group 3 in rows of their own.
    """
    from pymatgen.core import Element

    elements = [Element.from_Z(number) for number in range(1, 100)]
    groups = np.array([np.nan, *(element.group for element in elements)])
    rows = np.array([np.nan, *(element.row for element in elements)])
    return np.abs(groups[:, None] - groups) + ROW_WEIGHT * np.abs(rows[:, None] - rows)


def _slots(numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the elements, those with most atoms first and then by atomic number, and their numbers of atoms."""
    elements, counts = np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)
    order = np.lexsort((elements, -counts))
    return elements[order], tuple(counts[order].tolist())


def _orders(counts: tuple[int, ...]) -> Int[np.ndarray, "P S"] | None:
    """Return all orders of elements that keep the numbers of atoms; None where they are too many to try."""
    groups = [list(group) for _, group in itertools.groupby(range(len(counts)), key=lambda place: counts[place])]
    if np.prod([float(np.prod(np.arange(1.0, len(group) + 1))) for group in groups]) > MOST_ORDERS:
        return None
    parts = itertools.product(*(itertools.permutations(group) for group in groups))
    return np.array([[place for part in parts_of_one for place in part] for parts_of_one in parts])


def _nearest(
    counts: tuple[int, ...], family: _Family, table: Float[np.ndarray, "S E"]
) -> Iterator[tuple[int, Int[np.ndarray, "S"], float]]:
    """Yield the nearest crystals of a family with the order of elements and the distance, the nearest first."""
    if family.orders is None:
        yield from _best_orders(counts, family, table)
        return
    distances = sum(table[slot][family.elements[:, family.orders[:, slot]]] for slot in range(len(counts)))
    flat = np.asarray(distances).ravel()
    chosen = np.argpartition(flat, NEAREST)[:NEAREST] if len(flat) > NEAREST else np.arange(len(flat))
    for place in chosen[np.lexsort((chosen, flat[chosen]))].tolist():
        member, order = divmod(place, len(family.orders))
        yield member, family.orders[order], float(flat[place])


def _best_orders(
    counts: tuple[int, ...], family: _Family, table: Float[np.ndarray, "S E"]
) -> Iterator[tuple[int, Int[np.ndarray, "S"], float]]:
    from scipy.optimize import linear_sum_assignment

    sizes = np.array(counts)
    forbidden = np.where(sizes[:, None] == sizes, 0.0, 1e6)
    found = []
    for member, elements in enumerate(family.elements):
        costs = table[:, elements] + forbidden
        rows, order = linear_sum_assignment(costs)
        found.append((float(costs[rows, order].sum()), member, order))
    for distance, member, order in sorted(found, key=lambda entry: entry[:2])[:NEAREST]:
        yield member, order, distance


def _volumes(numbers: np.ndarray) -> float:
    radii = element_table().covalent_radius[np.minimum(numbers, LAST_RADIUS)]
    return float((radii**3).sum())
