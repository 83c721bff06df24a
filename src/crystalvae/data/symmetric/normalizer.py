"""What can be done to a crystal's description without leaving its space group's operations: the affine normalizer.

A map x → P x + p with P in GL(3, Z) belongs to it where it takes every operation of the group to one of the group. Two
descriptions of one crystal in the standard setting differ by such a map, so that the smallest of all of them, by
whatever rule, is a description of the crystal alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int

from crystalvae.data.symmetric.space_groups import SHORT_VECTORS, space_group

_GRID = 24
"""Shifts of origin are multiples of 1/24, but for those along which the group does not change."""
_MONOCLINIC = range(3, 16)


@dataclass(frozen=True, eq=False)
class Normalizer:
    """The normalizer of a space group modulo the group itself.

    `rotations` with `origins` are one map for each coset of matrices P; each can be followed by any of `shifts`, and by
    any translation along `free`, the projector on what all rotations of the group leave as it is. An atom whose part
    along `free` was moved to 0 can still be moved by any of `images`, the parts of lattice vectors along `free`.
    There are infinitely many P for triclinic and monoclinic groups, of which those with small entries are here.
    """

    rotations: Int[np.ndarray, "P 3 3"]
    origins: Float[np.ndarray, "P 3"]
    shifts: Float[np.ndarray, "T 3"]
    free: Float[np.ndarray, "3 3"]
    images: Float[np.ndarray, "S 3"]


@cache
def normalizer(number: int) -> Normalizer:
    """Return the normalizer of a space group, 1 to 230."""
    group = space_group(number)
    free = group.rotations.mean(axis=0)
    characters = SHORT_VECTORS[(np.abs(SHORT_VECTORS @ free) < 1e-9).all(axis=1)]
    grid = np.array(list(itertools.product(range(_GRID), repeat=3))) / _GRID
    identity = np.eye(3, dtype=int)
    shifts = _solutions(identity, group.rotations, group.translations, grid)
    keys = np.rint(shifts @ characters.T * _GRID).astype(int) % _GRID
    _, firsts = np.unique(keys, axis=0, return_index=True)
    rotations, origins = [], []
    for candidate in _cosets(_normalizing(number, group.rotations), group.rotations):
        found = _solutions(candidate, group.rotations, group.translations, grid[:1])
        if not len(found):
            found = _solutions(candidate, group.rotations, group.translations, grid)
        if len(found):
            rotations.append(candidate)
            origins.append(found[0])
    images = np.unique(np.rint((SHORT_VECTORS @ free.T) * _GRID) % _GRID, axis=0) / _GRID
    return Normalizer(np.array(rotations), np.array(origins), shifts[np.sort(firsts)], free, images)


@cache
def _unimodular(largest: int) -> Int[np.ndarray, "M 3 3"]:
    entries = np.arange(-largest, largest + 1, dtype=np.int8)
    every = np.stack(np.meshgrid(*[entries] * 9, indexing="ij"), axis=-1).reshape(-1, 3, 3)
    a, b, c = every[:, 0].astype(np.int16), every[:, 1].astype(np.int16), every[:, 2].astype(np.int16)
    determinant = (np.cross(a, b) * c).sum(axis=1)
    chosen = every[np.abs(determinant) == 1].astype(int)
    simplest = np.lexsort((*-chosen.reshape(-1, 9).T[::-1], np.abs(chosen).sum(axis=(1, 2))))
    return chosen[simplest]


def _normalizing(number: int, rotations: np.ndarray) -> Int[np.ndarray, "P 3 3"]:
    """Return the matrices P for which P R = R' P takes each rotation to one of the group."""
    candidates = _unimodular(2 if number in _MONOCLINIC else 1)
    for rotation in rotations[1:]:
        left = candidates @ rotation
        matches = [(left == other @ candidates).all(axis=(1, 2)) for other in rotations]
        candidates = candidates[np.any(matches, axis=0)]
    return candidates


def _cosets(candidates: np.ndarray, rotations: np.ndarray) -> Int[np.ndarray, "P 3 3"]:
    """Return the first matrix of each set {P R}."""
    powers = 7 ** np.arange(9)
    products = np.einsum("pij,gjk->pgik", candidates, rotations).reshape(len(candidates), len(rotations), 9)
    codes = ((products + 3) * powers).sum(axis=-1).min(axis=1)
    _, firsts = np.unique(codes, return_index=True)
    return candidates[np.sort(firsts)]


def _solutions(
    matrix: np.ndarray, rotations: np.ndarray, translations: np.ndarray, grid: np.ndarray
) -> Float[np.ndarray, "S 3"]:
    """Return the origins p on a grid for which x → P x + p belongs to the normalizer."""
    left = np.ones(len(grid), dtype=bool)
    for rotation, translation in zip(rotations[1:], translations[1:], strict=True):
        image = np.rint(matrix @ rotation @ np.linalg.inv(matrix)).astype(int)
        partner = int((rotations == image).all(axis=(1, 2)).argmax())
        missing = grid[left] - grid[left] @ image.T - (translations[partner] - matrix @ translation)
        whole = (np.abs(missing - np.rint(missing)) < 1e-6).all(axis=1)
        left[np.flatnonzero(left)] = whole
        if not left.any():
            break
    return grid[left]
