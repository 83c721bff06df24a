"""Lightning modules that train a part on the latents of a frozen VAE."""

from __future__ import annotations

from typing import Any

from crystalvae.vae_module.lightning import CrystalModule
from crystalvae.vae_module.vae_module import VAEModule


class OverFrozenVAE(CrystalModule):
    """A frozen `vae_module` and a part that is trained on its latents; a checkpoint holds both."""

    vae_module: VAEModule

    @property
    def statistics(self) -> dict[str, Any]:
        """What the checkpoint knows of the training set, as `VAEModule.statistics`."""
        return self.vae_module.statistics

    @statistics.setter
    def statistics(self, statistics: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.vae_module.statistics = statistics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the whole, and keep exact what is not trained."""
        exact, averaged = checkpoint.get("current_model_state"), checkpoint["state_dict"]
        if exact is not None:  # averaging rounds, also what never changes
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {**averaged, **{name: exact[name] for name in averaged if name not in trained}}
        super().on_save_checkpoint(checkpoint)
