"""Crystals from the bottleneck's own prior."""

from __future__ import annotations

import torch

from src.data.batch import CrystalBatch
from src.errors import ConfigError
from src.vae_module.bottlenecks.base import check_temperature
from src.vae_module.vae import CrystalVAE


def sample_crystals(
    vae: CrystalVAE, template: CrystalBatch, *, temperature: float, generator: torch.Generator | None
) -> CrystalBatch:
    """Decode latents from the bottleneck's own prior for the atom counts, and the given elements, of `template`.

    A generator may live on another device than the model: the same seed gives the same latents on every device if it is
    a CPU generator.
    """
    check_temperature(temperature)
    if not vae.atom_type_predict and bool((template.atom_types == 0).any()):
        raise ConfigError(
            "sample: this model predicts structures for given elements; expected a batch with atom_types, got element 0"
        )
    latents = vae.bottleneck.draw(template, temperature=temperature, generator=generator)
    return vae.to_crystals(vae.decode(latents, template), template)
