"""From crystals to the latents that operations work on, and back."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.distribution import DiagonalGaussianDistribution
from crystalvae.vae_module.vae import CrystalVAE


def continuous_latents(vae: CrystalVAE, crystals: CrystalBatch, operation: str) -> Float[Tensor, "N L"]:
    """Return the posterior mean of each atom; `ConfigError` where latents are no points of a continuous space."""
    posterior = vae.encode(crystals)
    if not isinstance(posterior, DiagonalGaussianDistribution):
        raise ConfigError(
            f"{operation}: needs a Gaussian latent for each atom, which can be moved freely; this model's bottleneck "
            f"gives a {type(posterior).__name__}. Use a model with the gaussian bottleneck"
        )
    return posterior.mode()


def decode_latents(vae: CrystalVAE, latents: Float[Tensor, "N L"], template: CrystalBatch) -> CrystalBatch:
    """Decode latents for the atom counts of `template`, and its elements where they are given."""
    return vae.to_crystals(vae.decode(latents, template), template)


@torch.no_grad()
def reconstruct(
    vae: CrystalVAE,
    crystals: CrystalBatch,
    *,
    deterministic: bool,
    generator: torch.Generator | None = None,
    batch_size: int = 512,
) -> CrystalBatch:
    """Encode and decode crystals: with the posterior's mode, or a draw from it unless `deterministic`."""
    parts = []
    for start in range(0, len(crystals), batch_size):
        part = crystals[start : start + batch_size]
        posterior = vae.encode(part)
        latents = posterior.mode() if deterministic else posterior.sample(generator)
        parts.append(decode_latents(vae, latents, part))
    return CrystalBatch.cat(parts)
