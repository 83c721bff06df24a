"""Train a property head on the latents of a trained VAE."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from crystalvae.build import build
from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.commands.train import run_training
from crystalvae.errors import ConfigError
from crystalvae.predictor_module.predictor import LatentPredictor
from crystalvae.vae_module.vae_module import VAEModule


def train_predictor(config: DictConfig) -> str:
    """Train as `config` describes on the latents of `vae_ckpt_path`; returns what to tell the user at the end."""

    def start() -> LatentPredictor:
        vae = VAEModule.load_from_checkpoint(bundled.find(str(config.vae_ckpt_path)))
        described = OmegaConf.create({**config.predictor, "vae": {**vae.config, "prior": None}})
        module = build("predictor", described)
        if not isinstance(module, LatentPredictor):
            raise ConfigError(f"predictor._target_: got {type(module).__name__}; expected a LatentPredictor")
        checkpoints.load_weights(module.vae_module.vae, vae.vae.state_dict())
        module.vae_module.statistics = vae.statistics
        return module

    return run_training(config, start, kind="predictor", model_keys=("vae", "head", "target", "optimizer"))
