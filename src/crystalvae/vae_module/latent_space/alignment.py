"""Which atom of one crystal corresponds to which of another, and by what shift of the origin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int

from crystalvae.data.batch import MAX_ATOMIC_NUMBER, CrystalBatch
from crystalvae.data.lattice import wrap
from crystalvae.errors import ConfigError

UNLIKE = 5.0
"""Å that two elements at opposite ends of Pettifor's scale count as, on top of what keeps like elements together."""
_AT_ONCE = 2_000_000
_REFINED = 8
_ROUNDS = 20
_IMAGES = np.array(list(np.ndindex(3, 3, 3)), dtype=float) - 1.0


@dataclass(frozen=True)
class Alignment:
    """How a crystal b lies on a crystal a of as many atoms.

    `order[i]` is the atom of b that belongs to atom i of a, once `shift` is added to b's fractional coordinates.
    `rms_distance` is over these pairs, in Å, in a cell between both; `substitutions` counts pairs of unlike elements.
    """

    order: Int[np.ndarray, "n"]
    shift: Float[np.ndarray, "3"]
    rms_distance: float
    substitutions: int

    def apply(self, crystal: CrystalBatch) -> CrystalBatch:
        """Return b with its atoms in the order of a's, and its origin shifted."""
        order = torch.from_numpy(self.order).to(crystal.device)
        shift = torch.from_numpy(self.shift).to(crystal.frac_coords)
        return crystal.replace(
            atom_types=crystal.atom_types[order], frac_coords=wrap(wrap(crystal.frac_coords[order] + shift))
        )


def align(a: CrystalBatch, b: CrystalBatch, *, shift_origin: bool = True) -> Alignment:
    """Find the assignment of b's atoms to a's, and the shift of b's origin, with the least squared distances.

    Assigned are as many atoms of like elements as there are, then elements that are near on Pettifor's scale (Pettifor
    1984), so that cations become cations; among these choices the sum of squared periodic distances decides. Each
    assignment is optimal (Hungarian algorithm, Kuhn 1955). Shifts are tried that put an atom of b on one of a, of the
    element with the fewest such pairs; the best are refined by assigning and centring in turn. Distances are those in
    the cell whose metric is the mean of both. The cells' axes are taken as they are given, as is their handedness.

    Raises `ConfigError` unless both are one crystal, with the same number of atoms.
    """
    if len(a) != 1 or len(b) != 1 or a.num_nodes != b.num_nodes:
        counts = [crystal.num_atoms.tolist() for crystal in (a, b)]
        raise ConfigError(
            f"a, b: got crystals of {counts[0]} and {counts[1]} atoms; expected the same number of atoms in each: "
            "every atom has a latent of its own, which goes over into that of an atom of the other crystal (take a "
            "supercell of the smaller one where that makes them equal)"
        )
    (numbers_a, frac_a, lattice_a), (numbers_b, frac_b, lattice_b) = a.to_arrays()[0], b.to_arrays()[0]
    axes, cell = _common_cell(lattice_a, lattice_b)
    inverse = np.rint(np.linalg.inv(axes))
    frac_a, frac_b = frac_a @ inverse, frac_b @ inverse
    unlike = _unlikeness(numbers_a, numbers_b, longest=float(np.linalg.norm(cell, axis=1).sum()))
    shifts = np.zeros((1, 3))
    if shift_origin:
        shifts = np.concatenate((shifts, _shifts(numbers_a, numbers_b, frac_a, frac_b)))
    tried = []
    for place, (shift, squared) in enumerate(_squared_distances(frac_a, frac_b, cell, shifts)):
        order, cost = _assign(squared + unlike)
        tried.append((round(cost, 9), place, shift, order))
    tried.sort(key=lambda entry: entry[:2])
    best = tried[0]
    if shift_origin:
        refined = [_refine(frac_a, frac_b, cell, unlike, entry) for entry in tried[:_REFINED]]
        best = min([best, *refined], key=lambda entry: entry[:2])
    _, _, shift, order = best
    squared = next(_squared_distances(frac_a, frac_b, cell, shift[None]))[1]
    matched = squared[np.arange(len(order)), order]
    own = shift @ axes
    return Alignment(
        order=order,
        shift=own - np.floor(own),
        rms_distance=float(np.sqrt(matched.mean())),
        substitutions=int((numbers_a != numbers_b[order]).sum()),
    )


