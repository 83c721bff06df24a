"""A convex hull from a plain file: compositions and energies, of any origin."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystalvae.data.composition import parse_composition
from crystalvae.errors import CrystalVAEError, DataError
from crystalvae.evaluation.stability.hull import Entry

EXPECTED = 'expected {"composition": "Li2O" or {"Li": 2, "O": 1}, "energy": eV of these atoms}'


@dataclass(frozen=True)
class HullFile:
    """Known crystals of which only composition and energy are given, and what to call them."""

    name: str
    entries: list[Entry]


def read_hull(path: Path) -> HullFile:
    """Read a JSON list of entries with `composition` and `energy`, the total energy in eV of the atoms it names.

    A composition is a formula, or whole numbers of atoms by element. A `correction` in eV is added, as in pymatgen's
    `ComputedEntry`, lists of which can be read as they are written; other keys are left alone.

    Raises `DataError` naming the file and the entry.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"stability.hull={path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, list) or not content:
        raise DataError(f"stability.hull={path}: expected a list of entries, at least one")
    entries = [_entry(f"stability.hull={path}: entry {row}", entry) for row, entry in enumerate(content)]
    return HullFile(path.name, entries)


def _entry(place: str, given: Any) -> Entry:
    if not isinstance(given, Mapping) or not {"composition", "energy"} <= set(given):
        raise DataError(f"{place}: got {str(given)[:80]}; {EXPECTED}")
    energy = _number(f"{place}: energy", given["energy"]) + _number(f"{place}: correction", given.get("correction", 0))
    composition = given["composition"]
    if isinstance(composition, Mapping):
        composition = "".join(f"{symbol}{_number(place, n):g}" for symbol, n in composition.items())
    if not isinstance(composition, str):
        raise DataError(f"{place}: composition is {composition!r}; {EXPECTED}")
    try:
        atoms = Counter(parse_composition(composition))
    except CrystalVAEError as error:
        raise DataError(f"{place}: {error}") from error
    return Entry(dict(atoms), energy)


def _number(place: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{place}: got {value!r}; expected a finite number")
    return float(value)
