"""Weights averaged along a run, over a memory that fits the run's length."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_avg_fn

from crystalvae.errors import ConfigError

LONGEST = 0.9999


def decay_for(steps: float, share: float) -> float:
    """Return the decay whose memory, 1 / (1 - decay) steps, is that share of a run's steps; at most 0.9999.

    An average with a longer memory is still full of early weights when a short run ends.
    """
    return min(LONGEST, 1.0 - 1.0 / max(1.0, share * steps))


class AveragedWeights(WeightAveraging):
    """An exponential moving average of the weights, updated after each step, for validation and checkpoints.

    `decay` is that of each step; None: that of `decay_for` with `share`, given the steps of the whole run.
    """

    def __init__(self, *, decay: float | None = None, share: float = 0.02) -> None:
        if decay is not None and not 0.0 <= decay < 1.0:
            raise ConfigError(f"callbacks.ema.decay: got {decay}; expected at least 0 and less than 1, or null")
        if not 0.0 < share <= 1.0:
            raise ConfigError(f"callbacks.ema.share: got {share}; expected more than 0, at most 1")
        self.decay, self.share = decay, share
        self._average = get_ema_avg_fn(decay=LONGEST if decay is None else decay)
        super().__init__(avg_fn=self._averaged)

    def _averaged(self, averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        return self._average(averaged, current, count)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Learn how long the run is."""
        super().on_train_start(trainer, pl_module)
        steps: Any = trainer.estimated_stepping_batches
        if self.decay is None and math.isfinite(steps):
            self._average = get_ema_avg_fn(decay=decay_for(steps, self.share))
