"""From a crystal in a standard primitive cell to its conventional cell and asymmetric unit, as CIFs hold them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import gemmi
import numpy as np
from jaxtyping import Float, Int

TOLERANCE = 1e-3
"""Å by which atoms may miss the places that the operations give them; vectors, likewise."""


@dataclass(frozen=True, eq=False)
class AsymmetricUnit:
    """One atom for each of K orbits, in the conventional cell of the standard setting (gemmi's `group`).

    `atoms` are their numbers in the primitive cell, `multiplicities` those in the conventional cell. `lattice` has the
    vectors as rows in Å, with exactly the symmetry of the group, as the coordinates have that of their sites.
    """

    group: gemmi.SpaceGroup
    atoms: Int[np.ndarray, "K"]
    multiplicities: Int[np.ndarray, "K"]
    frac_coords: Float[np.ndarray, "K 3"]
    lattice: Float[np.ndarray, "3 3"]


@dataclass(frozen=True, eq=False)
class _Setting:
    """A group's operations x → R x + t in the primitive cell, and what takes those columns to the conventional one."""

    group: gemmi.SpaceGroup
    rotations: Int[np.ndarray, "G 3 3"]
    translations: Float[np.ndarray, "G 3"]
    to_conventional: Float[np.ndarray, "3 3"]


@cache
def _setting(number: int) -> _Setting:
    import moyopy

    # Of a group's settings in gemmi's list the first that is no first choice of the origin is moyo's standard one.
    group = next(entry for entry in gemmi.spacegroup_table() if entry.number == number and entry.ext != "1")
    given = moyopy.operations_from_number(number, primitive=True)
    linear = np.linalg.inv(_centrings()[group.centring_type()])
    return _Setting(group, np.array(given.rotations), np.array(given.translations), linear)


@cache
def _centrings() -> dict[str, Int[np.ndarray, "3 3"]]:
    """Return by letter the conventional vectors, as columns in the basis of the primitive ones."""
    import moyopy

    entries = [moyopy.HallSymbolEntry(hall_number) for hall_number in range(1, 531)]
    return {str(entry.centering).strip('"'): np.array(entry.centering.linear) for entry in entries}


def asymmetric_unit(
    number: int,
    numbers: Int[np.ndarray, "N"],
    frac_coords: Float[np.ndarray, "N 3"],
    lattice: Float[np.ndarray, "3 3"],
) -> AsymmetricUnit | None:
    """Return the asymmetric unit of a crystal that is given in the standard primitive cell of space group `number`.

    None where it has not the symmetry of the group: where the operations take an atom more than `TOLERANCE` from
    any of its element, or change a vector's length by more.
    """
    setting = _setting(number)
    rotations = setting.rotations
    metric = lattice @ lattice.T
    averaged = np.einsum("gji,jk,gkl->il", rotations, metric, rotations) / len(rotations)
    if np.abs(averaged - metric).max() > TOLERANCE * np.sqrt(metric.trace()):
        return None
    images = np.einsum("gij,nj->ngi", rotations, frac_coords) + setting.translations
    apart = images[:, :, None] - frac_coords
    apart -= np.rint(apart)
    off = np.linalg.norm(apart @ lattice, axis=-1)
    off[np.broadcast_to((numbers[:, None] != numbers)[:, None], off.shape)] = np.inf
    partners = off.argmin(axis=-1)  # (N, G)
    if off.min(axis=-1).max() > TOLERANCE:
        return None
    atoms = np.unique(partners.min(axis=1))  # the first one of each orbit
    rows, operations = np.ix_(atoms, np.arange(len(rotations)))
    missed = apart[rows, operations, partners[atoms]]
    exact = frac_coords[atoms] - np.einsum("gij,kgj->ki", np.linalg.inv(rotations), missed) / len(rotations)
    sizes = np.array([len(np.unique(partners[atom])) for atom in atoms])
    vectors = np.linalg.inv(setting.to_conventional)  # conventional ones, in columns
    return AsymmetricUnit(
        group=setting.group,
        atoms=atoms,
        multiplicities=sizes * round(np.linalg.det(vectors)),
        frac_coords=exact @ setting.to_conventional.T,
        lattice=np.linalg.cholesky(vectors.T @ averaged @ vectors),
    )
