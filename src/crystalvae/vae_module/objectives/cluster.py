"""A loss that pulls the crystals of a batch into few directions of the latent space, so that they form clusters."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.data.training_batch import TrainingBatch
from crystalvae.vae_module.objectives.batch_mean import batch_mean


def cluster_loss(embeddings: Float[Tensor, "B L"], batch: TrainingBatch, *, components: int) -> Float[Tensor, ""]:
    """Return Σ √s over the `components` largest singular values s of H Hᵀ / B, with H (B, L) one row per crystal.

    H Hᵀ is the Gram matrix of the crystals. Its singular values other than 0 are those of the smaller Hᵀ H, of which
    they are taken; so √s are the singular values of H / √B. As VAME's `cluster_loss` (Luxem et al. 2022). Values too
    small to tell from rounding errors are left out, and get no gradient, which for √s has no bound at 0.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = embeddings.float()
        moment = batch_mean(rows.T @ rows / batch.mean_crystals, batch)
        values = torch.linalg.eigvalsh(moment).flip(0)[:components]  # symmetric, none negative: singular values
    told = values > torch.finfo(values.dtype).eps * len(moment) * values.detach().max()
    return torch.where(told, values, 1.0).sqrt().where(told, 0.0).sum()
