"""Shortest distances in crystals over all periodic images, for thousands of crystals at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

COLLAPSED_VOLUME = 1e-9
"""Cells smaller than this (Å^3) count as having no volume; their shortest distance is 0."""
PAIRS_AT_ONCE = 200_000
LARGE = 2_000
"""From so many atoms on, the pairs of one crystal are looked at in parts: those of 10,000 atoms would take 6 GB."""


def shortest_distances(
    lattices: Float[np.ndarray, "B 3 3"],
    frac_coords: Float[np.ndarray, "N 3"],
    counts: Int[np.ndarray, "B"],
    *,
    radii: Float[np.ndarray, "N"] | None = None,
    own_images: bool = True,
) -> Float[np.ndarray, "B"]:
    """Return the shortest distance in Å of each crystal over all periodic images, an atom's own images included.

    With `radii` (Å, positive) each distance is divided by the sum of the two atoms' radii, and the smallest quotient is
    returned. Without `own_images` only distances between different atoms of the cell count (infinite for one atom).

    All values must be finite and all counts positive. A displacement of length r has fractional components of at most
    r·|b_i|, b_i the reciprocal vectors (without 2π). So with r an upper bound, the shortest distance that no image
    shift gives, only shifts of up to r·|b_i| + 1/2 cells are looked at: mostly none. Cells for which that is more than
    one are Minkowski-reduced first, after which it is never more than two (a few with radii).
    """
    sizes = np.full(len(frac_coords), 0.5) if radii is None else radii
    result = np.zeros(len(counts))
    if not own_images:
        result[counts == 1] = np.inf
    with np.errstate(all="ignore"):
        solid = (np.abs(np.linalg.det(lattices)) >= COLLAPSED_VOLUME) & np.isfinite(result)
    starts = np.concatenate(([0], np.cumsum(counts)))
    large = solid & (counts >= LARGE)
    for i in np.flatnonzero(large):
        atoms = slice(int(starts[i]), int(starts[i + 1]))
        result[i] = _shortest_of_large(lattices[i], frac_coords[atoms], sizes[atoms], own_images=own_images)
    for crystals in _chunks(np.flatnonzero(solid & ~large), counts):
        atoms = np.concatenate([np.arange(int(starts[i]), int(starts[i + 1])) for i in crystals])
        pairs = _pairs(counts[crystals], sizes[atoms], own_images=own_images)
        result[crystals] = _shortest_of_chunk(lattices[crystals], frac_coords[atoms], counts[crystals], pairs)
    return result


def _chunks(crystals: np.ndarray, counts: np.ndarray) -> Iterator[np.ndarray]:
    pairs = np.cumsum(counts[crystals] * (counts[crystals] - 1) // 2 + 1)
    edges = np.flatnonzero(np.diff(pairs // PAIRS_AT_ONCE)) + 1
    return (chunk for chunk in np.split(crystals, edges) if len(chunk))


@dataclass(frozen=True)
class _Pairs:
    """Both atoms and the crystal of every pair, and 1 / (sum of its sizes)^2.

    The first pair of each crystal, at `starts`, is an atom with itself; it stands for the images of the largest one, or
    for nothing (a weight that is infinite) where own images do not count. `largest` is each crystal's largest sum.
    """

    first: np.ndarray
    second: np.ndarray
    owner: np.ndarray
    starts: np.ndarray
    weight: np.ndarray
    largest: np.ndarray


def _shortest_of_chunk(cells: np.ndarray, frac_coords: np.ndarray, counts: np.ndarray, pairs: _Pairs) -> np.ndarray:
    cart, best, reach = _without_images(cells, frac_coords, pairs)
    skewed = np.flatnonzero((reach > 1).any(axis=1))
    if len(skewed):
        starts = np.concatenate(([0], np.cumsum(counts)))
        cells, frac_coords = cells.copy(), frac_coords.copy()
        for i in skewed:
            atoms = slice(starts[i], starts[i + 1])
            cells[i], to_reduced = _reduce(cells[i])
            frac_coords[atoms] = frac_coords[atoms] @ to_reduced
        cart, best, reach = _without_images(cells, frac_coords, pairs)
    for shape in np.unique(reach, axis=0):
        group = (reach == shape).all(axis=1)
        chosen = np.flatnonzero(group[pairs.owner])
        starts = np.flatnonzero(np.diff(pairs.owner[chosen], prepend=-1))
        for image in np.ndindex(*(2 * shape + 1)):
            shift = np.array(image) - shape
            if shift.any():
                moved = cart[chosen] + (shift @ cells)[pairs.owner[chosen]]
                squared = np.einsum("pj,pj->p", moved, moved) * pairs.weight[chosen]
                best[group] = np.minimum(best[group], np.minimum.reduceat(squared, starts))
    return np.sqrt(best)


def _shortest_of_large(
    cell: Float[np.ndarray, "3 3"], frac_coords: Float[np.ndarray, "N 3"], sizes: np.ndarray, *, own_images: bool
) -> float:
    """Return the same for one crystal, some rows of the table of its pairs at a time."""
    cell, to_reduced = _reduce(cell)
    coords, largest = frac_coords @ to_reduced, 2.0 * float(sizes.max())
    rows = max(1, PAIRS_AT_ONCE // len(coords))

    def smallest(shift: np.ndarray) -> float:
        found = np.inf
        for first in range(0, len(coords), rows):
            part = np.arange(first, min(first + rows, len(coords)))
            difference = coords[part, None] - coords
            difference -= np.round(difference)
            moved = (difference + shift) @ cell
            squared = np.einsum("rnj,rnj->rn", moved, moved) * (sizes[part, None] + sizes) ** -2.0
            squared[np.arange(len(part)), part] = np.inf  # an atom and itself
            found = min(found, float(squared.min()))
        return found

    best = min(smallest(np.zeros(3)), float((cell**2).sum(axis=-1).min()) / largest**2 if own_images else np.inf)
    reciprocal = np.linalg.norm(np.linalg.inv(cell), axis=0)
    reach = np.floor(np.sqrt(best) * largest * reciprocal + 0.5 + 1e-9).astype(int)
    for image in np.ndindex(*(2 * reach + 1)):
        shift = np.array(image) - reach
        if shift.any():
            best = min(best, smallest(shift.astype(float)))
    return float(np.sqrt(best))


def _without_images(
    cells: np.ndarray, frac_coords: np.ndarray, pairs: _Pairs
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the wrapped displacement (Å) of each pair, each crystal's smallest square, and the shifts that matter."""
    difference = frac_coords[pairs.first] - frac_coords[pairs.second]
    difference -= np.round(difference)
    cart = np.einsum("pi,pij->pj", difference, cells[pairs.owner])
    with np.errstate(invalid="ignore"):
        squared = np.einsum("pj,pj->p", cart, cart) * pairs.weight
    squared[pairs.starts] = (cells**2).sum(axis=-1).min(axis=-1) * pairs.weight[pairs.starts]
    best = np.minimum.reduceat(squared, pairs.starts)
    reciprocal = np.linalg.norm(np.linalg.inv(cells), axis=1)
    farthest = np.sqrt(best) * pairs.largest
    return cart, best, np.floor(farthest[:, None] * reciprocal + 0.5 + 1e-9).astype(int)


