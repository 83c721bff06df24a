"""Callbacks that wait until annealing is over: before, losses of different epochs cannot be compared."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from crystalvae.sequence_module.losses import ANNEALED

log = logging.getLogger(__name__)


def annealed(module: L.LightningModule) -> bool:
    """Say whether the annealing weight of a `SequenceModule` is above 0.99 in this epoch."""
    return bool(getattr(module, "annealing_weight", 1.0) > ANNEALED)


class BestOnceAnnealed(ModelCheckpoint):
    """A `ModelCheckpoint` that keeps a best model only of epochs whose annealing weight is above 0.99."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save where the validation loss is the best so far."""
        if annealed(pl_module):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save where the training loss is the best so far, for a monitor of training."""
        if annealed(pl_module):
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many steps, where asked for."""
        if annealed(pl_module):
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


class StopOnceAnnealed(EarlyStopping):
    """An `EarlyStopping` that starts to wait once the annealing weight is above 0.99."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after `patience` validations without a better one."""
        if annealed(pl_module):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after `patience` epochs without a better one, for a monitor of training."""
        if annealed(pl_module):
            super().on_train_epoch_end(trainer, pl_module)
