"""Which published model a pickled checkpoint holds, and its conversion."""

from __future__ import annotations

from pathlib import Path

from crystalvae.checkpoints.chemeleon2 import Published, convert_vae, read_inert, refuse
from crystalvae.checkpoints.chemeleon2_diffusion import FIRST_WEIGHT, convert_diffusion
from crystalvae.errors import CheckpointError


def convert(path: Path, *, vae: Path | None = None) -> Published:
    """Read a published checkpoint: a VAE, or a latent diffusion with its VAE, whose settings the file `vae` has."""
    content = read_inert(path)
    weights, settings = content.get("state_dict"), content.get("hyper_parameters")
    if not isinstance(weights, dict) or not isinstance(settings, dict):
        refuse(path, "expected state_dict and hyper_parameters")
    try:
        if FIRST_WEIGHT in weights or any(".lora_" in str(name) for name in weights):
            return convert_diffusion(path, content, vae=vae)
        if vae is not None:
            raise CheckpointError(f"{path}: holds a VAE with its settings; leave vae_ckpt_path out")
        return convert_vae(path, content)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError, RuntimeError) as error:
        refuse(path, f"{type(error).__name__}: {error}")