def _pairs(counts: np.ndarray, sizes: np.ndarray, *, own_images: bool) -> _Pairs:
    firsts, seconds, amounts = [], [], []
    triangles: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    offset = 0
    for count in counts.tolist():
        if count not in triangles:
            i, j = np.triu_indices(count, k=1)
            triangles[count] = np.concatenate(([0], i)), np.concatenate(([0], j))
        i, j = triangles[count]
        firsts.append(i + offset)
        seconds.append(j + offset)
        amounts.append(len(i))
        offset += count
    starts = np.concatenate(([0], np.cumsum(amounts)[:-1]))
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    largest = 2.0 * np.maximum.reduceat(sizes, np.concatenate(([0], np.cumsum(counts)[:-1])))
    weight = (sizes[first] + sizes[second]) ** -2.0
    weight[starts] = largest**-2.0 if own_images else np.inf
    owner = np.repeat(np.arange(len(amounts)), amounts)
    return _Pairs(first=first, second=second, owner=owner, starts=starts, weight=weight, largest=largest)


def _reduce(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a Minkowski-reduced cell, and the integer matrix that takes fractional coordinates to it."""
    from ase.geometry.minkowski_reduction import reduction_full

    reduced, operation = reduction_full(cell)
    return np.asarray(reduced), np.rint(np.linalg.inv(operation))
