"""What motifs do: how often they come, how long they stay, and what follows them.

Letters: K motifs, T frames of a trajectory. All counts are within trajectories: nothing is said of where one ends and
another begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from crystalvae.checks import check_count
from crystalvae.errors import DataError


@dataclass(frozen=True)
class Dwell:
    """How long a motif stays, in frames: its `runs`, and of those that the recording's ends do not cut, `complete`.

    `mean`, `median` and `longest` are of all runs, `mean_complete` of the complete ones; None where there are none.
    """

    runs: int
    complete: int
    mean: float | None
    median: float | None
    longest: int | None
    mean_complete: float | None


@dataclass(frozen=True, eq=False)
class MotifStatistics:
    """What K motifs do in `frames` frames.

    usage: share of frames. counts: how often a frame of one motif (row) is followed by one of another, or the same
    (column). transitions: the probability of that; switches: the probability where it changes, the diagonal 0; rows of
    motifs that nothing follows are 0. stationary: see `stationary_distribution`.
    """

    frames: int
    usage: Float[np.ndarray, "K"]
    counts: Int[np.ndarray, "K K"]
    transitions: Float[np.ndarray, "K K"]
    switches: Float[np.ndarray, "K K"]
    stationary: Float[np.ndarray, "K"]
    dwell: list[Dwell]

    @property
    def num_motifs(self) -> int:
        """Number of motifs K."""
        return len(self.usage)

    def to_dict(self) -> dict[str, Any]:
        """Return it as lists and numbers."""
        arrays = {name: getattr(self, name).tolist() for name in ("usage", "counts", "transitions", "switches")}
        dwell = [dict(vars(entry)) for entry in self.dwell]
        return {"frames": self.frames, **arrays, "stationary": self.stationary.tolist(), "dwell": dwell}


def motif_statistics(motifs: Sequence[Int[np.ndarray, "_"]], num_motifs: int) -> MotifStatistics:
    """Return what motifs do in trajectories, given the motif of each frame of each.

    Raises `DataError` for labels outside 0 to `num_motifs` - 1, and where there are no frames.
    """
    check_count("num_motifs", num_motifs)
    sequences = [np.asarray(entry) for entry in motifs if len(entry)]
    if not sequences:
        raise DataError("no frames: there are no motifs to count")
    everything = np.concatenate(sequences)
    if everything.min() < 0 or everything.max() >= num_motifs:
        raise DataError(
            f"motifs: got labels from {everything.min()} to {everything.max()}; expected 0 to {num_motifs - 1}"
        )
    counts = transition_counts(sequences, num_motifs)
    usage = np.bincount(everything, minlength=num_motifs) / len(everything)
    transitions = row_shares(counts)
    return MotifStatistics(
        frames=len(everything),
        usage=usage,
        counts=counts,
        transitions=transitions,
        switches=row_shares(counts - np.diag(np.diag(counts))),
        stationary=stationary_distribution(transitions, usage),
        dwell=_dwell_times(sequences, num_motifs),
    )


def transition_counts(motifs: Sequence[Int[np.ndarray, "_"]], num_motifs: int) -> Int[np.ndarray, "K K"]:
    """Return how often each motif (row) is followed by each (column) within the trajectories."""
    counts = np.zeros((num_motifs, num_motifs), dtype=np.int64)
    for entry in motifs:
        np.add.at(counts, (entry[:-1], entry[1:]), 1)
    return counts


def runs(motifs: Int[np.ndarray, "T"]) -> tuple[Int[np.ndarray, "R"], Int[np.ndarray, "R"], Int[np.ndarray, "R"]]:
    """Return the runs of equal labels of one trajectory: motif, first frame, and number of frames of each."""
    starts = np.concatenate(([0], np.flatnonzero(np.diff(motifs)) + 1)) if len(motifs) else np.zeros(0, dtype=np.int64)
    return motifs[starts], starts, np.diff(np.append(starts, len(motifs)))


def stationary_distribution(
    transitions: Float[np.ndarray, "K K"], usage: Float[np.ndarray, "K"]
) -> Float[np.ndarray, "K"]:
    """Return the shares of motifs in the long run, of a chain that begins with the shares `usage`.

    π = lim usage · ((I + P) / 2)^n: half of the steps stay, so that a chain that goes round in circles settles, too. A
    motif that nothing follows stays. Where the chain falls into parts that do not lead to each other, each keeps what
    usage gives it.
    """
    left = transitions.sum(axis=1, keepdims=True) > 0
    lazy = 0.5 * (np.eye(len(usage)) + np.where(left, transitions, np.eye(len(usage))))
    for _ in range(64):  # 2^64 steps
        squared = lazy @ lazy
        squared /= squared.sum(axis=1, keepdims=True)
        if np.abs(squared - lazy).max() < 1e-15:
            break
        lazy = squared
    return usage @ lazy


def row_shares(counts: Num[np.ndarray, "K K"]) -> Float[np.ndarray, "K K"]:
    """Return each row's shares of its sum; a row of zeros stays one."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.where(totals > 0, counts / np.where(totals > 0, totals, 1), 0.0)


def _dwell_times(sequences: Sequence[np.ndarray], num_motifs: int) -> list[Dwell]:
    motifs, lengths, complete = [], [], []
    for entry in sequences:
        labels, _, sizes = runs(entry)
        inner = np.ones(len(labels), dtype=bool)
        inner[[0, -1]] = False
        motifs.append(labels)
        lengths.append(sizes)
        complete.append(inner)
    of, sizes, inner = np.concatenate(motifs), np.concatenate(lengths), np.concatenate(complete)
    return [_dwell(sizes[of == motif], sizes[(of == motif) & inner]) for motif in range(num_motifs)]


def _dwell(sizes: np.ndarray, complete: np.ndarray) -> Dwell:
    return Dwell(
        runs=len(sizes),
        complete=len(complete),
        mean=float(sizes.mean()) if len(sizes) else None,
        median=float(np.median(sizes)) if len(sizes) else None,
        longest=int(sizes.max()) if len(sizes) else None,
        mean_complete=float(complete.mean()) if len(complete) else None,
    )
