"""What can take the KL's place in the evidence lower bound: a KL of a given size, or one with a floor."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.checks import check_count, check_number
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.vae_module.objectives.batch_mean import batch_mean
from crystalvae.vae_module.objectives.elbo import ELBO


def capacity(time: int, *, capacity_max: float, capacity_num_iter: int) -> float:
    """Return C(t) in nats: from 0 to `capacity_max` in `capacity_num_iter` steps, then constant."""
    return capacity_max * min(1.0, time / capacity_num_iter)


def capacity_penalty(kl: Float[Tensor, "L"], allowed: float) -> Float[Tensor, ""]:
    """Return |KL - C| in nats, with KL the sum over latent dimensions (Burgess et al. 2018)."""
    return (kl.sum() - allowed).abs()


def free_bits_penalty(kl: Float[Tensor, "L"], floor: float) -> Float[Tensor, ""]:
    """Return Σ max(λ, KL) over latent dimensions in nats (Kingma et al. 2016, section C.8).

    A number whose KL lies below the floor λ costs λ whatever it is, and so gets no gradient.
    """
    return torch.where(kl > floor, kl, kl.new_tensor(floor)).sum()


class CapacityELBO(ELBO):
    """Σ weight · reconstruction part + γ · |KL - C(t)|, C from 0 to `capacity_max` nats.

    γ is `loss_weights.kl`, and `kl_weight` where that says nothing. C grows linearly for `capacity_num_iter` steps, or
    epochs where `schedule_unit` says so. KL and C are in nats per atom, or in nats per crystal with `reductions.kl:
    sum`. Source: Burgess et al., "Understanding disentangling in β-VAE" (2018), section 5. The other arguments are
    those of `ELBO`.
    """

    def __init__(
        self, *, capacity_max: float, capacity_num_iter: int, kl_weight: float = 1000.0, **options: Any
    ) -> None:
        super().__init__(kl_weight=kl_weight, **options)
        check_number("objective.capacity_max", capacity_max)
        check_count("objective.capacity_num_iter", capacity_num_iter)
        self.capacity_max, self.capacity_num_iter = float(capacity_max), capacity_num_iter

    @property
    def needs_kl(self) -> bool:
        """Return true."""
        return True

    def needs_time(self, beta: float | None) -> bool:  # noqa: ARG002  C is a function of time whatever the weight
        """Return true: C grows."""
        return True

    def kl_penalty(
        self, kl: Float[Tensor, "L"], batch: TrainingBatch, time: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return |KL - C(t)|, and beside it C(t) as `capacity`."""
        allowed = capacity(time, capacity_max=self.capacity_max, capacity_num_iter=self.capacity_num_iter)
        penalty = capacity_penalty(batch_mean(kl, batch), allowed)
        return penalty, {"kl_penalty": penalty, "capacity": penalty.new_tensor(allowed)}


class FreeBitsELBO(ELBO):
    """Σ weight · reconstruction part + β(t) · Σ max(λ, KL of a latent dimension), λ = `free_bits` nats.

    The KL of a latent dimension is its mean over the atoms of the batch (with `reductions.kl: sum` its sum over a
    crystal, averaged over crystals), before the maximum, as in the source: Kingma et al., "Improving Variational
    Inference with Inverse Autoregressive Flow" (2016), section C.8. The other arguments are those of `ELBO`.
    """

    def __init__(self, *, free_bits: float, kl_weight: float = 1.0, **options: Any) -> None:
        super().__init__(kl_weight=kl_weight, **options)
        check_number("objective.free_bits", free_bits)
        self.free_bits = float(free_bits)

    @property
    def needs_kl(self) -> bool:
        """Return true."""
        return True

    def kl_penalty(
        self,
        kl: Float[Tensor, "L"],
        batch: TrainingBatch,
        time: int,  # noqa: ARG002
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the KL with its floor."""
        penalty = free_bits_penalty(batch_mean(kl, batch), self.free_bits)
        return penalty, {"kl_penalty": penalty}
