"""What the Lightning modules share: checkpoints, the optimiser and its learning rate, and logs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from crystalvae.build import build, to_plain
from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.checkpoints.trusted import trusting
from crystalvae.data.loader import SeededLoader
from crystalvae.errors import ConfigError

Value = TypeVar("Value")
Module = TypeVar("Module", bound="CrystalModule")  # not `Self`, which beartype knows only where it checks classes


class CrystalModule(L.LightningModule):
    """A Lightning module whose checkpoints, of a `kind`, hold what rebuilds it; `kinds` are those it can be read from.

    `config` holds the arguments of its constructor as plain data (`plain_arguments`), `statistics` what the checkpoint
    knows of the training set: its name, `num_atoms` {atom count: crystals}, and the range of `conditions`.
    """

    kind: ClassVar[str]
    kinds: ClassVar[str]
    config: dict[str, Any]
    statistics: dict[str, Any]

    def on_train_epoch_start(self) -> None:
        """Tell our loader the epoch: its order and the batches' noise are functions of it."""
        if isinstance(self.trainer.train_dataloader, SeededLoader):
            self.trainer.train_dataloader.set_epoch(self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the module: config, format version, statistics, package versions."""
        checkpoint[checkpoints.KEY] = checkpoints.metadata(self.kind, self.config, self.statistics)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Bring a checkpoint that training resumes from to today's format, and take over its statistics."""
        checkpoint.update(checkpoints.upgraded(checkpoint))
        self.statistics = checkpoints.check_metadata(checkpoint, self.kind)["statistics"]

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the module alone (no optimiser) as a checkpoint that `load_from_checkpoint` reads, atomically."""
        content: dict[str, Any] = {"state_dict": self.state_dict()}
        self.on_save_checkpoint(content)
        checkpoints.write(content, Path(path))

    @classmethod
    def load_from_checkpoint(  # noqa: PYI019  # pyright: ignore[reportIncompatibleMethodOverride]  # fewer arguments
        cls: type[Module],
        checkpoint_path: str | Path,
        map_location: torch.device | str = "cpu",
        *,
        weights_only: bool = False,
        trusted_targets: Sequence[str] = (),
    ) -> Module:
        """Load a module, a VAE also from what was trained on its latents, ready to use (`eval`).

        `checkpoint_path` may be the name of a bundled model (`bundled.models()`). Nothing in the file is executed
        either way: `weights_only=True` accepts only plain data, that is, ours; `weights_only=False` also converts
        pickled published checkpoints through a reader that runs nothing. `trusted_targets` names further packages, each
        with a dot at its end, whose encoders, decoders and schedules a config may ask for. Raises `CheckpointError` for
        what is damaged, of another version or kind, or not to be trusted.
        """
        content = checkpoints.read(bundled.find(checkpoint_path), plain_data_only=weights_only)
        with trusting(trusted_targets):
            meta = checkpoints.check_metadata(content, cls.kinds)
            config, weights = meta["config"], content["state_dict"]
            if meta["kind"] != cls.kind:
                config, weights = checkpoints.vae_within(meta["kind"], config, weights)
            module = checkpoints.rebuild(cls, config, weights)
        module.statistics = meta["statistics"]
        return module.to(map_location).eval()


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a constructor, its `locals()` before anything else is there, as plain data."""
    return {key: to_plain(value) for key, value in arguments.items() if key not in {"self", "__class__"}}


def named(stage: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return what is logged of a stage of training by the names that the log has for it."""
    return {f"{stage}/{name}": value for name, value in values.items()}


def log_training(
    module: L.LightningModule, losses: Mapping[str, Tensor], *, batch_size: int, world_size: int
) -> Tensor:
    """Log the loss of a step and its parts, and return the loss."""
    # Each rank's sums are divided by the global batch's share, so their mean over ranks is the global loss.
    options: dict[str, Any] = {"batch_size": batch_size, "sync_dist": world_size > 1}
    values = named("train", losses)
    module.log("train/loss", values.pop("train/loss"), prog_bar=True, **options)
    module.log_dict(values, **options)
    return losses["loss"]


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
