"""Crystals in one agreed description that shows their symmetry: standard primitive cell, atoms orbit by orbit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int

from crystalvae.data.symmetric.normalizer import normalizer
from crystalvae.data.symmetric.space_groups import SHORT_VECTORS, SpaceGroup, WyckoffSite, on_site, space_group

SAME_COORDINATE = 5e-3
_BIN, _OFFSET = 2 * SAME_COORDINATE, 0.37
"""Coordinates are compared in bins of this width, whose edges no fraction k/n with small n is close to."""
_SAME_LENGTHS = 1e-3
_SAME_SCORE = 2e-5
_AT_ONCE = 2_000_000
_NEAR = 0.02
"""Fractional distance within which an image of an atom is another atom, in an idealised crystal."""


@dataclass(frozen=True, eq=False)
class SymmetricCrystal:
    """A crystal whose atoms come orbit by orbit, those of an orbit in the order of its site's `operations`.

    `sites` are the numbers of the orbits' Wyckoff positions in the space group, `metric` the scalar products of the
    vectors of the primitive cell in Å².
    """

    space_group: int
    sites: Int[np.ndarray, "K"]
    numbers: Int[np.ndarray, "N"]
    frac_coords: Float[np.ndarray, "N 3"]
    metric: Float[np.ndarray, "3 3"]


def symmetric_crystal(
    number: int,
    numbers: Int[np.ndarray, "N"],
    frac_coords: Float[np.ndarray, "N 3"],
    lattice: Float[np.ndarray, "3 3"],
    ranks: Int[np.ndarray, "N"],
) -> SymmetricCrystal:
    """Return the description of a crystal that is given in a standard primitive cell of its space group.

    `ranks` order the elements. Of all maps of the group's normalizer (other axes, origins, hands) those with the
    shortest axes are looked at; of these those with the first Wyckoff letters, element by element; of these the one for
    which a fixed smooth function of all coordinates is largest. What is left has the same coordinates, and the first by
    its lengths is taken. Mirror images get one description, but for the eleven pairs of groups that tell them apart.

    Raises `ValueError` where the atoms do not have the group's symmetry.
    """
    group, maps = space_group(number), normalizer(number)
    coords, metric = frac_coords, _symmetrized(lattice @ lattice.T, group)
    while True:  # towards the shortest axes, in steps of small matrices
        inverses = np.linalg.inv(maps.rotations)
        metrics = np.einsum("pji,jk,pkl->pil", inverses, metric, inverses)
        sizes = metrics.trace(axis1=1, axis2=2)
        shortest = sizes.argmin()
        if sizes[shortest] > (1 - _SAME_LENGTHS) * metric.trace():
            break
        coords = coords @ maps.rotations[shortest].T + maps.origins[shortest]
        metric = metrics[shortest]
    axes = np.flatnonzero(sizes < (1 + _SAME_LENGTHS) * sizes[shortest])
    orbits = _orbits(group, coords, ranks)

    # The letters are decided by axes and shifts, whatever the free translations are.
    moved = np.einsum("pij,nj->pni", maps.rotations[axes], coords) + maps.origins[axes, None]
    moved = (moved[:, None] + maps.shifts[:, None]).reshape(-1, *coords.shape)
    axes = axes.repeat(len(maps.shifts))
    firsts = [orbit[0] for orbit in orbits]
    sites = group.sites_of(moved[:, firsts].reshape(-1, 3)).reshape(len(moved), -1)
    codes = np.sort(ranks[firsts] * 32 + sites, axis=1)
    kept = (codes == codes[np.lexsort(codes.T[::-1])[0]]).all(axis=1)
    moved, axes, sites = moved[kept], axes[kept], sites[kept]

    anchors = _rarest(ranks) if maps.free.any() else np.zeros(1, dtype=int)
    back = moved[:, anchors] @ maps.free.T
    candidates = moved[:, None, None] - back[:, :, None, None] + maps.images[:, None]
    which = np.arange(len(moved)).repeat(len(anchors) * len(maps.images))
    candidates = candidates.reshape(-1, *coords.shape)
    scores = _score(candidates, ranks)
    best = np.flatnonzero(scores > scores.max() - _SAME_SCORE)
    lengths = _length_score(metrics[axes[which[best]]])
    best = best[lengths > lengths.max() - _SAME_SCORE]
    chosen = best[scores[best].argmax()]
    return _written(
        group, orbits, sites[which[chosen]], numbers, ranks, candidates[chosen], metrics[axes[which[chosen]]]
    )


def _symmetrized(metric: np.ndarray, group: SpaceGroup) -> Float[np.ndarray, "3 3"]:
    return np.einsum("gji,jk,gkl->il", group.rotations, metric, group.rotations) / len(group.rotations)


def _orbits(group: SpaceGroup, coords: np.ndarray, ranks: np.ndarray) -> list[Int[np.ndarray, "M"]]:
    """Return the atoms of each orbit."""
    apart = group.images(coords)[:, :, None] - coords
    off = np.abs(apart - np.rint(apart)).max(axis=-1)
    off[np.broadcast_to((ranks[:, None] != ranks)[:, None], off.shape)] = np.inf
    if (off.min(axis=-1) > _NEAR).any():
        raise ValueError(f"atoms are up to {off.min(axis=-1).max():.3f} away from images of atoms")
    partners = off.argmin(axis=-1)
    orbits: list[np.ndarray] = []
    seen = np.zeros(len(coords), dtype=bool)
    for atom in range(len(coords)):
        if not seen[atom]:
            orbits.append(np.unique(partners[atom]))
            if seen[orbits[-1]].any():
                raise ValueError("orbits of atoms overlap")
            seen[orbits[-1]] = True
    return orbits


def _rarest(ranks: np.ndarray) -> Int[np.ndarray, "A"]:
    """Return the atoms of the element with the fewest atoms, of these the first."""
    elements, counts = np.unique(ranks, return_counts=True)
    return np.flatnonzero(ranks == elements[np.argmin(counts)])


@cache
def _waves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return wave vectors (one of k and -k), amplitudes and phases of the function that coordinates are chosen by."""
    half = SHORT_VECTORS[len(SHORT_VECTORS) // 2 + 1 :]
    mix = half @ np.sqrt([2.0, 3.0, 5.0])
    amplitudes = np.exp(-0.3 * (half**2).sum(axis=1)) * (1.0 + 0.2 * np.sin(7.0 * mix))
    return half.T, amplitudes, mix % 1.0


def _score(candidates: Float[np.ndarray, "C N 3"], ranks: np.ndarray) -> Float[np.ndarray, "C"]:
    """Return a smooth function of each description's coordinates, the same for any order of atoms of an element."""
    waves, amplitudes, phases = _waves()
    places = np.unique(ranks, return_inverse=True)[1]
    weights = 0.618**places / np.bincount(places)[places]
    step = max(1, _AT_ONCE // (len(ranks) * len(amplitudes)))
    parts = [
        weights @ (np.cos(2 * np.pi * (candidates[start : start + step] @ waves + phases)) @ amplitudes)[..., None]
        for start in range(0, len(candidates), step)
    ]
    return np.concatenate(parts)[:, 0]


def _length_score(metrics: Float[np.ndarray, "C 3 3"]) -> Float[np.ndarray, "C"]:
    scale = np.linalg.det(metrics) ** (1 / 3)
    rows, columns = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
    return metrics[:, rows, columns] @ np.array([-1.0, -0.618, -0.382, -0.123, -0.231, -0.317]) / scale


def _written(
    group: SpaceGroup,
    orbits: list[np.ndarray],
    sites: np.ndarray,
    numbers: np.ndarray,
    ranks: np.ndarray,
    coords: np.ndarray,
    metric: np.ndarray,
) -> SymmetricCrystal:
    """Put atoms in order: by element, by letter, by where the first atom of an orbit is, and by operation."""
    entries = []
    for orbit, number in zip(orbits, sites, strict=True):
        site = group.sites[number]
        if site.multiplicity != len(orbit):
            raise ValueError(f"an orbit of {len(orbit)} atoms is on a site of {site.multiplicity}")
        first = _representative(coords[orbit], site)
        entries.append((ranks[orbit[0]], number, tuple(_places(first)), first, numbers[orbit[0]]))
    entries.sort(key=lambda entry: entry[:3])
    images = [group.images(entry[3][None])[0, group.sites[entry[1]].operations] for entry in entries]
    sizes = [len(image) for image in images]
    return SymmetricCrystal(
        space_group=group.number,
        sites=np.array([entry[1] for entry in entries]),
        numbers=np.repeat([entry[4] for entry in entries], sizes),
        frac_coords=np.concatenate(images) % 1.0,
        metric=metric,
    )


def _representative(points: Float[np.ndarray, "M 3"], site: WyckoffSite) -> Float[np.ndarray, "3"]:
    """Return the first of an orbit's points that are representative ones of its site, exactly on it."""
    usable = points[on_site(points, site, SAME_COORDINATE)] % 1.0
    if not len(usable):
        raise ValueError(f"no atom of an orbit is on site {site.letter}")
    first = usable[np.lexsort(_places(usable).T[::-1])[0]]
    return onto_site(first, site)


def onto_site(point: Float[np.ndarray, "3"], site: WyckoffSite) -> Float[np.ndarray, "3"]:
    """Return the point of a site that is nearest to a point close to one of it or to one a lattice vector away."""
    candidates = point - SHORT_VECTORS
    moved = candidates @ site.mean_rotation.T + site.mean_translation
    nearest = ((moved - candidates) ** 2).sum(axis=1).argmin()
    return moved[nearest] + SHORT_VECTORS[nearest]


def _places(points: Float[np.ndarray, "... 3"]) -> Int[np.ndarray, "... 3"]:
    """Return the bins of coordinates in [0, 1), the two ends of the cell being one."""
    return np.floor(np.where(points > 1 - SAME_COORDINATE, points - 1, points) / _BIN + _OFFSET).astype(int)
