"""What the Lightning modules share: optimiser, learning rate, and the loader's epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from crystalvae.build import build
from crystalvae.data.loader import CrystalLoader
from crystalvae.errors import ConfigError


def build_optimizer(
    config: Mapping[str, Any], parameters: Iterable[nn.Parameter], trainer: L.Trainer, *, section: str
) -> Any:
    """Build the optimiser and the learning-rate schedule over the number of steps of the whole run.

    `config` has `optimizer` and `scheduler`, with a `_target_` each; the schedule may be None. Those of
    `torch.optim.lr_scheduler` go by epochs, and `monitor` (val/loss) says what one that waits for a plateau watches.
    `section` is where in the run's config both stand, for the error where there is no optimiser.
    """
    if config["optimizer"] is None:
        raise ConfigError(f"{section}.optimizer: got null; training needs one, for example torch.optim.AdamW")
    optimizer = build("optimizer", config["optimizer"], params=list(parameters))
    # Unscale before the step, also where it is fused: Lightning clips no gradients that are unscaled inside it.
    optimizer._step_supports_amp_scaling = False
    if config["scheduler"] is None:
        return optimizer
    if str(config["scheduler"].get("_target_")).startswith("torch.optim.lr_scheduler."):
        return {"optimizer": optimizer, "lr_scheduler": _by_epochs(config["scheduler"], optimizer, trainer, section)}
    expected = trainer.estimated_stepping_batches
    if not math.isfinite(expected):
        raise ConfigError(
            f"{section}.scheduler: has to know how many steps the run will take; set trainer.max_epochs or "
            f"trainer.max_steps, or {section}.scheduler=null for a constant learning rate"
        )
    scheduler = build("scheduler", config["scheduler"], optimizer=optimizer, total_steps=int(expected))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _by_epochs(config: Mapping[str, Any], optimizer: Optimizer, trainer: L.Trainer, section: str) -> dict[str, Any]:
    described = dict(config)
    monitor = described.pop("monitor", "val/loss")
    scheduler = build(f"{section}.scheduler", described, optimizer=optimizer)
    if not isinstance(scheduler, ReduceLROnPlateau):
        if "monitor" in config:
            raise ConfigError(
                f"{section}.scheduler.monitor: a {type(scheduler).__name__} watches nothing; leave it out"
            )
        return {"scheduler": scheduler, "interval": "epoch"}
    every = trainer.check_val_every_n_epoch or 1
    return {"scheduler": scheduler, "interval": "epoch", "monitor": monitor, "frequency": every}


def tell_epoch(trainer: L.Trainer, epoch: int) -> None:
    """Tell our loader the epoch: its order and the batches' noise are functions of it."""
    if isinstance(trainer.train_dataloader, CrystalLoader):
        trainer.train_dataloader.set_epoch(epoch)
