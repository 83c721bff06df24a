"""How well motifs agree with what is known of the frames, beside the dumbest thing that could."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from crystalvae.errors import DataError
from crystalvae.sequence_module.motifs.fitting import fit_motifs


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
    train: Float[np.ndarray, "M F"], frames: Sequence[Float[np.ndarray, "_ F"]], num_motifs: int, *, seed: int = 0
) -> list[Int[np.ndarray, "_"]]:
    """Return what k-means on the features of single frames, fitted to `train`, makes of trajectories: the reference."""
    model = fit_motifs(train, [len(train)], num_motifs, method="kmeans", seed=seed, restarts=10)
    return [model.label(entry, [len(entry)])[0] for entry in frames]
