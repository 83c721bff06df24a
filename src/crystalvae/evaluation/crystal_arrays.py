"""One crystal as three arrays, as worker processes take it, and what pymatgen makes of it.

Worker processes import this module, so it stays clear of torch: they start in a second and stay small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers (n,), fractional coordinates (n, 3) and lattice rows in Å (3, 3) of one crystal."""
Composition = tuple[tuple[int, int], ...]
"""Atomic numbers, ascending, with their counts divided by the greatest common divisor."""
MIN_VOLUME_PER_ATOM = 1e-3
"""Å^3; smaller cells are meaningless and never reach the matcher."""


def structure(crystal: Arrays) -> Structure:
    """Return a pymatgen structure of one crystal."""
    from pymatgen.core import Element, Structure

    numbers, frac_coords, lattice = crystal
    return Structure(lattice, [Element.from_Z(int(number)) for number in numbers], frac_coords)


def problem(crystal: Arrays) -> str:
    """Say why no structure can be made of a crystal, nothing where one can."""
    numbers, frac_coords, lattice = crystal
    if len(numbers) == 0:
        return "no atoms"
    if not (np.isfinite(frac_coords).all() and np.isfinite(lattice).all()):
        return "numbers that are not finite"
    if ((numbers < 1) | (numbers > 118)).any():
        return "unknown element"
    volume = abs(float(np.linalg.det(lattice)))
    if not math.isfinite(volume) or volume < MIN_VOLUME_PER_ATOM * len(numbers):
        return f"volume of {volume / len(numbers):.3g} Å^3 per atom"
    return ""


def reduced_composition(numbers: np.ndarray | Sequence[int]) -> Composition:
    """Return the reduced composition of the atoms of one crystal, given by atomic numbers."""
    elements, amounts = np.unique(np.asarray(numbers), return_counts=True)
    divisor = math.gcd(*amounts.tolist()) or 1
    return tuple((int(z), int(amount) // divisor) for z, amount in zip(elements, amounts, strict=True))
