"""What the Lightning modules share: optimiser, schedule, the loader's epoch, and checkpoints that hold a frozen VAE."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import lightning as L
import torch
from torch import nn

from crystalvae.build import build
from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.checkpoints.trusted import trusting
from crystalvae.data.loader import CrystalLoader
from crystalvae.errors import ConfigError

if TYPE_CHECKING:
    from crystalvae.vae_module.vae_module import VAEModule

Whole = TypeVar("Whole", bound="OverFrozenVAE")  # not `Self`, which beartype knows only where it checks classes


class Trained(L.LightningModule):
    """A module whose `config` has `optimizer` and `scheduler`, with a `_target_` each; the schedule may be None."""

    config: dict[str, Any]

    def build_optimizer(self, section: str, parameters: Iterable[nn.Parameter]) -> Any:
        """Build the optimiser and the learning-rate schedule, which is told the number of steps of the whole run.

        `section` is where in the config both stand, for the error where there is no optimiser.
        """
        if self.config["optimizer"] is None:
            raise ConfigError(f"{section}.optimizer: got null; training needs one, for example torch.optim.AdamW")
        optimizer = build("optimizer", self.config["optimizer"], params=list(parameters))
        # Unscale before the step, also where it is fused: Lightning clips no gradients that are unscaled inside it.
        optimizer._step_supports_amp_scaling = False
        if self.config["scheduler"] is None:
            return optimizer
        expected = self.trainer.estimated_stepping_batches
        if not math.isfinite(expected):
            raise ConfigError(
                f"{section}.scheduler: has to know how many steps the run will take; set trainer.max_epochs or "
                f"trainer.max_steps, or {section}.scheduler=null for a constant learning rate"
            )
        steps = int(expected)
        scheduler = build("scheduler", self.config["scheduler"], optimizer=optimizer, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Tell our loader the epoch: its order and the batches' noise are functions of it."""
        if isinstance(self.trainer.train_dataloader, CrystalLoader):
            self.trainer.train_dataloader.set_epoch(self.current_epoch)


class OverFrozenVAE(Trained):
    """A frozen `vae_module` and a part that is trained on its latents; a checkpoint, of a `kind`, holds both."""

    kind: ClassVar[str]
    vae_module: VAEModule

    @property
    def statistics(self) -> dict[str, Any]:
        """What the checkpoint knows of the training set, as `VAEModule.statistics`."""
        return self.vae_module.statistics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the whole: config, format version, statistics, package versions."""
        exact, averaged = checkpoint.get("current_model_state"), checkpoint["state_dict"]
        if exact is not None:  # averaging rounds, also what never changes
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {**averaged, **{name: exact[name] for name in averaged if name not in trained}}
        checkpoint[checkpoints.KEY] = checkpoints.metadata(self.kind, self.config, self.statistics)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the statistics when training resumes."""
        self.vae_module.statistics = checkpoints.check_metadata(checkpoint, self.kind)["statistics"]

    def save_checkpoint(self, path: str | Path) -> None:
        """Write all of it (no optimiser) as a checkpoint that `load_from_checkpoint` reads, atomically."""
        content: dict[str, Any] = {"state_dict": self.state_dict()}
        self.on_save_checkpoint(content)
        checkpoints.write(content, Path(path))

    @classmethod
    def load_from_checkpoint(  # noqa: PYI019  # pyright: ignore[reportIncompatibleMethodOverride]  # fewer arguments
        cls: type[Whole],
        checkpoint_path: str | Path,
        map_location: torch.device | str = "cpu",
        *,
        trusted_targets: Sequence[str] = (),
    ) -> Whole:
        """Load it with its VAE, ready to use (`eval`); nothing in the file is executed.

        `trusted_targets` is as for `VAEModule.load_from_checkpoint`.
        Raises `CheckpointError` for what is damaged, of another version or kind, or not to be trusted.
        """
        content = checkpoints.read(bundled.find(checkpoint_path), plain_data_only=True)
        with trusting(trusted_targets):
            meta = checkpoints.check_metadata(content, cls.kind)
            module = checkpoints.rebuild(cls, meta["config"], content["state_dict"])
        module.vae_module.statistics = meta["statistics"]
        return module.to(map_location).eval()
