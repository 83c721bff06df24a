"""What the VAE asks of a bottleneck, and of the posterior that it makes of encoded crystals."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError

DEFAULT_BOTTLENECK = {"_target_": "crystalvae.vae_module.bottlenecks.gaussian.GaussianBottleneck"}
"""What a model without a word about its bottleneck has."""


@runtime_checkable
class Posterior(Protocol):
    """Where the latents of N encoded atoms lie, L numbers each."""

    mean: Float[Tensor, "N L"]

    @property
    def var(self) -> Float[Tensor, "N L"]:
        """Variance; 0 where the latent is certain."""
        ...

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "N L"]:
        """Draw latents."""
        ...

    def reparameterize(self, noise: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:
        """Return the latents for given standard normal noise; gradients flow through them."""
        ...

    def mode(self) -> Float[Tensor, "N L"]:
        """Return the latents that evaluation uses."""
        ...


class Bottleneck(nn.Module):
    """Base of the bottlenecks.

    The encoder's output passes a linear map (`CrystalVAE.quant_conv`) to `input_dim` numbers an atom, from which
    `posterior` is made. Latents are `latent_dim` numbers an atom. `features` turns them into `output_dim` numbers an
    atom, which another linear map (`post_quant_conv`) hands to the decoder. `penalty_weights` holds the weight of each
    of `penalties`; `own_prior` says in words what `draw` draws from.
    """

    own_prior = "standard normal noise"

    def __init__(self, *, latent_dim: int, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.latent_dim, self.input_dim, self.output_dim = latent_dim, input_dim, output_dim
        self.penalty_weights: dict[str, float] = {}

    def posterior(self, parameters: Float[Tensor, "N I"], crystals: CrystalBatch) -> Posterior:
        """Return the posterior for what `quant_conv` says of each atom; of `crystals` only atom counts are read."""
        raise NotImplementedError

    def features(self, latents: Float[Tensor, "N L"], crystals: CrystalBatch) -> Float[Tensor, "N O"]:  # noqa: ARG002
        """Return what the decoder gets to see of latents."""
        return latents

    def kl(
        self,
        posterior: Posterior,
        latents: Float[Tensor, "N L"],
        crystals: CrystalBatch,
    ) -> Float[Tensor, "N L"] | None:
        """Return the KL divergence from the prior in nats, by atom and latent number; None where it is constant.

        `latents` are those that were drawn from `posterior`: they may decide the prior of others.
        """
        raise NotImplementedError

    def penalties(self, posterior: Posterior, *, atoms: float) -> dict[str, Tensor]:  # noqa: ARG002
        """Return further terms of the loss, unweighted, by name: sums over what is here divided by `atoms`."""
        return {}

    def metrics(
        self,
        posterior: Posterior,  # noqa: ARG002
        latents: Float[Tensor, "N L"],  # noqa: ARG002
        crystals: CrystalBatch,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Return what is logged beside the loss, without gradients."""
        return {}

    def update(self, posterior: Posterior, batch: TrainingBatch) -> None:
        """Learn from a training step what gradients do not teach; called once a step, on every rank."""

    def draw(
        self, crystals: CrystalBatch, *, temperature: float, generator: torch.Generator | None
    ) -> Float[Tensor, "N L"]:
        """Draw latents from this bottleneck's own prior for the atom counts of `crystals`.

        `temperature` 0 is the prior's mode, 1 the prior. The generator may live on another device.
        """
        raise NotImplementedError


def check_temperature(temperature: float) -> None:
    """Raise `ConfigError` unless it is a finite number of at least 0."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"temperature: got {temperature}; expected a number of at least 0")
