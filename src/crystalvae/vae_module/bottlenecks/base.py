"""What the VAE asks of a bottleneck, and of the posterior that it makes of encoded crystals."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.latent_source import Drawn, DrawOptions

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

    The encoder's output passes a linear map (`CrystalVAE.quant_conv`) to `input_dim` numbers per atom, from which
    `posterior` is made. Latents are `latent_dim` numbers per atom. `features` turns them into `output_dim` numbers per
    atom, which another linear map (`post_quant_conv`) hands to the decoder. `penalty_weights` holds the weight of each
    of `penalties`; `own_prior` says in words what `sample_latents` draws from.
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
        """Return the KL divergence from the prior in nats, by atom and latent dimension; None where it is constant.

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
        """Learn from a training step what gradients do not teach; called once per step, on every rank."""

    def sample_latents(
        self, crystals: CrystalBatch, *, temperature: float, generator: torch.Generator | None
    ) -> Float[Tensor, "N L"]:
        """Draw latents from this bottleneck's own prior for the atom counts of `crystals`.

        `temperature` 0 is the prior's mode, 1 the prior. The generator may live on another device.
        """
        raise NotImplementedError

    # ---- as a source of latents (`LatentSource`) ---------------------------------------------------------------------

    def check(self, options: DrawOptions) -> None:
        """Raise `ConfigError` for options that only a learned prior has an answer to."""
        if options.needs_prior:
            raise ConfigError(
                f"{', '.join(options.needs_prior)}: needs a learned prior, which this checkpoint does not hold; "
                "train one with crystalvae train-prior, or use ckpt_path=mp20-small"
            )

    def draw(self, crystals: CrystalBatch, *, options: DrawOptions, generator: torch.Generator) -> Drawn:
        """Draw latents from this bottleneck's own prior; of `options` the temperature is read."""
        latents = self.sample_latents(crystals, temperature=options.temperature, generator=generator)
        return Drawn(latents, crystals)


def as_bottleneck(module: object) -> Bottleneck:
    """Return what is a bottleneck; `ConfigError` for anything else."""
    if not isinstance(module, Bottleneck):
        raise ConfigError(f"bottleneck: got a {type(module).__name__}; expected a Bottleneck")
    return module