_Tried = tuple[float, int, np.ndarray, np.ndarray]


def _refine(frac_a: np.ndarray, frac_b: np.ndarray, cell: np.ndarray, unlike: np.ndarray, start: _Tried) -> _Tried:
    best = start
    for _ in range(_ROUNDS):
        _, place, shift, order = best
        moved = shift + _displacements(frac_a, frac_b[order] + shift, cell).mean(axis=0)
        squared = next(_squared_distances(frac_a, frac_b, cell, moved[None]))[1]
        found, cost = _assign(squared + unlike)
        if round(cost, 9) >= best[0]:
            break
        best = (round(cost, 9), place, moved, found)
    return best


def _assign(costs: np.ndarray) -> tuple[np.ndarray, float]:
    from scipy.optimize import linear_sum_assignment

    rows, order = linear_sum_assignment(costs)
    return np.asarray(order), float(costs[rows, order].sum())


def _common_cell(lattice_a: np.ndarray, lattice_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cell with the mean metric of both, Minkowski-reduced, and its axes in terms of the given ones.

    In a reduced cell the nearest image of a wrapped displacement is among the 27 nearest cells.
    """
    from ase.geometry.minkowski_reduction import reduction_full

    try:
        cell = np.linalg.cholesky((lattice_a @ lattice_a.T + lattice_b @ lattice_b.T) / 2)
    except np.linalg.LinAlgError:
        raise ConfigError("a, b: got cells without a volume; expected three independent cell vectors each") from None
    reduced, axes = reduction_full(cell)
    return np.asarray(axes, dtype=float), np.asarray(reduced)


def _shifts(numbers_a: np.ndarray, numbers_b: np.ndarray, frac_a: np.ndarray, frac_b: np.ndarray) -> np.ndarray:
    shared = np.intersect1d(numbers_a, numbers_b)
    if len(shared):
        pairs = [int((numbers_a == z).sum() * (numbers_b == z).sum()) for z in shared]
        rarest = shared[int(np.argmin(pairs))]
        frac_a, frac_b = frac_a[numbers_a == rarest], frac_b[numbers_b == rarest]
    return (frac_a[:, None] - frac_b[None]).reshape(-1, 3)


def _squared_distances(
    frac_a: np.ndarray, frac_b: np.ndarray, cell: np.ndarray, shifts: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each shift with the squared distances (Å²) of all pairs under it."""
    step = max(1, _AT_ONCE // (len(frac_a) * len(frac_b) * len(_IMAGES)))
    images = _IMAGES @ cell
    for start in range(0, len(shifts), step):
        block = shifts[start : start + step]
        difference = frac_a[None, :, None] - frac_b[None, None] - block[:, None, None]
        wrapped = (difference - np.rint(difference)) @ cell
        squared = np.min([((wrapped + image) ** 2).sum(axis=-1) for image in images], axis=0)
        yield from zip(block, squared, strict=True)


def _displacements(frac_a: np.ndarray, frac_b: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return the shortest fractional displacement from each atom of b to its partner in a."""
    difference = frac_a - frac_b
    candidates = (difference - np.rint(difference))[:, None] + _IMAGES
    nearest = ((candidates @ cell) ** 2).sum(axis=-1).argmin(axis=1)
    return candidates[np.arange(len(nearest)), nearest]


def _unlikeness(numbers_a: np.ndarray, numbers_b: np.ndarray, *, longest: float) -> np.ndarray:
    """Return what each pair of elements costs in Å²: nothing if alike, else more than all distances together."""
    scale = _pettifor_scale()
    difference = np.abs(scale[numbers_a][:, None] - scale[numbers_b][None])
    unlike = numbers_a[:, None] != numbers_b[None]
    return np.where(unlike, len(numbers_a) * longest**2 + (UNLIKE * difference) ** 2, 0.0)


@cache
def _pettifor_scale() -> np.ndarray:
    """Return the Mendeleev number of each atomic number 0..99, as a share of the largest."""
    from pymatgen.core import Element

    numbers = np.array([0.0, *(Element.from_Z(z).mendeleev_no for z in range(1, MAX_ATOMIC_NUMBER + 1))])
    return numbers / np.nanmax(numbers)
