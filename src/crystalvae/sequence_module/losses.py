"""The loss of a sequence VAE, part by part, as published for VAME (Luxem et al., Commun. Biol. 5, 1267, 2022).

Letters: B windows, T frames, S frames that follow, F features of a frame, L latent dimensions.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from crystalvae.checks import check_count, check_number
from crystalvae.errors import ConfigError

Reduction = Literal["mean", "sum"]
AnnealingFunction = Literal["linear", "sigmoid"]
ANNEALED = 0.99
"""From an annealing weight above this on the loss is the whole loss."""
_SLOPE = 0.9
"""Of the sigmoid, per epoch."""


def reconstruction_loss(
    windows: Float[Tensor, "B T F"], reconstruction: Float[Tensor, "B T F"], reduction: Reduction = "sum"
) -> Float[Tensor, ""]:
    """Return the squared error of the decoded windows: its mean over all numbers, or its sum."""
    return F.mse_loss(reconstruction, windows, reduction=check_reduction("reduction", reduction))


def future_reconstruction_loss(
    future: Float[Tensor, "B S F"], prediction: Float[Tensor, "B S F"], reduction: Reduction = "sum"
) -> Float[Tensor, ""]:
    """Return the squared error of the predicted frames: its mean over all numbers, or its sum."""
    return F.mse_loss(prediction, future, reduction=check_reduction("reduction", reduction))


def kullback_leibler_loss(mean: Float[Tensor, "B L"], logvar: Float[Tensor, "B L"]) -> Float[Tensor, ""]:
    """Return KL(N(μ, σ²) ‖ N(0, 1)) in nats, averaged over windows and latent dimensions."""
    return -0.5 * (1.0 + logvar - mean.square() - logvar.exp()).mean()


def cluster_loss(latents: Float[Tensor, "B L"], clusters: int, weight: float = 1.0) -> Float[Tensor, ""]:
    """Return `weight` · Σ √s over the `clusters` largest singular values s of the batch's Gram matrix Z Zᵀ / B.

    A batch that lies near few points has few such values: the loss pulls latents into clusters (a spectral relaxation
    of k-means). √s are the singular values of Z / √B, which are computed: their gradient is finite also where s is 0.
    Where batch or latent space have fewer than `clusters` dimensions, all values count.
    """
    check_count("clusters", clusters)
    values = torch.linalg.svdvals(latents.float()) / math.sqrt(len(latents))
    return weight * values[:clusters].sum()


def kl_annealing(epoch: int, kl_start: int, annealtime: int, function: AnnealingFunction = "linear") -> float:
    """Return the annealing weight of an epoch, counted from 0: 0 up to `kl_start`, then rising to 1.

    linear: min(1, (epoch - kl_start) / annealtime). sigmoid: 1 / (1 + exp(-0.9 (epoch - annealtime))), in which
    `annealtime` is the epoch of weight one half.
    """
    if function not in get_args(AnnealingFunction):
        raise ConfigError(f"annealing.function: got {function!r}; expected linear or sigmoid")
    if epoch <= kl_start:
        return 0.0
    if function == "linear":
        return min(1.0, (epoch - kl_start) / annealtime)
    return 1.0 / (1.0 + math.exp(-_SLOPE * (epoch - annealtime)))


def gaussian(
    windows: Float[Tensor, "B T F"], noise: float = 0.8, *, generator: torch.Generator | None = None
) -> Float[Tensor, "B T F"]:
    """Add normal noise of `noise` times each feature's standard deviation within its window, for the encoder's input.

    A feature that stands still within a window stays as it is.
    """
    check_number("noise", noise)
    spread = windows.std(dim=1, keepdim=True)
    normal = torch.randn(windows.shape, generator=generator, device=windows.device, dtype=windows.dtype)
    return windows + noise * spread * normal


def check_reduction(key: str, reduction: str) -> str:
    """Return a reduction; `ConfigError` naming the key where it is none."""
    if reduction not in get_args(Reduction):
        raise ConfigError(f"{key}: got {reduction!r}; expected mean or sum")
    return reduction
