"""The best and the worst crystals of an evaluation, as the page shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.composition import GRAM_PER_CM3
from crystalvae.evaluation.report.scene import Scene, scene

Columns = Mapping[str, Sequence[object]]
"""Values per crystal by `<section>.<column>`, as in the report's JSON."""

GENERATION_ORDER = (
    "Ranked by: valid, unique and novel first, then valid in structure, then the number of checks passed, then (where "
    "there are energies) the energy above the hull, then the distance of the structure fingerprint to the reference. "
    "One crystal a formula."
)
RECONSTRUCTION_ORDER = (
    "Best: smallest RMS displacement, among the crystals with at least the median number of atoms. Worst: without an "
    "answer, then without a match, then by falling RMS displacement. One crystal a formula."
)


@dataclass(frozen=True)
class Panel:
    """One crystal in a viewer: what it is, its drawing or why there is none, and its CIF (empty: it has none)."""

    title: str
    scene: Scene | str
    cif: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class Case:
    """A crystal worth a look: one panel where it was generated, two (target, prediction) where it was compared."""

    id: str
    formula: str
    verdict: str
    panels: list[Panel]


@dataclass(frozen=True)
class Group:
    """Cases under one title."""

    title: str
    cases: list[Case] = field(default_factory=list)


def column(columns: Columns, name: str, count: int) -> Sequence[object] | None:
    """Return the values of a column, whichever section it is from; None where there is none of that length."""
    for key, values in columns.items():
        if key.partition(".")[2] == name and len(values) == count:
            return values
    return None


def numbers(columns: Columns, name: str, count: int) -> np.ndarray:
    """Return a column as numbers, NaN where there are none."""
    values = column(columns, name, count)
    if values is None:
        return np.full(count, math.nan)
    return np.array([value if isinstance(value, (int, float)) else math.nan for value in values], dtype=float)


