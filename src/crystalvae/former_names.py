"""Names that parts of this package had in earlier versions, for configs and checkpoints that still say them.

Until format version 1 of the checkpoints the package was imported as `src`.
"""

from __future__ import annotations

_MOVED = {
    "evaluation.monitor": "evaluation.generation_monitor",
    "evaluation.potentials": "evaluation.stability.potentials",
    "prior_module.network": "prior_module.latent_flow",
    "vae_module.averaging": "vae_module.weight_averaging",
    "vae_module.latent_space.predictor": "predictor_module.predictor",
    "vae_module.latent_space.property_head": "predictor_module.property_head",
    "vae_module.objectives.schedules": "vae_module.objectives.kl_schedules",
    "vae_module.optimizers": "vae_module.muon",
    "vae_module.schedule": "vae_module.learning_rate",
}
"""Modules of `src` that a config can name parts of, and that moved within the package."""


def current_name(target: str) -> str:
    """Return today's name for a `_target_`; anything that is not one of `src` comes back as it is.

    So `src.vae_module.optimizers.MuonAdamW` becomes `crystalvae.vae_module.muon.MuonAdamW`.
    """
    if not target.startswith("src."):
        return target
    module, _, name = target.removeprefix("src.").rpartition(".")
    return f"crystalvae.{_MOVED.get(module, module)}.{name}"
