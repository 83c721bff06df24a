"""Crystals from latent noise."""

from __future__ import annotations

import math

import torch

from src.data.batch import CrystalBatch
from src.errors import ConfigError
from src.vae_module.vae import CrystalVAE


def sample_crystals(
    vae: CrystalVAE, template: CrystalBatch, *, temperature: float, generator: torch.Generator | None
) -> CrystalBatch:
    """Decode z drawn from N(0, temperature²·I) for the atom counts, and the given elements, of `template`.

    A generator may live on another device than the model: the same seed gives the same latents on every device if it is
    a CPU generator.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"temperature: got {temperature}; expected a number of at least 0")
    if not vae.atom_type_predict and bool((template.atom_types == 0).any()):
        raise ConfigError(
            "sample: this model predicts structures for given elements; expected a batch with atom_types, got element 0"
        )
    source = template.device if generator is None else generator.device
    noise = torch.randn(template.num_nodes, vae.latent_dim, generator=generator, device=source)
    latents = temperature * noise.to(template.device)
    return vae.to_crystals(vae.decode(latents, template), template)
