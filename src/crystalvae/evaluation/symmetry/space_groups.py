"""Space groups of single crystals. Worker processes import this module: it stays clear of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from string import ascii_uppercase
from typing import TYPE_CHECKING, Literal

import numpy as np

from crystalvae.data.symmetry import moyo_dataset
from crystalvae.errors import ConfigError
from crystalvae.evaluation.crystal_arrays import Arrays
from crystalvae.evaluation.parallel.attempt import Failure, attempt

if TYPE_CHECKING:
    from pymatgen.core import Structure

Library = Literal["moyopy", "spglib"]
LIBRARIES: tuple[Library, ...] = ("moyopy", "spglib")
REFINED_TOLERANCE = 1e-4
"""Tolerance in Å at which a symmetrised cell must have the symmetry it was given."""


def check_library(library: str, tolerances: Sequence[float]) -> None:
    """Raise `ConfigError` for an unknown or missing library, or for tolerances that are not positive."""
    if library not in LIBRARIES:
        raise ConfigError(f"symmetry.library={library!r}: expected one of {', '.join(LIBRARIES)}")
    if find_spec(library) is None:
        raise ConfigError(f"symmetry.library={library}: not installed: pip install {library}, or choose another")
    if not tolerances or not all(np.isfinite(value) and value > 0 for value in tolerances):
        raise ConfigError(f"symmetry.tolerances={list(tolerances)}: expected one or more positive lengths in Å")
    if len(set(map(tolerance_name, tolerances))) < len(tolerances):
        raise ConfigError(f"symmetry.tolerances={list(tolerances)}: expected each only once")


def tolerance_name(tolerance: float) -> str:
    """Return how a tolerance is written in the names of metrics and columns, such as 0.1."""
    return f"{tolerance:g}"


def library_version(library: Library) -> str:
    """Return the name and version of a symmetry library."""
    return f"{library} {version(library)}"


def space_groups(crystal: Arrays, *, library: Library, tolerances: Sequence[float]) -> list[int]:
    """Return the space group number of a crystal at each tolerance in Å, 0 where the library finds none."""
    return [_space_group(crystal, library, tolerance) for tolerance in tolerances]


def prototype_label(crystal: Arrays, *, tolerance: float) -> str:
    """Return anonymous formula, Pearson symbol and space group number, such as AB_cF8_225 for rock salt.

    It is built as AFLOW's prototype labels are (Mehl et al. 2017), but elements are ordered by their number of atoms,
    and Wyckoff letters are left out, which depend on the choice of the origin. moyopy finds the group at `tolerance`
    (Å); empty where there is none.
    """
    dataset = attempt(lambda: moyo_dataset(*crystal, tolerance))
    if isinstance(dataset, Failure):  # no symmetry at all is found
        return ""
    counts = sorted(np.unique(crystal[0], return_counts=True)[1].tolist())
    unit = [count // math.gcd(*counts) for count in counts]
    formula = "".join(f"{ascii_uppercase[i]}{'' if count == 1 else count}" for i, count in enumerate(unit))
    return f"{formula}_{dataset.pearson_symbol}_{dataset.number}"


def symmetrized_cif(crystal: Arrays, *, tolerance: float) -> dict[str, object]:
    """Return the crystal in its conventional cell with exact symmetry, as the text of a CIF with its space group.

    moyopy finds the group at `tolerance` (Å) and moves cell and atoms to where it wants them; the CIF lists the
    asymmetric unit. The result has `cif`, `number`, and `failure`, empty unless no such file could be made.
    """
    from pymatgen.io.cif import CifWriter

    def refined() -> tuple[int, CifWriter]:
        number, structure = _refined(crystal, tolerance)
        return number, CifWriter(structure, symprec=REFINED_TOLERANCE, significant_figures=8)

    found = attempt(refined)
    if isinstance(found, Failure):
        return {"cif": "", "number": 0, **found.to_dict()}
    number, writer = found
    block = next(iter(writer.cif_file.data.values()))
    written = int(block["_symmetry_Int_Tables_number"])
    if written != number:
        failure = f"space group {number} at {tolerance:g} Å became {written} after symmetrising"
        return {"cif": "", "number": number, "failure": failure}
    return {"cif": str(writer), "number": number, "failure": ""}


def _space_group(crystal: Arrays, library: Library, tolerance: float) -> int:
    search = _by_moyopy if library == "moyopy" else _by_spglib
    number = attempt(lambda: search(crystal, tolerance))
    return 0 if isinstance(number, Failure) else number  # both raise for crystals in which they find no symmetry at all


def _by_moyopy(crystal: Arrays, tolerance: float) -> int:
    return int(moyo_dataset(*crystal, tolerance).number)


def _by_spglib(crystal: Arrays, tolerance: float) -> int:
    import spglib

    numbers, frac_coords, lattice = crystal
    dataset = spglib.get_symmetry_dataset((lattice.tolist(), frac_coords.tolist(), numbers.tolist()), symprec=tolerance)
    return 0 if dataset is None else int(dataset.number)


def _refined(crystal: Arrays, tolerance: float) -> tuple[int, Structure]:
    from pymatgen.core import Element, Structure

    dataset = moyo_dataset(*crystal, tolerance)
    cell = dataset.std_cell
    species = [Element.from_Z(number) for number in cell.numbers]
    return int(dataset.number), Structure(cell.basis, species, cell.positions)
