"""What the report of motifs is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from crystalvae.data.trajectories import Trajectory
from crystalvae.sequence_module.generated_files import Clip, Forecast
from crystalvae.sequence_module.motifs.communities import MotifTree
from crystalvae.sequence_module.motifs.statistics import MotifStatistics
from crystalvae.sequence_module.motifs.storage import Segmentation


@dataclass(frozen=True, eq=False)
class MotifFindings:
    """Motifs of trajectories and what they do.

    `trajectories` are those that were segmented, in that order; `feature_names` name the numbers of a frame, which
    `forecasts` are made of. `forecast_errors` are as `forecast_errors` returns them, `training` has a row an epoch with
    the metrics that were logged. `agreement` says how well motifs and references agree with the property `label` on the
    part `held_out`; `comparison` is a `GroupComparison` as plain data. `run` are facts of the run, name by name.
    """

    name: str
    trajectories: Sequence[Trajectory]
    segmentation: Segmentation
    statistics: MotifStatistics
    tree: MotifTree
    communities: Int[np.ndarray, "K"]
    clips: Sequence[Clip] = ()
    forecasts: Sequence[Forecast] = ()
    feature_names: Sequence[str] = ()
    forecast_errors: pd.DataFrame | None = None
    training: pd.DataFrame | None = None
    held_out: str = "test"
    label: str | None = None
    agreement: Mapping[str, float] | None = None
    comparison: Mapping[str, Any] | None = None
    run: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    files: Sequence[str] = ()
    """Files beside the report that it names."""