def generation_groups(
    crystals: CrystalBatch,
    columns: Columns,
    ids: Sequence[str],
    cif: Callable[[str, list[int]], list[str]],
    *,
    most: int,
) -> list[Group]:
    """Return the best and the worst generated crystals, ordered as `GENERATION_ORDER` says.

    `cif` gives the CIFs of crystals of the set "generated" by their indices.
    """
    order = generation_order(columns, len(crystals))
    formulas = _formulas(crystals, columns)
    best = _different(order, formulas, min(most, -(-len(order) // 2)))
    worst = [index for index in _different(order[::-1], formulas, most) if index not in best]
    return [
        Group(title, _generated_cases(crystals, columns, ids, formulas, chosen, cif))
        for title, chosen in (("Best", best), ("Worst", worst))
    ]


def generation_order(columns: Columns, count: int) -> list[int]:
    """Return the indices of generated crystals, best first."""
    passed = np.zeros(count)
    for name in ("structure_valid", "composition_valid", "physical_valid", "unique", "novel"):
        passed += np.nan_to_num(numbers(columns, name, count))
    vun = np.nan_to_num(numbers(columns, "vun", count))
    keys = [vun, np.nan_to_num(numbers(columns, "structure_valid", count)), passed]
    for name in ("energy_above_hull", "structure_distance"):
        values = numbers(columns, name, count)
        keys.append(-np.where(np.isfinite(values), values, np.inf))  # what has no value comes last
    return sorted(range(count), key=lambda index: tuple(-key[index] for key in keys))


def reconstruction_groups(
    targets: CrystalBatch,
    predictions: CrystalBatch,
    columns: Columns,
    ids: Sequence[str],
    cif: Callable[[str, list[int]], list[str]],
    *,
    most: int,
) -> list[Group]:
    """Return the best and the worst predictions beside their targets, ordered as `RECONSTRUCTION_ORDER` says."""
    count = len(targets)
    rms = numbers(columns, "rms", count)
    failures = column(columns, "failure", count) or [None] * count
    atoms = targets.num_atoms.numpy()
    middle = float(np.median(atoms)) if count else 0.0
    matched = [index for index in range(count) if math.isfinite(rms[index])]
    formulas = _formulas(targets, {})
    ranked = sorted((index for index in matched if atoms[index] >= middle), key=lambda index: (rms[index], index))
    best = _different(ranked, formulas, most)

    def badness(index: int) -> tuple[bool, bool, float]:
        unmatched = not math.isfinite(rms[index])
        return failures[index] is not None, unmatched, 0.0 if unmatched else float(rms[index])

    ranked = sorted(set(range(count)) - set(best), key=lambda index: (*badness(index), -index), reverse=True)
    worst = _different(ranked, formulas, most)

    def cases(chosen: list[int]) -> list[Case]:
        texts = zip(cif("targets", chosen), cif("predictions", chosen), strict=True)
        return [
            Case(
                id=ids[index],
                formula=formulas[index],
                verdict=f"no answer: {failures[index]}"
                if failures[index] is not None
                else f"RMS displacement {rms[index]:.4f}"
                if math.isfinite(rms[index])
                else "no match",
                panels=[_panel("target", targets, index, text[0]), _panel("prediction", predictions, index, text[1])],
            )
            for index, text in zip(chosen, texts, strict=True)
        ]

    return [Group("Best", cases(best)), Group("Worst", cases(worst))]


def _generated_cases(
    crystals: CrystalBatch,
    columns: Columns,
    ids: Sequence[str],
    formulas: Sequence[str],
    chosen: list[int],
    cif: Callable[[str, list[int]], list[str]],
) -> list[Case]:
    count = len(crystals)
    above = numbers(columns, "energy_above_hull", count)
    groups = _space_groups(columns, count)
    cases = []
    for index, text in zip(chosen, cif("generated", chosen), strict=True):
        panel = _panel("generated", crystals, index, text)
        if groups is not None and groups[1][index] is not None:
            panel.facts.append((f"space group at {groups[0]} Å", f"no. {groups[1][index]}"))
        if math.isfinite(above[index]):
            panel.facts.append(("above hull", f"{above[index]:.3f} eV/atom"))
        cases.append(Case(ids[index], formulas[index], _verdict(columns, index, count), [panel]))
    return cases


def _space_groups(columns: Columns, count: int) -> tuple[str, Sequence[object]] | None:
    """Return the largest tolerance at which space groups were searched, and what was found."""
    names = [key.partition(".")[2] for key in columns]
    tolerances = [name.removeprefix("space_group_") for name in names if re.fullmatch(r"space_group_[\d.]+", name)]
    if not tolerances:
        return None
    largest = max(tolerances, key=float)
    found = column(columns, f"space_group_{largest}", count)
    return None if found is None else (largest, found)


def _verdict(columns: Columns, index: int, count: int) -> str:
    """Return in a few words what is wrong with a generated crystal, or that nothing is."""
    for name in ("structure_reason", "composition_reason", "physical_reason"):
        reasons = column(columns, name, count)
        if reasons is not None and reasons[index]:
            return str(reasons[index])
    marks = [
        word if value[index] else f"not {word}"
        for name, word in (("structure_valid", "valid"), ("unique", "unique"), ("novel", "novel"))
        if (value := column(columns, name, count)) is not None and value[index] is not None
    ]
    return ", ".join(marks)


def _panel(title: str, crystals: CrystalBatch, index: int, cif: str) -> Panel:
    atom_types, frac_coords, lattice = crystals[index].to_arrays()[0]
    drawn = scene(atom_types, frac_coords, lattice)
    facts = [("atoms", str(len(atom_types)))]
    if np.isfinite(lattice).all():
        lengths = np.linalg.norm(lattice.astype(float), axis=1)
        volume = abs(float(np.linalg.det(lattice.astype(float))))
        facts.append(("a, b, c", " · ".join(f"{length:.2f}" for length in lengths) + " Å"))
        facts.append(("α, β, γ", " · ".join(f"{angle:.1f}" for angle in _angles(lattice.astype(float), lengths)) + "°"))
        if volume > 0:
            facts.append(("density", f"{_mass(atom_types) / volume * GRAM_PER_CM3:.2f} g/cm³"))
    return Panel(title=title, scene=drawn, cif=cif, facts=facts)


def _angles(lattice: np.ndarray, lengths: np.ndarray) -> list[float]:
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = [lattice[i] @ lattice[j] / (lengths[i] * lengths[j]) for i, j in ((1, 2), (0, 2), (0, 1))]
    return [
        math.degrees(math.acos(min(1.0, max(-1.0, value)))) if math.isfinite(value) else math.nan for value in cosines
    ]


def _mass(atom_types: np.ndarray) -> float:
    from ase.data import atomic_masses

    return float(sum(atomic_masses[z] for z in atom_types.tolist() if 1 <= z <= 118))


def _formulas(crystals: CrystalBatch, columns: Columns) -> list[str]:
    known = column(columns, "formula", len(crystals))
    if known is not None:
        return [str(formula) for formula in known]
    from ase.data import chemical_symbols
    from ase.formula import Formula

    result = []
    for atom_types, _, _ in crystals.to_arrays():
        symbols = [chemical_symbols[z] if 0 <= z <= 118 else "X" for z in atom_types.tolist()]
        result.append(Formula.from_list(symbols).reduce()[0].format("metal") if symbols else "no atoms")
    return result


def _different(order: Sequence[int], formulas: Sequence[str], most: int) -> list[int]:
    chosen: dict[str, int] = {}
    for index in order:
        chosen.setdefault(formulas[index], index)
        if len(chosen) == most:
            break
    return list(chosen.values())
