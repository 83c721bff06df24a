"""The best and the worst crystals of an evaluation, as the page shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.formulas import GRAM_PER_CM3
from crystalvae.data.view.scene import Scene, scene

Columns = Mapping[str, Sequence[object]]
"""Values per crystal by the column's name, as `EvaluationReport.columns` gives them."""
Cifs = Mapping[str, Sequence[str]]
"""The CIF of each crystal, empty where it has none, by the set that it belongs to."""

GENERATION_ORDER = (
    "Ranked by: valid, unique and novel first, then valid in structure, then the number of checks passed, then (where "
    "there are energies) the energy above the hull, then the distance of the structure fingerprint to the reference. "
    "One crystal per formula."
)
RECONSTRUCTION_ORDER = (
    "Best: smallest RMS displacement, among the crystals with at least the median number of atoms. Worst: without an "
    "answer, then without a match, then by falling RMS displacement. One crystal per formula."
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


def numbers(columns: Columns, name: str, count: int) -> np.ndarray:
    """Return a column as numbers, NaN where there are none."""
    values = columns.get(name, [None] * count)
    return np.array([value if isinstance(value, (int, float)) else math.nan for value in values], dtype=float)


def generation_groups(
    crystals: CrystalBatch, columns: Columns, ids: Sequence[str], cifs: Sequence[str], *, most: int
) -> list[Group]:
    """Return the best and the worst generated crystals, ordered as `GENERATION_ORDER` says."""
    order = generation_order(columns, len(crystals))
    formulas = _formulas(crystals, columns)
    best = _different(order, formulas, min(most, -(-len(order) // 2)))
    worst = [index for index in _different(order[::-1], formulas, most) if index not in best]
    above = numbers(columns, "energy_above_hull", len(crystals))
    groups = _space_groups(columns)

    def case(index: int) -> Case:
        facts = []
        if groups is not None and groups[1][index] is not None:
            facts.append((f"space group at {groups[0]} Å", f"no. {groups[1][index]}"))
        if math.isfinite(above[index]):
            facts.append(("above hull", f"{above[index]:.3f} eV/atom"))
        panel = _panel("generated", crystals, index, cifs[index], facts)
        return Case(ids[index], formulas[index], _verdict(columns, index), [panel])

    return [Group(title, [case(index) for index in chosen]) for title, chosen in (("Best", best), ("Worst", worst))]


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
    cifs: Cifs,
    *,
    most: int,
) -> list[Group]:
    """Return the best and the worst predictions beside their targets, ordered as `RECONSTRUCTION_ORDER` says."""
    count = len(targets)
    rms = numbers(columns, "rms", count)
    failures = columns.get("failure", [None] * count)
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

    def case(index: int) -> Case:
        verdict = f"RMS displacement {rms[index]:.4f}" if math.isfinite(rms[index]) else "no match"
        return Case(
            id=ids[index],
            formula=formulas[index],
            verdict=verdict if failures[index] is None else f"no answer: {failures[index]}",
            panels=[
                _panel("target", targets, index, cifs["targets"][index]),
                _panel("prediction", predictions, index, cifs["predictions"][index]),
            ],
        )

    return [Group(title, [case(index) for index in chosen]) for title, chosen in (("Best", best), ("Worst", worst))]


def _space_groups(columns: Columns) -> tuple[str, Sequence[object]] | None:
    """Return the largest tolerance at which space groups were searched, and what was found."""
    tolerances = [name.removeprefix("space_group_") for name in columns if re.fullmatch(r"space_group_[\d.]+", name)]
    largest = max(tolerances, key=float, default=None)
    return None if largest is None else (largest, columns[f"space_group_{largest}"])


def _verdict(columns: Columns, index: int) -> str:
    """Return in a few words what is wrong with a generated crystal, or that nothing is."""
    for name in ("structure_reason", "composition_reason", "physical_reason"):
        if name in columns and columns[name][index]:
            return str(columns[name][index])
    marks = (("structure_valid", "valid"), ("unique", "unique"), ("novel", "novel"))
    known = [(word, columns[name][index]) for name, word in marks if name in columns]
    return ", ".join(word if value else f"not {word}" for word, value in known if value is not None)


def _panel(title: str, crystals: CrystalBatch, index: int, cif: str, more: Sequence[tuple[str, str]] = ()) -> Panel:
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
    return Panel(title=title, scene=drawn, cif=cif, facts=[*facts, *more])


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
    if "formula" in columns:
        return [str(formula) for formula in columns["formula"]]
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
