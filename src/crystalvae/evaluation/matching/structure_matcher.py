"""Which crystals are the same one: comparisons with pymatgen's `StructureMatcher`, one small task at a time.

Worker processes import this module, so it stays clear of torch: they start in a second and stay small.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from crystalvae.evaluation.parallel.time_limit import TimedOutError, time_limit

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers (n,), fractional coordinates (n, 3) and lattice rows in Å (3, 3) of one crystal."""
Tolerance = tuple[float, float, float]
"""ltol, stol and angle_tol (degrees) of `StructureMatcher`."""
MIN_VOLUME_PER_ATOM = 1e-3
"""Cells with less room an atom (Å^3) are not handed to the matcher: nothing can be told from them."""


def reduce_cell(crystal: Arrays, *, timeout_s: float | None = None) -> dict[str, object]:
    """Return the primitive Niggli cell as `StructureMatcher` makes it: numbers, frac_coords and lattice as lists.

    For crystals without such a cell the result has only `failure`, which says why.
    """
    reason = problem(crystal)
    if reason:
        return {"failure": reason}
    try:
        with warnings.catch_warnings(), time_limit(timeout_s):
            warnings.simplefilter("ignore")
            reduced = structure(crystal).get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
            return {
                "numbers": list(reduced.atomic_numbers),
                "frac_coords": reduced.frac_coords.tolist(),
                "lattice": reduced.lattice.matrix.tolist(),
            }
    except TimedOutError:
        return {"failure": f"no primitive cell within {timeout_s:g} s"}
    except Exception as error:  # noqa: BLE001 - any error for one crystal must not take down the others
        return {"failure": _message(error)}


def first_match(
    item: tuple[Arrays, Sequence[Arrays]], *, tolerance: Tolerance, timeout_s: float | None = None
) -> dict[str, object]:
    """Return the position of the first of several reduced crystals that is the same as a given reduced one.

    `match` is None where there is none; `failure` then says why one comparison gave no answer, None where all did.
    """
    crystal, candidates = item
    match, failure = _first_match(crystal, candidates, tolerance, timeout_s)
    return {"match": match, "failure": failure}


def first_of_groups(
    crystals: Sequence[Arrays], *, tolerance: Tolerance, timeout_s: float | None = None
) -> dict[str, list[object]]:
    """Group reduced crystals as `StructureMatcher.group_structures` does, and name the first of each crystal's group.

    A crystal joins the first group whose first crystal is the same as it, else it opens one. `first` has a position for
    each crystal, its own where it opens a group, None where a comparison gave no answer, which `failure` then tells.
    """
    openers: list[int] = []
    first: list[object] = []
    failures: list[object] = []
    for position, crystal in enumerate(crystals):
        match, failure = _first_match(crystal, [crystals[opener] for opener in openers], tolerance, timeout_s)
        failures.append(failure)
        if match is not None:
            first.append(openers[match])
        elif failure is not None:
            first.append(None)
        else:
            first.append(position)
            openers.append(position)
    return {"first": first, "failure": failures}


def structure(crystal: Arrays) -> Structure:
    """Return a pymatgen structure of one crystal."""
    from pymatgen.core import Element, Structure

    numbers, frac_coords, lattice = crystal
    return Structure(lattice, [Element.from_Z(int(number)) for number in numbers], frac_coords)


def problem(crystal: Arrays) -> str:
    """Say why no structure can be made of a crystal, nothing where one can."""
    numbers, frac_coords, lattice = crystal
    if len(numbers) == 0:
        return "no atoms"
    if not (np.isfinite(frac_coords).all() and np.isfinite(lattice).all()):
        return "numbers that are not finite"
    if ((numbers < 1) | (numbers > 118)).any():
        return "unknown element"
    volume = abs(float(np.linalg.det(lattice)))
    if not math.isfinite(volume) or volume < MIN_VOLUME_PER_ATOM * len(numbers):
        return f"volume of {volume / len(numbers):.3g} Å^3 an atom"
    return ""


def _first_match(
    crystal: Arrays, candidates: Sequence[Arrays], tolerance: Tolerance, timeout_s: float | None
) -> tuple[int | None, str | None]:
    failure = None
    for position, candidate in enumerate(candidates):
        if len(candidate[0]) != len(crystal[0]):
            continue  # primitive cells of one crystal have as many atoms
        try:
            with warnings.catch_warnings(), time_limit(timeout_s):
                warnings.simplefilter("ignore")
                pair = structure(candidate), structure(crystal)
                if _matcher(tolerance).fit(*pair, skip_structure_reduction=True):
                    return position, None
        except TimedOutError:
            failure = f"no answer of the matcher within {timeout_s:g} s"
        except Exception as error:  # noqa: BLE001 - any error for one pair must not take down the others
            failure = _message(error)
    return None, failure


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@cache
def _matcher(tolerance: Tolerance) -> StructureMatcher:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    ltol, stol, angle_tol = tolerance
    return StructureMatcher(ltol=ltol, stol=stol, angle_tol=angle_tol)
