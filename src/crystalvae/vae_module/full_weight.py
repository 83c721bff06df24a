"""Best checkpoint and early stopping that wait for a KL weight that is being raised.

A model whose KL weight was still low rebuilds crystals better than any that comes after it, and its latents are good
for nothing: it is no best model.
"""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from crystalvae.checks import check_switch
from crystalvae.vae_module.objectives.elbo import ELBO

log = logging.getLogger(__name__)

FULL = 0.99
"""Share of the largest factor of the KL weight from which on it counts as full."""
_UNBOUNDED_EPOCHS = 10_000


class FullWeight:
    """Whether the KL weight of the last training step was as large as any that the run's validations will see.

    That is so at every epoch where the objective has no schedule, after the warm-up with one, at its peaks with a
    cyclical one, and at the last epoch where the run is shorter than the warm-up. A schedule of the user's own is
    called for the end of each epoch to find its maximum.
    """

    def __init__(self) -> None:
        self._largest: tuple[tuple[int, int], float] | None = None

    def reached(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        """Say whether it is, for the step or epoch that training has come to."""
        objective = getattr(module, "objective", None)
        if not isinstance(objective, ELBO) or not objective.changes or trainer.sanity_checking:
            return True  # Lightning itself does nothing in a sanity check
        in_steps = objective.schedule_unit == "step"
        now = trainer.global_step - 1 if in_steps else trainer.current_epoch
        return objective.factor(max(now, 0)) >= FULL * self._maximum(trainer, objective)

    def _maximum(self, trainer: L.Trainer, objective: ELBO) -> float:
        expected = trainer.estimated_stepping_batches
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else _UNBOUNDED_EPOCHS
        per_epoch = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
        if math.isfinite(expected):
            epochs = min(epochs, math.ceil(expected / per_epoch))
        key = (epochs, per_epoch)
        if self._largest is None or self._largest[0] != key:
            last_step = int(expected) - 1 if math.isfinite(expected) else epochs * per_epoch - 1
            steps = [min((epoch + 1) * per_epoch - 1, last_step) for epoch in range(epochs)]
            times = steps if objective.schedule_unit == "step" else range(epochs)
            self._largest = key, max(map(objective.factor, times), default=0.0)
        return self._largest[1]


class WhenComparable(L.Callback):
    """Lets the callback of Lightning that it is mixed into see only those epochs whose losses can be compared."""

    def comparable(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        """Say whether this epoch's can."""
        raise NotImplementedError

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the epoch, where it counts."""
        if self.comparable(trainer, pl_module):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the epoch, where it counts, for a monitor of training."""
        if self.comparable(trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)


class _AtFullWeight(WhenComparable):
    """With `full_weight` only epochs at the full KL weight are seen."""

    name: ClassVar[str]
    theirs: ClassVar[type[L.Callback]]

    def __init__(self, *, full_weight: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.full_weight = check_switch(f"callbacks.{self.name}.full_weight", full_weight)
        self._weight = FullWeight()

    @property
    def state_key(self) -> str:
        """Lightning's own, so that runs of before can be resumed."""
        return super().state_key.replace(type(self).__qualname__, self.theirs.__qualname__, 1)

    def comparable(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        """Say whether the weight is full."""
        return not self.full_weight or self._weight.reached(trainer, module)


class BestCheckpoint(_AtFullWeight, ModelCheckpoint):
    """Lightning's `ModelCheckpoint`; with `full_weight` only models at the full KL weight are compared (`FullWeight`).

    A run that ends before has no best checkpoint, and says so. Further options are those of `ModelCheckpoint`.
    """

    name, theirs = "checkpoint", ModelCheckpoint

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where no model was ever at the full weight."""
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path and not self.comparable(trainer, pl_module):
            log.warning(
                "no best checkpoint: training ended before the KL weight was full; the last one is there. Train longer "
                "or compare all epochs with callbacks.checkpoint.full_weight=false"
            )


class PatientStopping(_AtFullWeight, EarlyStopping):
    """Lightning's `EarlyStopping`, which with `full_weight` counts only epochs at the full KL weight (`FullWeight`)."""

    name, theirs = "early_stopping", EarlyStopping
