"""One computation that may fail or take too long, without taking others down. Workers import this: no torch here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from crystalvae.errors import CrystalVAEError
from crystalvae.evaluation.parallel.time_limit import TimedOutError, time_limit

Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """Why a computation gave no result.

    `passing` is true where that depends on the machine, as for time and memory that ran out: it may go well next time.
    """

    reason: str
    timed_out: bool = False
    passing: bool = False

    def to_dict(self) -> dict[str, object]:
        """Return what a task that a `Runner` runs says in place of a result."""
        return {"failure": self.reason, "passing": self.passing}


def attempt(work: Callable[[], Result], *, timeout_s: float | None = None, wanted: str = "answer") -> Result | Failure:
    """Return what `work()` returns, or why it returned nothing: an error, or more than `timeout_s` seconds.

    Warnings are kept back. `wanted` is what the work was to find, for the reason. This package's own errors are raised:
    they are about settings, which are wrong for all crystals alike.
    """
    try:
        with warnings.catch_warnings(), time_limit(timeout_s):
            warnings.simplefilter("ignore")
            return work()
    except TimedOutError:
        return Failure(f"no {wanted} within {timeout_s:g} s", timed_out=True, passing=True)
    except CrystalVAEError:
        raise
    except Exception as error:  # noqa: BLE001 - any error for one crystal must not take down the others
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        passing = isinstance(error, (MemoryError, OSError)) or "out of memory" in reason.lower()
        return Failure(reason, passing=passing)


def is_repeatable(result: object) -> bool:
    """Say of a task's result whether it would be the same on another machine, and so may be kept."""
    return not (isinstance(result, Mapping) and result.get("passing"))
