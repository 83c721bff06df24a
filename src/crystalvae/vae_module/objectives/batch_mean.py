"""Means over the global batch, for terms of the loss that are no sums over atoms or crystals."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from crystalvae.data.training_batch import TrainingBatch


def batch_mean(share: Tensor, batch: TrainingBatch) -> Tensor:
    """Return the mean over processes of each one's `share`, with gradients to this process's alone.

    A share is a sum over what is here divided by `mean_atoms` or `mean_crystals`. A curved function f of the mean m
    then gets the gradient f'(m) · ∂share on each process, and DDP's average of these is the gradient of f(m): as if
    one process had seen the whole batch.
    """
    if batch.world_size == 1:
        return share
    total = share.detach().clone()
    dist.all_reduce(total)
    return share + (total / batch.world_size - share).detach()
