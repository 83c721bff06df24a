"""The posterior of the latent: one Gaussian with diagonal covariance per atom."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""Log-variances are clamped to this range, so that neither their exponential nor its inverse overflows."""


def normal_noise(
    shape: Sequence[int], device: torch.device, generator: torch.Generator | None
) -> Float[Tensor, "*shape"]:
    """Return standard normal noise on a device, drawn where the generator lives: on any device the same."""
    source = device if generator is None else generator.device
    return torch.randn(*shape, generator=generator, device=source).to(device)


class DiagonalGaussianDistribution:
    """N(μ, diag σ²) over L latent dimensions for each of N atoms, from μ and log σ² side by side, (N, 2L).

    `deterministic`: σ counts as 0, draws are the mean, and the KL is taken as 0, as in the published code.

    Source: Kingma & Welling, "Auto-Encoding Variational Bayes" (2014), section 3 and appendix B.
    """

    def __init__(self, parameters: Float[Tensor, "N TwoL"], deterministic: bool = False) -> None:
        if parameters.shape[-1] % 2:
            raise ValueError(f"parameters: expected an even last size (mean and log-variance), got {parameters.shape}")
        self.parameters = parameters
        self.mean, logvar = parameters.float().chunk(2, dim=-1)
        self.logvar = logvar.clamp(*LOG_VARIANCE_RANGE)
        self.deterministic = deterministic

    @property
    def std(self) -> Float[Tensor, "N L"]:
        """Standard deviation σ."""
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Float[Tensor, "N L"]:
        """Variance σ²."""
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "N L"]:
        """Draw z = μ + σ·ε with ε from N(0, I); gradients flow to μ and σ. The generator may be another device's."""
        return self.reparameterize(normal_noise(self.mean.shape, self.mean.device, generator))

    def reparameterize(self, noise: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:
        """Return μ + σ·ε for given standard normal ε."""
        return self.mean + self.std * noise

    def mode(self) -> Float[Tensor, "N L"]:
        """Return the most probable latent, the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Float[Tensor, "N"]:
        """Return KL(self ‖ other) per atom in nats, the sum over latent dimensions; without `other` KL to N(0, I)."""
        return self.kl_per_dimension(other).sum(dim=-1)

    def kl_per_dimension(self, other: DiagonalGaussianDistribution | None = None) -> Float[Tensor, "N L"]:
        """Return the KL of each latent dimension in nats.

        To N(0, 1) it is ½ (μ² + σ² - 1 - log σ²), to N(μ', σ'²) ½ ((μ - μ')² / σ'² + σ²/σ'² - 1 - log σ²/σ'²).
        """
        if self.deterministic:
            return torch.zeros_like(self.mean)
        if other is None:
            return 0.5 * (self.mean.square() + self.var - 1.0 - self.logvar)
        ratio = self.logvar - other.logvar
        return 0.5 * ((self.mean - other.mean).square() / other.var + torch.exp(ratio) - 1.0 - ratio)
