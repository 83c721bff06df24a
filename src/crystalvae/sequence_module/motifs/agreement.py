"""How well motifs agree with what is known of the frames, beside the dumbest thing that could."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int

from crystalvae.errors import DataError
from crystalvae.sequence_module.motifs.fitting import fit_motifs
from crystalvae.sequence_module.motifs.segmentation import frame_values
from crystalvae.sequence_module.windows import FrameSet

_MOST_WINDOWS = 20_000


def adjusted_rand_index(motifs: Sequence[Int[np.ndarray, "_"]], regimes: Sequence[Int[np.ndarray, "_"]]) -> float:
    """Return the adjusted Rand index (Hubert & Arabie 1985) over all frames: 1 the same partition, 0 as by chance."""
    from sklearn.metrics import adjusted_rand_score

    if [len(entry) for entry in motifs] != [len(entry) for entry in regimes] or not motifs:
        raise DataError(
            f"motifs and regimes: got trajectories of {[len(entry) for entry in motifs]} and "
            f"{[len(entry) for entry in regimes]} frames; expected the same of both"
        )
    return float(adjusted_rand_score(np.concatenate(list(regimes)), np.concatenate(list(motifs))))


def raw_feature_motifs(
    train: FrameSet, frames: FrameSet, num_motifs: int, *, window: int = 1, seed: int = 0
) -> list[Int[np.ndarray, "_"]]:
    """Return what k-means on raw features, fitted to `train`, makes of the frames of each segment: the reference.

    It sees single frames or, as the model does, whole windows of them; it is fitted to at most 20,000.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = train.starts(window)
    starts = starts[torch.randperm(len(starts), generator=generator)[:_MOST_WINDOWS].to(starts.device)]
    given = train.gather(starts, window).flatten(1).double().cpu().numpy()
    model = fit_motifs(given, [len(given)], num_motifs, method="kmeans", seed=seed, restarts=10)
    found = []
    for start, stop in pairwise(frames.ptr.tolist()):
        part = frames.frames[start:stop].unfold(0, window, 1).mT.flatten(1).double().cpu().numpy()
        found.append(frame_values(model.label(part, [len(part)])[0], window))
    return found
