"""Train a prior over the latents of a trained VAE."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from crystalvae.build import build
from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.commands.train import check_exclusive, run_training
from crystalvae.errors import ConfigError
from crystalvae.prior_module.latent_diffusion import LatentDiffusion
from crystalvae.prior_module.latent_flow import LatentFlow
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.prior_module.symmetric_flow import SymmetricFlow
from crystalvae.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)


def train_prior(config: DictConfig) -> str:
    """Train as `config` describes on the latents of `vae_ckpt_path`; returns what to tell the user at the end."""
    check_exclusive(config)
    keys = ("vae", "prior", "trained", "optimizer")
    return run_training(config, lambda: prior_module(config), kind="prior", model_keys=keys)


def prior_module(config: DictConfig) -> LatentPrior:
    """Build what is to be trained: over the VAE of `vae_ckpt_path`, from the prior of `ckpt_path` if there is one."""
    vae = VAEModule.load_from_checkpoint(bundled.find(str(config.vae_ckpt_path)))
    if vae.prior is not None:
        vae = _without_prior(vae)
    described = OmegaConf.create({**config.prior_module, "vae": vae.config})
    module = build("prior_module", described)
    if not isinstance(module, LatentPrior):
        raise ConfigError(f"prior_module._target_: got {type(module).__name__}; expected a LatentPrior")
    checkpoints.load_weights(module.vae_module.vae, vae.vae.state_dict())
    module.vae_module.statistics = vae.statistics
    if config.ckpt_path is not None:
        path = bundled.find(Path(config.ckpt_path))
        content = checkpoints.read(path, plain_data_only=True)
        meta = checkpoints.check_metadata(content, "prior")
        _, weights = checkpoints.vae_within("prior", meta["config"], content["state_dict"])
        prefix = "prior."  # the VAE stays that of vae_ckpt_path
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        _start_from(module.prior, own)
    return module


def _start_from(prior: LatentFlow | LatentDiffusion, weights: Mapping[str, Tensor]) -> None:
    """Take over a prior's weights; where this one is told genes and that one was not, the flow's alone.

    Such a prior has no conditions that it was not given, so what it knew as "unknown" becomes what it knows.
    """
    if not isinstance(prior, SymmetricFlow) or any(name.startswith("gene.") for name in weights):
        checkpoints.load_weights(prior, weights)
        return
    unknown, bias = "conditions.unknown", "denoiser.size_embedder.2.bias"
    kept = {name: value for name, value in weights.items() if name.startswith(("denoiser.", "latent_", "signal"))}
    if not prior.names and unknown in weights:
        kept[bias] = kept[bias] + weights[unknown].sum(dim=0)
    new, _ = checkpoints.load_shared_weights(prior, kept)
    log.info(
        "starting from a prior that is not told genes: %d of %d weights are new", len(new), len(prior.state_dict())
    )


def _without_prior(module: VAEModule) -> VAEModule:
    plain = VAEModule(**{**module.config, "prior": None})
    checkpoints.load_weights(plain.vae, module.vae.state_dict())
    plain.statistics = module.statistics
    return plain
