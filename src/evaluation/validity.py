"""Structural validity and plain facts of crystals, for thousands at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from src.data.batch import CrystalBatch

if TYPE_CHECKING:
    import pandas as pd

MIN_DISTANCE = 0.5
"""Shortest distance in Å that a valid crystal may have (CDVAE, Xie et al. 2022, arXiv:2110.06197, section 5.2)."""
MIN_VOLUME = 0.1
"""Smallest cell volume in Å^3 that a valid crystal may have (same source, its published code)."""
COLLAPSED_VOLUME = 1e-9
"""Cells smaller than this (Å^3) count as having no volume; their shortest distance is 0."""
PAIRS_AT_ONCE = 200_000
GRAM_PER_CM3 = 1.66053906660
"""One dalton per Å^3 in g/cm^3 (CODATA 2018)."""


def describe(crystals: CrystalBatch) -> pd.DataFrame:
    """Return one row of facts a crystal: formula, atoms, volume, density, shortest_distance, valid, reason.

    Formulas are reduced, in pymatgen's convention; `volume` is in Å^3, `density` in g/cm^3, `shortest_distance` in Å.
    The last is the shortest between any two atoms over all periodic images, an atom's own images included, for cells of
    any shape (infinite for a crystal without atoms). `valid` is CDVAE's definition of structural validity: every
    distance at least `MIN_DISTANCE` and the volume at least `MIN_VOLUME`. Its code leaves out own images; here they
    count, so what is valid here is valid there. `reason` is empty for valid crystals. Numbers that are not finite,
    unknown elements and missing atoms make a crystal invalid, never an error; what cannot be known is NaN.
    """
    import pandas as pd

    host = crystals.detach().to("cpu")
    numbers, counts = host.atom_types.numpy(), host.num_atoms.numpy()
    lattices, frac_coords = host.lattices.double().numpy(), host.frac_coords.double().numpy()
    owner = np.repeat(np.arange(len(counts)), counts)

    finite_lattice = np.asarray(np.isfinite(lattices).all(axis=(1, 2)))
    finite_coords = np.ones(len(counts), dtype=bool)
    finite_coords[owner[~np.isfinite(frac_coords).all(axis=1)]] = False
    known = np.ones(len(counts), dtype=bool)
    known[owner[(numbers < 1) | (numbers > 118)]] = False

    with np.errstate(invalid="ignore", over="ignore"):
        determinants = np.linalg.det(np.where(finite_lattice[:, None, None], lattices, 0.0))
    volumes = np.where(finite_lattice, np.abs(determinants), np.nan)
    formulas, masses = _compositions(numbers, counts, known)
    with np.errstate(divide="ignore", invalid="ignore"):
        densities = np.where(known, masses / volumes * GRAM_PER_CM3, np.nan)
    distances = np.full(len(counts), np.nan)
    measurable = finite_lattice & finite_coords & np.isfinite(volumes) & (counts > 0)
    chosen = np.flatnonzero(measurable)
    distances[chosen] = shortest_distances(lattices[chosen], frac_coords[measurable[owner]], counts[chosen])
    distances[finite_lattice & (counts == 0)] = np.inf

    def reason(i: int) -> str:
        if counts[i] == 0:
            return "no atoms"
        if not finite_lattice[i] or not np.isfinite(volumes[i]):
            return "lattice is not finite"
        if not finite_coords[i]:
            return "coordinates are not finite"
        if not known[i]:
            return "unknown element"
        if volumes[i] < MIN_VOLUME:
            return f"volume {volumes[i]:.3g} Å^3 is below {MIN_VOLUME} Å^3"
        if distances[i] < MIN_DISTANCE:
            return f"shortest distance {distances[i]:.3f} Å is below {MIN_DISTANCE} Å"
        return ""

    reasons = [reason(i) for i in range(len(counts))]
    return pd.DataFrame(
        {
            "formula": pd.Series(formulas, dtype=object),
            "atoms": counts.astype(np.int64),
            "volume": volumes,
            "density": densities,
            "shortest_distance": distances,
            "valid": np.array([not entry for entry in reasons], dtype=bool),
            "reason": pd.Series(reasons, dtype=object),
        }
    )


def shortest_distances(
    lattices: Float[np.ndarray, "B 3 3"], frac_coords: Float[np.ndarray, "N 3"], counts: Int[np.ndarray, "B"]
) -> Float[np.ndarray, "B"]:
    """Return the shortest distance in Å of each crystal over all periodic images, an atom's own images included.

    All values must be finite and all counts positive. A displacement of length r has fractional components of at most
    r·|b_i|, b_i the reciprocal vectors (without 2π). So with r an upper bound, the shortest distance that no image
    shift gives, only shifts of up to r·|b_i| + 1/2 cells are looked at: mostly none. Cells for which that is more than
    one are Minkowski-reduced first, after which it is never more than two.
    """
    result = np.zeros(len(counts))
    with np.errstate(all="ignore"):
        solid = np.abs(np.linalg.det(lattices)) >= COLLAPSED_VOLUME
    starts = np.concatenate(([0], np.cumsum(counts)))
    for crystals in _chunks(np.flatnonzero(solid), counts):
        atoms = np.concatenate([np.arange(int(starts[i]), int(starts[i + 1])) for i in crystals])
        result[crystals] = _shortest_of_chunk(lattices[crystals], frac_coords[atoms], counts[crystals])
    return result


def _chunks(crystals: np.ndarray, counts: np.ndarray) -> Iterator[np.ndarray]:
    pairs = np.cumsum(counts[crystals] * (counts[crystals] - 1) // 2 + 1)
    edges = np.flatnonzero(np.diff(pairs // PAIRS_AT_ONCE)) + 1
    return (chunk for chunk in np.split(crystals, edges) if len(chunk))


def _shortest_of_chunk(cells: np.ndarray, frac_coords: np.ndarray, counts: np.ndarray) -> np.ndarray:
    pairs = _pairs(counts)
    _, _, owner, _ = pairs
    cart, best, reach = _without_images(cells, frac_coords, pairs)
    skewed = np.flatnonzero((reach > 1).any(axis=1))
    if len(skewed):
        starts = np.concatenate(([0], np.cumsum(counts)))
        for i in skewed:
            atoms = slice(starts[i], starts[i + 1])
            cells[i], to_reduced = _reduce(cells[i])
            frac_coords[atoms] = frac_coords[atoms] @ to_reduced
        cart, best, reach = _without_images(cells, frac_coords, pairs)
    for shape in np.unique(reach, axis=0):
        group = (reach == shape).all(axis=1)
        chosen = np.flatnonzero(group[owner])
        starts = np.flatnonzero(np.diff(owner[chosen], prepend=-1))
        for image in np.ndindex(*(2 * shape + 1)):
            shift = np.array(image) - shape
            if shift.any():
                moved = cart[chosen] + (shift @ cells)[owner[chosen]]
                nearest = np.minimum.reduceat(np.einsum("pj,pj->p", moved, moved), starts)
                best[group] = np.minimum(best[group], nearest)
    return np.sqrt(best)


_Pairs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _without_images(
    cells: np.ndarray, frac_coords: np.ndarray, pairs: _Pairs
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the wrapped displacement (Å) of each pair, each crystal's shortest squared, and the shifts that matter."""
    first, second, owner, starts = pairs
    difference = frac_coords[first] - frac_coords[second]
    difference -= np.round(difference)
    cart = np.einsum("pi,pij->pj", difference, cells[owner])
    squared = np.einsum("pj,pj->p", cart, cart)
    squared[starts] = np.inf  # the first pair of each crystal is an atom with itself
    best = np.minimum(np.minimum.reduceat(squared, starts), (cells**2).sum(axis=-1).min(axis=-1))
    reciprocal = np.linalg.norm(np.linalg.inv(cells), axis=1)
    return cart, best, np.floor(np.sqrt(best)[:, None] * reciprocal + 0.5 + 1e-9).astype(int)


