"""Which crystals are the same one: comparisons with pymatgen's `StructureMatcher`, one small task at a time.

Worker processes import this module, so it stays clear of torch: they start in a second and stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from crystalvae.evaluation.crystal_arrays import Arrays, problem, structure
from crystalvae.evaluation.parallel.attempt import Failure, attempt

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher

Tolerance = tuple[float, float, float]
"""ltol, stol and angle_tol (degrees) of `StructureMatcher`."""


def reduce_cell(crystal: Arrays, *, timeout_s: float | None = None) -> dict[str, object]:
    """Return the primitive Niggli cell as `StructureMatcher` makes it: numbers, frac_coords and lattice as lists.

    For crystals without such a cell the result is a failure's: `failure` says why.
    """

    def reduced() -> dict[str, object]:
        cell = structure(crystal).get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
        return {
            "numbers": list(cell.atomic_numbers),
            "frac_coords": cell.frac_coords.tolist(),
            "lattice": cell.lattice.matrix.tolist(),
        }

    reason = problem(crystal)
    found = Failure(reason) if reason else attempt(reduced, timeout_s=timeout_s, wanted="primitive cell")
    return found.to_dict() if isinstance(found, Failure) else found


def first_match(
    item: tuple[Arrays, Sequence[Arrays]], *, tolerance: Tolerance, timeout_s: float | None = None
) -> dict[str, object]:
    """Return the position of the first of several reduced crystals that is the same as a given reduced one.

    `match` is None where there is none; `failure` then says why one comparison gave no answer, None where all did, and
    `passing` whether that depends on the machine.
    """
    found = _first_match(*item, tolerance, timeout_s)
    if isinstance(found, Failure):
        return {"match": None, **found.to_dict()}
    return {"match": found, "failure": None, "passing": False}


def first_of_groups(
    crystals: Sequence[Arrays], *, tolerance: Tolerance, timeout_s: float | None = None
) -> dict[str, object]:
    """Group reduced crystals as `StructureMatcher.group_structures` does, and name the first of each crystal's group.

    A crystal joins the first group whose first crystal is the same as it, else it opens one. `first` has a position for
    each crystal, its own where it opens a group, None where a comparison gave no answer, which `failure` then tells;
    `passing` says whether one of these depends on the machine.
    """
    openers: list[int] = []
    first: list[int | None] = []
    failures: list[str | None] = []
    passing = False
    for position, crystal in enumerate(crystals):
        found = _first_match(crystal, [crystals[opener] for opener in openers], tolerance, timeout_s)
        if isinstance(found, Failure):
            first.append(None)
            passing |= found.passing
        else:
            first.append(position if found is None else openers[found])
            if found is None:
                openers.append(position)
        failures.append(found.reason if isinstance(found, Failure) else None)
    return {"first": first, "failure": failures, "passing": passing}


def forget_reduced_cells() -> None:
    """Let pymatgen forget the cells it has reduced.

    It finds them again within a tolerance; without them a result cannot depend on what was matched before it in the
    same process.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher

    clear = getattr(getattr(StructureMatcher, "_get_reduced_istructure", None), "cache_clear", None)
    if clear is not None:
        clear()


def _first_match(
    crystal: Arrays, candidates: Sequence[Arrays], tolerance: Tolerance, timeout_s: float | None
) -> int | Failure | None:
    failure = None
    for position, candidate in enumerate(candidates):
        if len(candidate[0]) != len(crystal[0]):
            continue  # primitive cells of one crystal have as many atoms
        fits = attempt(
            lambda other=candidate: _matcher(tolerance).fit(
                structure(other), structure(crystal), skip_structure_reduction=True
            ),
            timeout_s=timeout_s,
            wanted="answer of the matcher",
        )
        if isinstance(fits, Failure):
            failure = fits
        elif fits:
            return position
    return failure


@cache
def _matcher(tolerance: Tolerance) -> StructureMatcher:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    ltol, stol, angle_tol = tolerance
    return StructureMatcher(ltol=ltol, stol=stol, angle_tol=angle_tol)
