"""The continuous bottleneck: one Gaussian with diagonal covariance per atom."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.bottlenecks.base import Bottleneck, Posterior
from crystalvae.vae_module.distribution import DiagonalGaussianDistribution, normal_noise


class GaussianBottleneck(Bottleneck):
    """N(μ, diag σ²) over `latent_dim` numbers per atom, held against N(0, I); without parameters of its own.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes" (2014).
    """

    def __init__(self, *, latent_dim: int) -> None:
        if latent_dim < 1:
            raise ConfigError(f"latent_dim: got {latent_dim}; expected at least 1")
        super().__init__(latent_dim=latent_dim, input_dim=2 * latent_dim, output_dim=latent_dim)

    def posterior(self, parameters: Float[Tensor, "N I"], crystals: CrystalBatch) -> DiagonalGaussianDistribution:  # noqa: ARG002
        """Return the Gaussian of mean and log-variance, side by side in `parameters`."""
        return DiagonalGaussianDistribution(parameters)

    def kl(
        self,
        posterior: Posterior,
        latents: Float[Tensor, "N L"],  # noqa: ARG002
        crystals: CrystalBatch,  # noqa: ARG002
    ) -> Float[Tensor, "N L"]:
        """Return KL(posterior ‖ N(0, I)) by atom and latent dimension."""
        assert isinstance(posterior, DiagonalGaussianDistribution)  # noqa: S101  made above
        return posterior.kl_per_dimension()

    def sample_latents(
        self, crystals: CrystalBatch, *, temperature: float, generator: torch.Generator | None
    ) -> Float[Tensor, "N L"]:
        """Draw from N(0, temperature²·I)."""
        return temperature * normal_noise((crystals.num_nodes, self.latent_dim), crystals.device, generator)
