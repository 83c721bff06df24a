"""Pairs of crystals through pymatgen's `StructureMatcher`, in a process pool.

Worker processes import this module, so it stays clear of torch: they start in a second and stay small.
"""

from __future__ import annotations

import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from src.errors import ConfigError

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure


class Tolerances(TypedDict):
    """Tolerances of `StructureMatcher`: relative lengths, sites over (V/n)^(1/3), angles in degrees."""

    ltol: float
    stol: float
    angle_tol: float


TOLERANCES: Tolerances = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}
"""Published tolerances of crystal reconstruction and prediction (CDVAE, Xie et al. 2022, and its successors)."""
STRICT_TOLERANCES: Tolerances = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
"""pymatgen's defaults, written out."""
PAIRS_PER_TASK = 16

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers (n,), fractional coordinates (n, 3) and lattice rows in Å (3, 3) of one crystal."""


@dataclass(frozen=True)
class PairMatch:
    """What the matcher says about one pair: RMS displacements over (V/n)^(1/3), None where there is no match.

    `failure` says why no answer was had where the matcher raised or ran out of time; both results are None then.
    """

    rms: float | None = None
    rms_strict: float | None = None
    failure: str | None = None


class _TimedOutError(Exception):
    pass


def match_pairs(
    targets: Sequence[Arrays],
    predictions: Sequence[Arrays],
    *,
    n_jobs: int = -1,
    timeout_s: float | None = None,
    progress: bool = True,
) -> list[PairMatch]:
    """Match each prediction with the target of the same index, at the published and at pymatgen's own tolerances.

    Results do not depend on `n_jobs` (joblib's meaning: -1 for all cores, 1 for none but this process), as each pair is
    matched on its own. With `timeout_s` a pair that takes longer counts as failed, which then depends on the machine.

    Raises `ConfigError` for impossible `n_jobs` or `timeout_s`, or for a `timeout_s` where there are no alarm signals.
    """
    from joblib import Parallel, delayed, effective_n_jobs, parallel_config
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    if n_jobs == 0:
        raise ConfigError("n_jobs=0: expected a positive number of processes, or -1 for all cores")
    tasks = [
        (targets[start : start + PAIRS_PER_TASK], predictions[start : start + PAIRS_PER_TASK])
        for start in range(0, len(targets), PAIRS_PER_TASK)
    ]
    workers = max(1, min(effective_n_jobs(n_jobs), len(tasks)))
    _check_timeout(timeout_s, in_process=workers == 1)
    results: list[PairMatch] = []
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=not progress) as bar:
        line = bar.add_task("matching structures", total=len(targets))
        if workers == 1:
            parts: Iterator[list[PairMatch]] = (_match_task(*task, timeout_s) for task in tasks)
            results = _collect(parts, lambda done: bar.update(line, advance=done))
        else:
            with parallel_config(backend="loky", inner_max_num_threads=1):
                parts = Parallel(n_jobs=workers, return_as="generator")(
                    delayed(_match_task)(*task, timeout_s) for task in tasks
                )  # pyright: ignore[reportAssignmentType]
                results = _collect(parts, lambda done: bar.update(line, advance=done))
    return results


def match_pair(target: Arrays, prediction: Arrays) -> PairMatch:
    """Match one pair at both tolerances; what goes wrong inside pymatgen is reported as `failure`."""
    if not all(np.isfinite(array).all() for crystal in (target, prediction) for array in crystal):
        return PairMatch(failure="numbers that are not finite")
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
        first, second = _structure(prediction), _structure(target)
        rms = loose.get_rms_dist(first, second)
        # What matches strictly also matches loosely: every mapping tried there is tried here.
        rms_strict = strict.get_rms_dist(first, second) if rms is not None else None
    except _TimedOutError:
        raise
    except Exception as error:  # noqa: BLE001 - any error for one pair must not take down the others
        return PairMatch(failure=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return PairMatch(
        rms=None if rms is None else float(rms[0]), rms_strict=None if rms_strict is None else float(rms_strict[0])
    )


def _match_task(targets: Sequence[Arrays], predictions: Sequence[Arrays], timeout_s: float | None) -> list[PairMatch]:
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for target, prediction in zip(targets, predictions, strict=True):
            try:
                with _time_limit(timeout_s):
                    results.append(match_pair(target, prediction))
            except _TimedOutError:
                results.append(PairMatch(failure=f"no answer within {timeout_s:g} s"))
    return results


def _collect(parts: Iterator[list[PairMatch]], advance: Callable[[int], None]) -> list[PairMatch]:
    results: list[PairMatch] = []
    for part in parts:
        results.extend(part)
        advance(len(part))
    return results


def _check_timeout(timeout_s: float | None, *, in_process: bool) -> None:
    if timeout_s is None:
        return
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise ConfigError(f"timeout_s={timeout_s}: expected a positive number of seconds, or null for no limit")
    if not hasattr(signal, "setitimer"):
        raise ConfigError(f"timeout_s={timeout_s}: this system has no alarm signals; set timeout_s=null")
    if in_process and threading.current_thread() is not threading.main_thread():
        raise ConfigError(f"timeout_s={timeout_s}: impossible outside the main thread; set n_jobs=2 or timeout_s=null")


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    if seconds is None:
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _TimedOutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


@cache
def _matchers() -> tuple[StructureMatcher, StructureMatcher]:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(**TOLERANCES), StructureMatcher(**STRICT_TOLERANCES)


def _structure(crystal: Arrays) -> Structure:
    from pymatgen.core import Element, Structure

    numbers, frac_coords, lattice = crystal
    return Structure(lattice, [Element.from_Z(number) for number in numbers.tolist()], frac_coords)


def _reduced_composition(numbers: np.ndarray) -> list[tuple[int, int]]:
    elements, counts = np.unique(numbers, return_counts=True)
    divisor = math.gcd(*counts.tolist()) or 1
    return [(int(z), int(count) // divisor) for z, count in zip(elements, counts, strict=True)]
