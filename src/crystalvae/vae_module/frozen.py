"""Lightning modules that train a part on the latents of a frozen VAE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import lightning as L
import torch

from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.checkpoints.trusted import trusting
from crystalvae.vae_module.lightning import tell_epoch
from crystalvae.vae_module.vae_module import VAEModule

Whole = TypeVar("Whole", bound="OverFrozenVAE")  # not `Self`, which beartype knows only where it checks classes


class OverFrozenVAE(L.LightningModule):
    """A frozen `vae_module` and a part that is trained on its latents; a checkpoint, of a `kind`, holds both."""

    kind: ClassVar[str]
    config: dict[str, Any]
    vae_module: VAEModule

    @property
    def statistics(self) -> dict[str, Any]:
        """What the checkpoint knows of the training set, as `VAEModule.statistics`."""
        return self.vae_module.statistics

    def on_train_epoch_start(self) -> None:
        """Tell the loader the epoch."""
        tell_epoch(self.trainer, self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the whole: config, format version, statistics, package versions."""
        exact, averaged = checkpoint.get("current_model_state"), checkpoint["state_dict"]
        if exact is not None:  # averaging rounds, also what never changes
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {**averaged, **{name: exact[name] for name in averaged if name not in trained}}
        checkpoint[checkpoints.KEY] = checkpoints.metadata(self.kind, self.config, self.statistics)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Bring a checkpoint that training resumes from to today's format, and take over its statistics."""
        checkpoint.update(checkpoints.upgraded(checkpoint))
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
        weights_only: bool = False,
        trusted_targets: Sequence[str] = (),
    ) -> Whole:
        """Load it with its VAE, ready to use (`eval`); nothing in the file is executed.

        `weights_only` and `trusted_targets` are as for `VAEModule.load_from_checkpoint`.
        Raises `CheckpointError` for what is damaged, of another version or kind, or not to be trusted.
        """
        content = checkpoints.read(bundled.find(checkpoint_path), plain_data_only=weights_only)
        with trusting(trusted_targets):
            meta = checkpoints.check_metadata(content, cls.kind)
            module = checkpoints.rebuild(cls, meta["config"], content["state_dict"])
        module.vae_module.statistics = meta["statistics"]
        return module.to(map_location).eval()
