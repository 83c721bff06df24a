"""The 230 space groups in the basis of their standard primitive cells: operations and Wyckoff sites.

Everything here depends on the number of the group alone. Operations and letters are moyo's, in the standard setting
(unique axis b and cell choice 1, hexagonal axes, the second origin); sites are found by looking for points that
operations leave in place.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from moyopy import MoyoDataset

SPACE_GROUP = "space_group"
ORBIT_SITES = "orbit_sites"
"""Property (B, K): the number of the Wyckoff position (0 for letter a) of each orbit, -1 beyond the last one.

Crystals with both properties are in the symmetric description: standard primitive cell, atoms orbit by orbit.
"""
NUM_SPACE_GROUPS = 230
SAME_PLACE = 1e-4
"""Fractional coordinates that differ by less are the same."""
_GRID = 24
"""All special positions pass through points k/24 of the primitive cell."""
_GENERIC = np.array([0.1371, 0.0593, 0.2117])
_OTHERWISE = np.array([0.2313, 0.3791, 0.0467])
_GENERAL = np.array([_GENERIC, [0.3313, 0.2291, 0.0467], [0.2729, 0.4433, 0.1543]])
"""Points without symmetry; one orbit alone may have more than its group."""
SHORT_VECTORS = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=3)))
_TERM = re.compile(r"([+-]?)(\d+/\d+|\d+)?([xyz])?")


@dataclass(frozen=True, eq=False)
class WyckoffSite:
    """One Wyckoff position: the points `directions @ u + origin`, and their images under the operations.

    All in fractional coordinates of the primitive cell. `operations` are the numbers of those that take the first atom
    of an orbit to each of its `multiplicity` atoms, the identity first. `mean_rotation` and `mean_translation` average
    a point near the representative points over all operations that leave those in place.
    """

    letter: str
    symmetry: str
    directions: Float[np.ndarray, "3 F"]
    origin: Float[np.ndarray, "3"]
    operations: Int[np.ndarray, "M"]
    mean_rotation: Float[np.ndarray, "3 3"]
    mean_translation: Float[np.ndarray, "3"]

    @property
    def multiplicity(self) -> int:
        """Atoms in one orbit in the primitive cell."""
        return len(self.operations)

    @property
    def freedom(self) -> int:
        """Number of free coordinates."""
        return self.directions.shape[1]


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    """A space group: `rotations` (integers) and `translations` act on columns of fractional coordinates, x → R x + t.

    `sites` are in order of letters, the general position last; the identity is the first operation.
    """

    number: int
    rotations: Int[np.ndarray, "G 3 3"]
    translations: Float[np.ndarray, "G 3"]
    sites: tuple[WyckoffSite, ...]

    def images(self, points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N G 3"]:
        """Return where the operations take points, not wrapped into the cell."""
        return np.einsum("gij,nj->ngi", self.rotations, points) + self.translations

    def sites_of(self, points: Float[np.ndarray, "N 3"], tolerance: float = SAME_PLACE) -> Int[np.ndarray, "N"]:
        """Return the numbers in `sites` of the positions that points are on."""
        images = self.images(points)
        stays = _same_place(images, points[:, None], tolerance).sum(axis=1)
        found = np.full(len(points), len(self.sites) - 1)
        for index in reversed(range(len(self.sites) - 1)):
            site = self.sites[index]
            candidates = np.flatnonzero(site.multiplicity * stays == len(self.rotations))
            found[candidates[on_site(images[candidates], site, tolerance).any(axis=1)]] = index
        return found


def on_site(points: Float[np.ndarray, "... 3"], site: WyckoffSite, tolerance: float = SAME_PLACE) -> Any:
    """Return which points are representative ones of a site, up to lattice vectors."""
    values = (points - site.origin) @ _annihilators(site).T
    return np.all(np.abs(values - np.rint(values)) < 3 * tolerance, axis=-1)


def _annihilators(site: WyckoffSite) -> Int[np.ndarray, "K 3"]:
    """Return short integer vectors k with k · directions = 0; they tell whether a point is in the plane or line.

    k · (x - origin) is whole for all of them where x is in it up to a lattice vector, and only there.
    """
    return (
        SHORT_VECTORS[(np.abs(SHORT_VECTORS @ site.directions) < 1e-9).all(axis=1)]
        if site.freedom
        else np.eye(3, dtype=int)
    )


def _same_place(points: np.ndarray, point: np.ndarray, tolerance: float = SAME_PLACE) -> Any:
    apart = points - point
    return np.all(np.abs(apart - np.rint(apart)) < tolerance, axis=-1)


@cache
def space_group(number: int) -> SpaceGroup:
    """Return a space group, 1 to 230, worked out on first use (some hundredths of a second)."""
    import moyopy

    if not 1 <= number <= NUM_SPACE_GROUPS:
        raise ValueError(f"space group: got {number}; expected 1 to {NUM_SPACE_GROUPS}")
    given = moyopy.operations_from_number(number, primitive=True)
    rotations, translations = np.array(given.rotations), np.array(given.translations) % 1.0
    first = np.argmax((rotations == np.eye(3, dtype=int)).all(axis=(1, 2)))
    order = np.argsort(np.arange(len(rotations)) != first, kind="stable")
    rotations, translations = rotations[order], np.rint(translations[order] * _GRID) / _GRID
    return SpaceGroup(number, rotations, translations, _sites(number, rotations, translations))


def _sites(number: int, rotations: np.ndarray, translations: np.ndarray) -> tuple[WyckoffSite, ...]:
    points = _sample_points(rotations, translations)
    orbits = [_orbit(point, rotations, translations) for point in (*_GENERAL, *points[1:])]
    atoms = np.concatenate(orbits)
    numbers = np.repeat(np.arange(1, len(orbits) + 1), [len(orbit) for orbit in orbits])
    dataset = _labelled(number, atoms, numbers, _metric_lattice(rotations))
    found: dict[str, WyckoffSite] = {}
    to_primitive = np.linalg.inv(_conventional_vectors(dataset))
    for position in dataset.normalizer_wyckoff_positions().wyckoffs:
        if position.letter not in found:
            directions, origin = _parse(position.coordinates)
            directions, origin = _exact(to_primitive @ directions), _exact(to_primitive @ origin)
            found[position.letter] = _site(
                position.letter, position.site_symmetry, directions, origin, rotations, translations
            )
    letters = sorted(found, key=_letter_rank)
    sites = tuple(found[letter] for letter in letters)
    if [_letter_rank(letter) for letter in letters] != list(range(len(letters))) or sites[-1].freedom != 3:
        raise RuntimeError(f"space group {number}: positions {' '.join(letters)} found; some are missing")
    return sites


def _exact(values: np.ndarray) -> np.ndarray:
    """Return values that are multiples of 1/24 without their rounding errors."""
    return np.rint(values * _GRID) / _GRID + 0.0


def _letter_rank(letter: str) -> int:
    return 26 if letter in {"A", "α"} else ord(letter) - ord("a")


def _sample_points(rotations: np.ndarray, translations: np.ndarray) -> list[np.ndarray]:
    """Return one point on each Wyckoff position, in general places of its lines and planes; the general one first."""
    grid = np.array(list(itertools.product(range(_GRID), repeat=3))) / _GRID
    images = np.einsum("gij,nj->ngi", rotations, grid) + translations
    whole = np.rint(images * _GRID).astype(int) % _GRID
    codes = (whole[..., 0] * _GRID + whole[..., 1]) * _GRID + whole[..., 2]
    _, firsts = np.unique(codes.min(axis=1), return_index=True)  # one point of each orbit
    stays = codes[firsts] == codes[firsts, :1]
    left = firsts[stays.sum(axis=1) > 1]
    points = [_GENERIC]
    while len(left):
        fixing = codes[left[0]] == codes[left[0], 0]
        directions = _fixed_directions(rotations[fixing])
        point = grid[left[0]] + directions @ _GENERIC[: directions.shape[1]]
        site = _site("", "", directions, point, rotations, translations)
        points.append(point)
        same_size = (codes[left] == codes[left, :1]).sum(axis=1) * site.multiplicity == len(rotations)
        left = left[~(same_size & on_site(images[left], site).any(axis=1))]
    return points


def _fixed_directions(rotations: np.ndarray) -> Float[np.ndarray, "3 F"]:
    """Return a basis of short integer vectors of what all rotations leave as it is."""
    fixed = SHORT_VECTORS[
        (np.einsum("gij,nj->ngi", rotations, SHORT_VECTORS) == SHORT_VECTORS[:, None]).all(axis=(1, 2))
    ]
    basis: list[np.ndarray] = []
    for vector in fixed[np.lexsort((*-fixed.T[::-1], (fixed**2).sum(axis=1)))]:
        if np.linalg.matrix_rank(np.array([*basis, vector])) > len(basis):
            basis.append(vector)
    return np.array(basis, dtype=float).reshape(-1, 3).T


def _orbit(point: np.ndarray, rotations: np.ndarray, translations: np.ndarray) -> Float[np.ndarray, "M 3"]:
    images = (np.einsum("gij,j->gi", rotations, point) + translations) % 1.0
    return images[_first_of_each(images)]


def _first_of_each(images: np.ndarray) -> Int[np.ndarray, "M"]:
    """Return the number of the first image at each place."""
    apart = images[:, None] - images[None]
    same = (np.abs(apart - np.rint(apart)) < SAME_PLACE).all(axis=-1)
    return np.flatnonzero(same.argmax(axis=1) == np.arange(len(images)))


def _metric_lattice(rotations: np.ndarray) -> Float[np.ndarray, "3 3"]:
    """Return a lattice (rows) that has the symmetry of the rotations and, as good as surely, no more."""
    seed = np.array([[1.0, 0.11, 0.07], [0.11, 1.23, 0.17], [0.07, 0.17, 1.51]])
    metric = np.einsum("gji,jk,gkl->il", rotations, seed, rotations) / len(rotations)
    return 20.0 * np.linalg.cholesky(metric)


def _labelled(number: int, atoms: np.ndarray, numbers: np.ndarray, lattice: np.ndarray) -> MoyoDataset:
    import moyopy

    cell = moyopy.Cell(basis=lattice.tolist(), positions=atoms.tolist(), numbers=numbers.tolist())
    dataset = moyopy.MoyoDataset(cell, symprec=1e-3)
    if dataset.number != number:
        raise RuntimeError(f"space group {number}: a crystal made to have it has {dataset.number}")
    return dataset


def _conventional_vectors(dataset: MoyoDataset) -> Float[np.ndarray, "3 3"]:
    """Return the vectors of the primitive cell in the basis of the conventional one, as columns."""
    return np.linalg.solve(np.array(dataset.std_linear), np.array(dataset.prim_std_linear))


def _parse(coordinates: str) -> tuple[Float[np.ndarray, "3 F"], Float[np.ndarray, "3"]]:
    """Read "x,2x,1/4" as directions (columns, those of x, y, z that occur) and origin."""
    directions, origin = np.zeros((3, 3)), np.zeros(3)
    for row, entry in enumerate(coordinates.replace(" ", "").split(",")):
        for sign, amount, name in _TERM.findall(entry):
            if not amount and not name:
                continue
            value = float(Fraction(amount or "1")) * (-1.0 if sign == "-" else 1.0)
            if name:
                directions[row, "xyz".index(name)] += value
            else:
                origin[row] += value
    return directions[:, directions.any(axis=0)], origin


def _site(
    letter: str,
    symmetry: str,
    directions: np.ndarray,
    origin: np.ndarray,
    rotations: np.ndarray,
    translations: np.ndarray,
) -> WyckoffSite:
    point = directions @ _OTHERWISE[: directions.shape[1]] + origin
    images = np.einsum("gij,j->gi", rotations, point) + translations
    fixing = _same_place(images, point)
    shifts = np.rint(point - images[fixing])
    return WyckoffSite(
        letter=letter,
        symmetry=symmetry,
        directions=directions,
        origin=origin,
        operations=_first_of_each(images),
        mean_rotation=rotations[fixing].mean(axis=0),
        mean_translation=(translations[fixing] + shifts).mean(axis=0),
    )
