"""From CIF text to arrays with gemmi, and to the Niggli cell with spglib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
import spglib

from crystalvae.data.batch import MAX_ATOMIC_NUMBER, handedness

LENGTH_RANGE = (0.5, 500.0)
"""Cell lengths outside this range (Å) are taken as absurd."""
MIN_VOLUME_FRACTION = 1e-3
"""Smallest cell volume divided by a·b·c; below it a cell counts as flat."""
MAX_SITES = 10_000
"""Crystals with more atoms than this are refused."""
MAX_EXPANDED = 100_000
"""Crystals with more sites times symmetry operations than this are refused before they are expanded."""
MAX_FRAC_COORD = 1_000.0
"""Fractional coordinates further than this many cells from the origin are taken as absurd."""
SAME_PLACE = 1e-3
"""Atoms of an expanded crystal closer than this in fractional coordinates are the same atom twice."""
SAME_DECIMALS = 6
"""Sites listed in one place, to so many decimals of fractional coordinates, are the same atom twice."""
FULL_OCCUPANCY = 1e-3
"""Occupancies further than this from 1 are partial."""
_WHOLE = {"1", "1.0", "?", "."}


class CrystalError(ValueError):
    """One crystal that cannot be used; the message is the reason that ends up beside its row and id."""


@dataclass(frozen=True)
class RawCrystal:
    """One crystal as read: atomic numbers (n,), fractional coordinates (n, 3) and lattice rows in Å (3, 3)."""

    numbers: np.ndarray
    frac_coords: np.ndarray
    lattice: np.ndarray


def parse_cif(text: str) -> RawCrystal:
    """Read the first crystal of a CIF, its symmetry expanded to the whole cell.

    Raises `CrystalError` with the reason for anything but a fully occupied crystal of known elements in a sensible
    cell.
    """
    block, small = _first_crystal(text)
    if not small.cell.is_crystal():
        raise CrystalError("no complete cell in the CIF")
    # gemmi takes -4 Å or an angle of -60° as they come, and an occupancy that is no number as 1.
    if min(small.cell.parameters) <= 0.0 or max(small.cell.parameters[3:]) >= 180.0:
        raise CrystalError(f"absurd cell {', '.join(f'{value:.4g}' for value in small.cell.parameters)}")
    lattice = np.array(small.cell.orth.mat.tolist()).T
    check_lattice(lattice)
    for value in set(block.find_loop("_atom_site_occupancy")) - _WHOLE:
        if math.isnan(gemmi.cif.as_number(value)):
            raise CrystalError(f"occupancy {value[:40]!r} is not a number")
    _check_operations(small.symops)
    if small.spacegroup is None and not small.cell.images:
        _settle_symmetry(small)
    operations = len(small.cell.images) + 1
    if len(small.sites) * operations > MAX_EXPANDED:
        raise CrystalError(
            f"{len(small.sites)} sites under {operations} symmetry operations, far more than {MAX_SITES}"
        )
    crystal = _from_sites(small.sites, lattice)
    _check_different(crystal.frac_coords)
    if small.cell.images:
        crystal = _from_sites(small.get_all_unit_cell_sites(), lattice)
        _check_apart(crystal.frac_coords)
    return crystal


def _first_crystal(text: str) -> tuple[gemmi.cif.Block, gemmi.SmallStructure]:
    try:
        for block in gemmi.cif.read_string(text.removeprefix("\ufeff")):  # a byte-order mark
            small = gemmi.make_small_structure_from_block(block)
            if small.sites:
                return block, small
    except (ValueError, RuntimeError, OverflowError) as error:
        raise CrystalError(f"not a readable CIF: {' '.join(str(error).split())[:200]}") from error
    raise CrystalError("no atom sites in the CIF")


def _check_operations(operations: Sequence[str]) -> None:
    # gemmi leaves out those it cannot read, and goes by the group's name. "?", unknown, comes as an empty text.
    for operation in filter(None, operations):
        try:
            gemmi.Op(operation)
        except (RuntimeError, ValueError) as error:
            raise CrystalError(f"symmetry operations that cannot be read: {operation[:40]!r}") from error


def _settle_symmetry(small: gemmi.SmallStructure) -> None:
    # gemmi takes operations first and then names; a CIF with neither may still give the number of its space group.
    if small.spacegroup_number > 1:
        small.determine_and_set_spacegroup("N")
    named = small.spacegroup_number or small.spacegroup_hm.strip("?. ") or small.spacegroup_hall.strip("?. ")
    if small.spacegroup is None and named not in {"", 1}:
        raise CrystalError(f"unknown space group {named!r}, and no symmetry operations")


def _from_sites(sites: gemmi.SmallStructure.SiteList, lattice: np.ndarray) -> RawCrystal:
    if len(sites) > MAX_SITES:
        raise CrystalError(f"{len(sites)} sites, more than {MAX_SITES}")
    table = np.array([(site.element.atomic_number, site.occ, *site.fract.tolist()) for site in sites])
    numbers, occupancies = table[:, 0].astype(np.int64), table[:, 1]
    full = np.abs(occupancies - 1.0) < FULL_OCCUPANCY
    if not full.all():
        labels = [site.label for site, whole in zip(sites, full, strict=True) if not whole]
        raise CrystalError(f"partial occupancy at {', '.join(labels[:3])}")
    if not numbers.all():
        unknown = next(site for site in sites if site.element.atomic_number == 0)
        raise CrystalError(f"unknown element {unknown.type_symbol or unknown.label!r}")
    return RawCrystal(numbers, table[:, 2:], lattice)


def _check_different(frac_coords: np.ndarray) -> None:
    check_coordinates(frac_coords)
    places = (frac_coords % 1.0).round(SAME_DECIMALS) % 1.0
    if len(set(map(tuple, places.tolist()))) < len(places):
        raise CrystalError("several atoms in one place")


def _check_apart(frac_coords: np.ndarray) -> None:
    from scipy.spatial import KDTree

    tree = KDTree(frac_coords % 1.0 % 1.0, boxsize=1.0)
    if len(tree.query_pairs(SAME_PLACE)):
        raise CrystalError("symmetry puts atoms in one place: the sites listed are not independent of each other")


def check_lattice(lattice: np.ndarray) -> None:
    """Raise `CrystalError` unless the three vectors (rows, Å) span a sensible cell."""
    a, b, c = lattice.tolist()  # plain floats: numpy would take four times as long on nine numbers
    lengths = math.hypot(*a), math.hypot(*b), math.hypot(*c)
    if not math.isfinite(sum(lengths)):
        raise CrystalError("the cell is not finite")
    if min(lengths) < LENGTH_RANGE[0] or max(lengths) > LENGTH_RANGE[1]:
        raise CrystalError(f"absurd cell lengths {', '.join(f'{value:.4g}' for value in lengths)} Å")
    volume = (
        a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])
    )
    if abs(volume) < MIN_VOLUME_FRACTION * lengths[0] * lengths[1] * lengths[2]:
        raise CrystalError("the cell has no volume")


def check_crystal(crystal: RawCrystal, *, max_atoms: int | None) -> None:
    """Raise `CrystalError` unless a crystal from any source can be used."""
    check_lattice(crystal.lattice)
    count = len(crystal.numbers)
    if count == 0:
        raise CrystalError("no atoms")
    if max_atoms is not None and count > max_atoms:
        raise CrystalError(f"{count} atoms, more than max_atoms={max_atoms}")
    check_coordinates(crystal.frac_coords)
    lowest, highest = int(crystal.numbers.min()), int(crystal.numbers.max())
    if lowest < 1 or highest > MAX_ATOMIC_NUMBER:
        raise CrystalError(f"unknown element with atomic number {lowest if lowest < 1 else highest}")


def check_coordinates(frac_coords: np.ndarray) -> None:
    """Raise `CrystalError` unless fractional coordinates (n, 3), n > 0, are finite and not absurdly far out."""
    largest = float(np.abs(frac_coords).max())
    if not math.isfinite(largest):
        raise CrystalError("coordinates are not finite")
    if largest > MAX_FRAC_COORD:
        raise CrystalError(f"absurd fractional coordinate of size {largest:.4g}")


def niggli_reduce(crystals: Sequence[RawCrystal]) -> list[RawCrystal | CrystalError]:
    """Express crystals in their Niggli cells (Křivý & Gruber 1976, through spglib); atoms keep their order.

    The crystals have passed `check_crystal`; one for which no cell is found comes back as the error that says so. The
    cells that come back are right-handed, whatever was given, and hold the crystal, not its mirror image.
    """
    if not crystals:
        return []
    lattices = np.stack([crystal.lattice for crystal in crystals])
    cells = [spglib.niggli_reduce(lattice, eps=1e-5) for lattice in lattices]
    found = np.array([cell is not None for cell in cells])
    reduced = np.stack([lattice if cell is None else cell for cell, lattice in zip(cells, lattices, strict=True)])
    transformations = np.rint(reduced @ np.linalg.inv(lattices))
    same = np.isclose(transformations @ lattices, reduced, atol=1e-3).all(axis=(1, 2))
    same &= np.abs(np.abs(np.linalg.det(transformations)) - 1.0) < 1e-6
    transformations[~same] = np.eye(3)
    # Integers with determinant ±1, so the inverse is exact after rounding.
    inverses = np.rint(np.linalg.inv(transformations))
    niggli = transformations @ lattices
    hands = handedness(niggli)[:, None, None]  # the opposite vectors span the same lattice, the other way round
    niggli, inverses = hands * niggli, hands * inverses
    results: list[RawCrystal | CrystalError] = []
    for i, crystal in enumerate(crystals):
        if not found[i]:
            results.append(CrystalError("spglib found no Niggli cell"))
        elif not same[i]:
            results.append(CrystalError("the Niggli cell does not generate the same lattice"))
        else:
            results.append(RawCrystal(crystal.numbers, crystal.frac_coords @ inverses[i], niggli[i]))
    return results
