"""Pairs of crystals through pymatgen's `StructureMatcher`, many at once.

Worker processes import this module, so it stays clear of torch: they start in a second and stay small.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from crystalvae.evaluation.matching.structure_matcher import Arrays, problem, structure
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.parallel.time_limit import TimedOutError, check_time_limit, time_limit

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

    `failure` says why no answer was had where the matcher raised or ran out of time; both results are None then, and
    `timed_out` tells the two apart.
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
        keep=_repeatable,
    )
    return [PairMatch(**entry) for entry in found]


def match_pair(target: Arrays, prediction: Arrays) -> PairMatch:
    """Match one pair at both tolerances; what goes wrong inside pymatgen is reported as `failure`."""
    for name, crystal in (("target", target), ("prediction", prediction)):
        if reason := problem(crystal):
            return PairMatch(failure=f"{name}: {reason}")
    if _reduced_composition(target[0]) != _reduced_composition(prediction[0]):
        # Matching is one to one between primitive cells and elements, so pymatgen's answer can only be None.
        return PairMatch()
    loose, strict = _matchers()
    # pymatgen keeps reduced cells of earlier structures and finds them again within a tolerance; without those a result
    # cannot depend on what was matched before it in the same process.
    clear = getattr(getattr(type(loose), "_get_reduced_istructure", None), "cache_clear", None)
    if clear is not None:
        clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first, second = structure(prediction), structure(target)
            rms = loose.get_rms_dist(first, second)
            # What matches strictly also matches loosely: every mapping tried there is tried here.
            rms_strict = strict.get_rms_dist(first, second) if rms is not None else None
    except Exception as error:  # noqa: BLE001 - any error for one pair must not take down the others
        return PairMatch(failure=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return PairMatch(
        rms=None if rms is None else float(rms[0]), rms_strict=None if rms_strict is None else float(rms_strict[0])
    )


def _match_item(item: tuple[Arrays, Arrays], *, timeout_s: float | None) -> dict[str, Any]:
    try:
        with time_limit(timeout_s):
            return asdict(match_pair(*item))
    except TimedOutError:
        return asdict(PairMatch(failure=f"no answer within {timeout_s:g} s", timed_out=True))


def _repeatable(result: Mapping[str, Any]) -> bool:
    return not result["timed_out"]


def _reduced_composition(numbers: np.ndarray) -> list[tuple[int, int]]:
    elements, counts = np.unique(numbers, return_counts=True)
    divisor = math.gcd(*counts.tolist()) or 1
    return [(int(z), int(count) // divisor) for z, count in zip(elements, counts, strict=True)]


@cache
def _matchers() -> tuple[StructureMatcher, StructureMatcher]:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(**TOLERANCES), StructureMatcher(**STRICT_TOLERANCES)
