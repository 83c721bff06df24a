"""Crystal systems, and the one place where moyo is asked for symmetry; imports no torch, for worker processes."""

from __future__ import annotations

import logging
from bisect import bisect_right
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from moyopy import MoyoDataset
    from torch import Tensor

CRYSTAL_SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
_FIRST_SPACE_GROUPS = (1, 3, 16, 75, 143, 168, 195)
MIN_TRANSLATION = 10.0
"""The shortest lattice vector is at least this many times the tolerance; real ones are 20 times 0.1 Å and more."""


def crystal_system(number: int) -> str:
    """Return the crystal system of a space group number, 1 to 230 (International Tables A, table 2.1.1.1)."""
    if not 1 <= number <= 230:
        raise ValueError(f"space group number: expected 1 to 230, got {number}")
    return CRYSTAL_SYSTEMS[bisect_right(_FIRST_SPACE_GROUPS, number) - 1]


@lru_cache(maxsize=230)
def space_group_symbol(number: int) -> str:
    """Return the short Hermann–Mauguin symbol of a space group number, such as Fm-3m for 225."""
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    return sg_symbol_from_int_number(number)


def crystal_system_indices(space_groups: Float[Tensor, "B"] | Int[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Return the place in `CRYSTAL_SYSTEMS` of each space group 1..230, and -1 for what is not one (NaN too)."""
    import torch

    numbers = torch.nan_to_num(space_groups.float(), nan=0.0).long()
    system = torch.searchsorted(torch.tensor(_FIRST_SPACE_GROUPS, device=numbers.device), numbers, right=True) - 1
    return torch.where((numbers >= 1) & (numbers <= 230), system, torch.full_like(system, -1))


def moyo_dataset(numbers: np.ndarray, frac_coords: np.ndarray, lattice: np.ndarray, tolerance: float) -> MoyoDataset:
    """Return what moyo finds out about the symmetry of a crystal within a tolerance in Å.

    Raises `ValueError` where it finds no symmetry at all, where the cell has no volume, and where the crystal repeats
    after a distance that is hardly larger than the tolerance (`MIN_TRANSLATION`): there everything is near everything,
    and moyo (0.21) may adjust its tolerance for ever, in native code that no time limit can stop.
    """
    import moyopy

    logging.getLogger("moyo").setLevel(logging.ERROR)  # else a line for each cell that is no primitive one
    basis = np.asarray(lattice, dtype=float)
    shortest = shortest_translation(basis)
    if not shortest >= MIN_TRANSLATION * tolerance:
        raise ValueError(
            f"the shortest lattice vector is {shortest:.3g} Å: a tolerance of {tolerance:g} Å is too large"
        )
    cell = moyopy.Cell(
        basis=basis.tolist(),
        positions=np.asarray(frac_coords, dtype=float).tolist(),
        numbers=[int(number) for number in numbers],
    )
    return moyopy.MoyoDataset(cell, symprec=tolerance)


def shortest_translation(lattice: np.ndarray) -> float:
    """Return the length of the shortest lattice vector, Å; 0 for a lattice (3, 3) without volume, NaN if not finite."""
    from ase.geometry import minkowski_reduce

    if not np.isfinite(lattice).all():
        return float("nan")
    lengths = np.linalg.norm(lattice, axis=1)
    if abs(np.linalg.det(lattice)) <= 1e-9 * lengths.prod():
        return 0.0
    reduced, _ = minkowski_reduce(lattice)
    return float(np.linalg.norm(reduced, axis=1).min())
