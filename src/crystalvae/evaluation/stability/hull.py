"""Convex hulls of energies, one per chemical system, through pymatgen. Workers import this module: no torch here."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypedDict

import numpy as np

from crystalvae.evaluation.parallel.attempt import Failure, attempt
from crystalvae.evaluation.parallel.runner import Runner

System = frozenset[int]
"""Atomic numbers of a chemical system."""
HULL_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """A composition, atoms by atomic number, and its energy in eV."""

    composition: Mapping[int, int]
    energy: float

    @property
    def atoms(self) -> int:
        """Number of atoms."""
        return sum(self.composition.values())


class HullResult(TypedDict):
    """Energy of the hull in eV/atom at each composition asked for; NaN for all, and the reason, where there is none."""

    energies: list[float]
    failure: str


def composition(numbers: np.ndarray) -> dict[int, int]:
    """Return how many atoms there are of each element, by atomic number."""
    elements, counts = np.unique(numbers, return_counts=True)
    return dict(zip(elements.tolist(), counts.tolist(), strict=True))


class SystemIndex:
    """Which crystals lie in which chemical system, or in one of its subsystems."""

    def __init__(self, systems: Iterable[System]) -> None:
        self._members: dict[System, list[int]] = defaultdict(list)
        for index, system in enumerate(systems):
            self._members[system].append(index)

    def inside(self, system: System) -> list[int]:
        """Return in ascending order the crystals that have no element outside a system."""
        return sorted(index for subsystem in self._subsystems(system) for index in self._members[subsystem])

    def _subsystems(self, system: System) -> Iterator[System]:
        if 2 ** len(system) > len(self._members):
            yield from (known for known in self._members if known <= system)
            return
        for size in range(1, len(system) + 1):
            for chosen in combinations(sorted(system), size):
                if frozenset(chosen) in self._members:
                    yield frozenset(chosen)


def energies_above_hull(
    entries: Sequence[Entry], reference: Sequence[Entry], *, runner: Runner
) -> list[tuple[float, str]]:
    """Return for each entry its energy above (below: negative) the hull of the reference, eV/atom, or NaN and why.

    The hull of an entry's chemical system is that of all reference entries without other elements (pymatgen's
    `PhaseDiagram`); the entries themselves are not part of it. There is none where an element has no reference entry
    of its own.
    """
    index = SystemIndex(frozenset(entry.composition) for entry in reference)
    groups: dict[System, list[int]] = defaultdict(list)
    for position, entry in enumerate(entries):
        groups[frozenset(entry.composition)].append(position)
    items = []
    for system, positions in groups.items():
        elements = np.array(sorted(system))
        known = _lowest([reference[i] for i in index.inside(system)])
        items.append((
            elements,
            _amounts(known, elements),
            np.array([entry.energy for entry in known], dtype=float),
            _amounts([entries[i] for i in positions], elements),
        ))  # fmt: skip
    results = runner.map(
        hull_energies, items, description="convex hulls", namespace=f"hull_energies/{HULL_VERSION}/{_pymatgen()}"
    )
    above: list[tuple[float, str]] = [(math.nan, "")] * len(entries)
    for positions, result in zip(groups.values(), results, strict=True):
        for position, energy in zip(positions, result["energies"], strict=True):
            entry = entries[position]
            above[position] = (entry.energy / entry.atoms - energy, result["failure"])
    return above


def hull_energies(item: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> HullResult:
    """Return the energy of the hull at compositions of one chemical system.

    Args:
        item: Atomic numbers (k,); amounts (m, k) and energies (m,) in eV of the reference entries; amounts (t, k) of
            the compositions asked for.
    """
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition, Element

    numbers, amounts, energies, targets = item
    elements = [Element.from_Z(int(number)) for number in numbers]
    terminal = amounts[(amounts > 0).sum(axis=1) == 1].sum(axis=0)
    lacking = [element.symbol for element, amount in zip(elements, terminal, strict=True) if not amount]
    nothing = [math.nan] * len(targets)
    if lacking:
        return HullResult(energies=nothing, failure=f"no reference crystal of pure {', '.join(lacking)}")

    def amounts_of(row: np.ndarray) -> Composition:
        return Composition(dict(zip(elements, row.tolist(), strict=True)))

    def on_hull() -> list[float]:
        known = zip(amounts, energies, strict=True)
        diagram = PhaseDiagram([PDEntry(amounts_of(row), float(energy)) for row, energy in known])
        return [float(diagram.get_hull_energy_per_atom(amounts_of(row))) for row in targets]

    found = attempt(on_hull)
    if isinstance(found, Failure):
        return HullResult(energies=nothing, failure=found.reason)
    return HullResult(energies=found, failure="")


def formation_energies(entries: Sequence[Entry], elemental: Mapping[int, float]) -> list[float]:
    """Return eV/atom relative to the elements, `elemental` in eV/atom; NaN where an element has none."""
    return [
        (entry.energy - sum(n * elemental.get(number, math.nan) for number, n in entry.composition.items()))
        / entry.atoms
        for entry in entries
    ]


def elemental_energies(reference: Sequence[Entry]) -> dict[int, float]:
    """Return the lowest energy in eV/atom of each element among entries of one element."""
    lowest: dict[int, float] = {}
    for entry in reference:
        if len(entry.composition) == 1:
            number = next(iter(entry.composition))
            lowest[number] = min(lowest.get(number, math.inf), entry.energy / entry.atoms)
    return lowest


def _lowest(entries: Sequence[Entry]) -> list[Entry]:
    """Return of each reduced composition the entry of lowest energy per atom: others are never on the hull."""
    best: dict[tuple[tuple[int, int], ...], Entry] = {}
    for entry in entries:
        divisor = math.gcd(*entry.composition.values())
        key = tuple(sorted((number, n // divisor) for number, n in entry.composition.items()))
        if key not in best or entry.energy / entry.atoms < best[key].energy / best[key].atoms:
            best[key] = entry
    return list(best.values())


def _amounts(entries: Sequence[Entry], elements: np.ndarray) -> np.ndarray:
    rows = [[entry.composition.get(int(number), 0) for number in elements] for entry in entries]
    return np.array(rows, dtype=np.int64).reshape(len(entries), len(elements))


def _pymatgen() -> str:
    from importlib.metadata import version

    return version("pymatgen-core")
