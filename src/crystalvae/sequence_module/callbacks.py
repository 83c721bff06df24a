"""Callbacks that wait until annealing is over: before, losses of different epochs cannot be compared."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from crystalvae.sequence_module.losses import ANNEALED
from crystalvae.vae_module.full_weight import WhenComparable

log = logging.getLogger(__name__)


class OnceAnnealed(WhenComparable):
    """Sees only epochs whose annealing weight, that of a `SequenceModule`, is above 0.99."""

    def comparable(self, trainer: L.Trainer, module: L.LightningModule) -> bool:  # noqa: ARG002
        """Say whether it is."""
        return bool(getattr(module, "annealing_weight", 1.0) > ANNEALED)


class BestOnceAnnealed(OnceAnnealed, ModelCheckpoint):
    """A `ModelCheckpoint` that keeps a best model only of epochs whose annealing weight is above 0.99."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many steps, where asked for."""
        if self.comparable(trainer, pl_module):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so where no epoch could be kept."""
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path:
            log.warning(
                "no best model was kept: training ended before the annealing weight was above %s; last.ckpt holds the "
                "last epoch's. Train longer, or anneal more quickly (sequence_module.annealing)",
                ANNEALED,
            )


class StopOnceAnnealed(OnceAnnealed, EarlyStopping):
    """An `EarlyStopping` that starts to wait once the annealing weight is above 0.99."""
