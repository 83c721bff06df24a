"""Trajectories cut into motifs: a label and a confidence for each window and for each frame.

Letters: T frames of a trajectory, W = T - window + 1 windows of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int, Shaped

from crystalvae.errors import DataError
from crystalvae.sequence_module.motifs.fitting import fit_motifs
from crystalvae.sequence_module.motifs.model import CovarianceType, Method, MotifModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SegmentedTrajectory:
    """Motif and confidence of each window, (W,), and of each frame, (T,), of the trajectory `id`."""

    id: str
    window: int
    window_motifs: Int[np.ndarray, "W"]
    window_confidence: Float[np.ndarray, "W"]

    @property
    def frame_motifs(self) -> Int[np.ndarray, "T"]:
        """The motif of each frame; see `frame_values`."""
        return frame_values(self.window_motifs, self.window)

    @property
    def frame_confidence(self) -> Float[np.ndarray, "T"]:
        """The confidence of each frame."""
        return frame_values(self.window_confidence, self.window)


def frame_values(window_values: Shaped[np.ndarray, "W"], window: int) -> Shaped[np.ndarray, "T"]:
    """Return a value for each frame: that of the window in whose middle it stands.

    Window w has the frames w to w + window - 1, its middle is frame w + window // 2. Frames before the first middle get
    the value of the first window, those after the last middle that of the last.
    """
    if len(window_values) == 0:
        raise DataError("no windows: the trajectory is shorter than one")
    rows = np.arange(len(window_values) + window - 1) - window // 2
    return window_values[rows.clip(0, len(window_values) - 1)]


def window_values(values: Shaped[np.ndarray, "T"], window: int) -> Shaped[np.ndarray, "W"]:
    """Return of a value for each frame those at the middles of the windows: the labels of windows from frames'."""
    if len(values) < window:
        raise DataError(f"{len(values)} frames: the trajectory is shorter than a window of {window}")
    return values[window // 2 : len(values) - (window - 1 - window // 2)]


def segment_trajectories(
    model: MotifModel | Mapping[str, MotifModel],
    latents: Float[np.ndarray, "W L"],
    counts: Sequence[int],
    ids: Sequence[str],
    *,
    window: int,
) -> list[SegmentedTrajectory]:
    """Label the windows of trajectories, of which `counts` are each trajectory's, with one model or one for each id.

    Trajectories without a window are left out and reported. Motifs of different models have nothing in common.
    """
    bounds = np.concatenate(([0], np.cumsum(counts)))
    parts = [latents[start:stop] for start, stop in pairwise(bounds)]
    _tell_short(counts, ids)
    segmented = []
    for name, part in zip(ids, parts, strict=True):
        if len(part):
            own = model if isinstance(model, MotifModel) else model[name]
            motifs, confidence = own.label(part, [len(part)])
            segmented.append(SegmentedTrajectory(name, window, motifs, confidence))
    return segmented


def fit_each(
    latents: Float[np.ndarray, "W L"],
    counts: Sequence[int],
    ids: Sequence[str],
    num_motifs: int,
    *,
    method: Method = "hmm",
    covariance: CovarianceType = "full",
    seed: int = 0,
    restarts: int = 1,
    iterations: int = 100,
    overlap: int = 1,
) -> dict[str, MotifModel]:
    """Fit motifs to each trajectory by itself; those without a window get none.

    Raises `DataError` naming the trajectory that has fewer different windows than motifs.
    """
    models = {}
    bounds = np.concatenate(([0], np.cumsum(counts)))
    for name, start, stop in zip(ids, bounds[:-1], bounds[1:], strict=True):
        if start == stop:
            continue
        try:
            models[name] = fit_motifs(
                latents[start:stop],
                [int(stop - start)],
                num_motifs,
                method=method,
                covariance=covariance,
                seed=seed,
                restarts=restarts,
                iterations=iterations,
                overlap=overlap,
            )
        except DataError as error:
            raise DataError(f"trajectory {name}: {error}") from error
    return models


def _tell_short(counts: Sequence[int], ids: Sequence[str]) -> None:
    short = [name for name, count in zip(ids, counts, strict=True) if count == 0]
    if short:
        log.warning("shorter than a window, and not segmented: %s", ", ".join(short))
