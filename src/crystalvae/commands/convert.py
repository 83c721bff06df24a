"""Turn a published checkpoint into one of ours."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.checks import check_path
from crystalvae.commands.inputs import data_module
from crystalvae.errors import CheckpointError, OutputError
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.vae_module.vae_module import VAEModule


def convert(config: DictConfig) -> str:
    """Write the model of `ckpt_path` to `output` as plain data; returns what to tell the user."""
    source, target = check_path("ckpt_path", config.ckpt_path), check_path("output", config.output)
    if target.exists() and not config.overwrite:
        raise OutputError(f"{target}: exists already; give another output, or overwrite=true")
    vae = None if config.vae_ckpt_path is None else bundled.find(check_path("vae_ckpt_path", config.vae_ckpt_path))
    content = checkpoints.read(bundled.find(source), plain_data_only=False, vae=vae)
    meta: dict[str, Any] = checkpoints.check_metadata(content, "vae|prior|predictor")
    if not str(meta["statistics"].get("dataset")).startswith("unknown (converted"):
        raise CheckpointError(f"{source}: is a checkpoint of ours already; nothing to convert")
    if meta["kind"] == "prior":
        checkpoints.rebuild(LatentPrior, meta["config"], content["state_dict"])
    else:
        checkpoints.rebuild(VAEModule, meta["config"], content["state_dict"])
    if config.dataset is not None:
        meta["statistics"] = data_module(str(config.dataset), seed=0).statistics
    checkpoints.write({"state_dict": content["state_dict"], checkpoints.KEY: meta}, target)
    use = "sample" if meta["kind"] == "prior" else "evaluate"
    return f"{target}: a {meta['kind']} as plain data\nnext:  crystalvae {use} ckpt_path={target}"
