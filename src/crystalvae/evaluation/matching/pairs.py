"""Pairs of crystals through pymatgen's `StructureMatcher`, many at once.

Worker processes import this module, so it stays clear of torch: they start in a second and stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypedDict

from crystalvae.evaluation.crystal_arrays import Arrays, problem, reduced_composition, structure
from crystalvae.evaluation.matching.structure_matcher import forget_reduced_cells
from crystalvae.evaluation.parallel.attempt import Failure, attempt
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.parallel.time_limit import check_time_limit

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher


class Tolerances(TypedDict):
    """Tolerances of `StructureMatcher`: relative lengths, sites over (V/n)^(1/3), angles in degrees."""

    ltol: float
    stol: float
    angle_tol: float


TOLERANCES: Tolerances = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}
"""Published tolerances of crystal reconstruction and prediction (CDVAE, Xie et al. 2022, and its successors)."""
STRICT_TOLERANCES: Tolerances = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
"""pymatgen's defaults, written out."""
TIME_LIMIT_S = 60.0
"""Longest that one pair may take, unless told otherwise."""
_VERSION = 2
"""Part of every cache key: raise it whenever the same pair would be answered differently."""


@dataclass(frozen=True)
class PairMatch:
    """What the matcher says about one pair: RMS displacements over (V/n)^(1/3), None where there is no match.

    `failure` says why there is no answer: the matcher raised an error or ran out of time; both results are None then,
    and `timed_out` tells the two apart.
    """

    rms: float | None = None
    rms_strict: float | None = None
    failure: str | None = None
    timed_out: bool = False


def match_pairs(
    targets: Sequence[Arrays],
    predictions: Sequence[Arrays],
    *,
    runner: Runner,
    timeout_s: float | None = TIME_LIMIT_S,
) -> list[PairMatch]:
    """Match each prediction with the target of the same index, at the published and at pymatgen's own tolerances.

    Results do not depend on how many processes the runner has, as each pair is matched on its own. A pair that takes
    longer than `timeout_s` counts as failed, which depends on the machine; None sets no limit.

    Raises `ConfigError` for an impossible `timeout_s`.
    """
    check_time_limit("timeout_s", timeout_s)
    found = runner.map(
        partial(_match_item, timeout_s=timeout_s),
        list(zip(targets, predictions, strict=True)),
        description="matching structures",
        namespace=f"match/{_VERSION}/{version('pymatgen-core')}/{TOLERANCES}/{STRICT_TOLERANCES}",
        keep=lambda result: not result["timed_out"],
    )
    return [PairMatch(**entry) for entry in found]


def match_pair(target: Arrays, prediction: Arrays, *, timeout_s: float | None = None) -> PairMatch:
    """Match one pair at both tolerances; what goes wrong inside pymatgen is reported as `failure`."""
    for name, crystal in (("target", target), ("prediction", prediction)):
        if reason := problem(crystal):
            return PairMatch(failure=f"{name}: {reason}")
    if reduced_composition(target[0]) != reduced_composition(prediction[0]):
        # Matching is one to one between primitive cells and elements, so pymatgen's answer can only be None.
        return PairMatch()
    found = attempt(lambda: _displacements(target, prediction), timeout_s=timeout_s)
    if isinstance(found, Failure):
        return PairMatch(failure=found.reason, timed_out=found.timed_out)
    return found


def _displacements(target: Arrays, prediction: Arrays) -> PairMatch:
    loose, strict = _matchers()
    forget_reduced_cells()
    first, second = structure(prediction), structure(target)
    rms = loose.get_rms_dist(first, second)
    # What matches strictly also matches loosely: every mapping tried there is tried here.
    rms_strict = strict.get_rms_dist(first, second) if rms is not None else None
    return PairMatch(
        rms=None if rms is None else float(rms[0]), rms_strict=None if rms_strict is None else float(rms_strict[0])
    )


def _match_item(item: tuple[Arrays, Arrays], *, timeout_s: float | None) -> dict[str, Any]:
    return asdict(match_pair(*item, timeout_s=timeout_s))


@cache
def _matchers() -> tuple[StructureMatcher, StructureMatcher]:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(**TOLERANCES), StructureMatcher(**STRICT_TOLERANCES)
