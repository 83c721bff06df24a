"""Findings made by hand for the tests of the motif report: two motifs, three recordings, an untrained model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from crystalvae.evaluation.motif_report.findings import MotifFindings
from crystalvae.sequence_module.generated_files import Clip, forecasts, motif_clips
from crystalvae.sequence_module.motifs.communities import motif_tree
from crystalvae.sequence_module.motifs.fitting import fit_motifs
from crystalvae.sequence_module.motifs.segmentation import segment_trajectories
from crystalvae.sequence_module.motifs.statistics import motif_statistics
from crystalvae.sequence_module.motifs.storage import Segmentation
from tests.sequences import TINY, built, swinging

HOSTILE = "<script>alert(1)</script>"


def motif_findings(**changes) -> MotifFindings:
    """Findings with every part there is; one clip cannot be drawn, and one trajectory has a name that is code."""
    module = built()
    trajectories = [swinging(name, frames=60, phase=phase) for name, phase in (("a", 0.0), ("b", 2.0), (HOSTILE, 4.0))]
    frames = module.frames(trajectories)
    counts, latents = frames.window_counts(TINY["window"]), module.latents(frames).double().numpy()
    model = fit_motifs(latents, counts, 2, method="kmeans")
    segmented = segment_trajectories(model, latents, counts, ["a", "b", HOSTILE], window=TINY["window"])
    found = Segmentation(model, latents, segmented)
    statistics = motif_statistics([entry.frame_motifs for entry in segmented], 2)
    tree = motif_tree(statistics.usage, statistics.counts)
    flat = replace(trajectories[0][:8], lattices=0.0 * trajectories[0].lattices[:8])
    horizons = np.arange(1, 16)
    errors = {name: 0.01 * horizons * factor for factor, name in enumerate(("model", "last_frame", "linear", "ar1"), 1)}
    epochs = pd.Index(range(5), name="epoch")
    logged = {f"{split}/{name}": np.exp(-epochs) for split in ("train", "val") for name in ("loss", "reconstruction")}
    given = {
        "name": "by hand",
        "trajectories": trajectories,
        "segmentation": found,
        "statistics": statistics,
        "tree": tree,
        "communities": tree.communities(1),
        "clips": [*motif_clips(found, trajectories, number=2), Clip(1, flat, 0)],
        "forecasts": forecasts(module, trajectories[:1], steps=6),
        "feature_names": module.features.names,
        "forecast_errors": pd.DataFrame({"horizon": horizons, **errors, "mean": np.full(15, 0.5)}),
        "training": pd.DataFrame({**logged, "train/annealing_weight": [0, 0, 0.5, 1, 1]}, index=epochs),
        "label": "regime",
        "agreement": {"motifs": 0.93, "k-means on raw frames": 0.07},
        "run": {"command": "crystalvae motifs", "seed": 0},
        "config": {"name": "by hand"},
        "files": ["statistics/frames.csv"],
    }
    return MotifFindings(**{**given, **changes})