def _pairs(counts: np.ndarray) -> _Pairs:
    """Return both atoms and the crystal of every pair, and each crystal's first pair, which is (atom 0, atom 0)."""
    firsts, seconds, sizes = [], [], []
    triangles: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    offset = 0
    for count in counts.tolist():
        if count not in triangles:
            i, j = np.triu_indices(count, k=1)
            triangles[count] = np.concatenate(([0], i)), np.concatenate(([0], j))
        i, j = triangles[count]
        firsts.append(i + offset)
        seconds.append(j + offset)
        sizes.append(len(i))
        offset += count
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    return np.concatenate(firsts), np.concatenate(seconds), np.repeat(np.arange(len(sizes)), sizes), starts


def _reduce(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a Minkowski-reduced cell, and the integer matrix that takes fractional coordinates to it."""
    from ase.geometry.minkowski_reduction import reduction_full

    reduced, operation = reduction_full(cell)
    return np.asarray(reduced), np.rint(np.linalg.inv(operation))


def _compositions(numbers: np.ndarray, counts: np.ndarray, known: np.ndarray) -> tuple[list[str], np.ndarray]:
    from pymatgen.core import Composition, Element

    elements = {int(z): Element.from_Z(int(z)) for z in np.unique(numbers) if 1 <= z <= 118}
    seen: dict[bytes, tuple[str, float]] = {}
    formulas, masses = [], np.full(len(counts), math.nan)
    for i, atoms in enumerate(np.split(numbers, np.cumsum(counts))[:-1]):
        key = np.sort(atoms).tobytes()
        if key not in seen:
            amounts = {z: int((atoms == z).sum()) for z in dict.fromkeys(atoms.tolist())}
            named = {elements[z]: amount for z, amount in amounts.items() if z in elements}
            composition = Composition(named)
            with warnings.catch_warnings():  # pymatgen sorts by electronegativity, and warns of noble gases
                warnings.filterwarnings("ignore", message="No Pauling electronegativity")
                formula = composition.reduced_formula if known[i] and named else composition.formula.replace(" ", "")
            unknown = sum(amount for z, amount in amounts.items() if z not in elements)
            seen[key] = (formula + (f"X{unknown}" if unknown else ""), float(composition.weight))
        formulas.append(seen[key][0])
        masses[i] = seen[key][1]
    return formulas, masses
