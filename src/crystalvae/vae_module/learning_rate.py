"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from crystalvae.errors import ConfigError


def warmup_cosine_factor(step: int, *, total_steps: int, warmup_steps: int, min_factor: float) -> float:
    """Return what multiplies the learning rate: linear from 0 to 1, then half a cosine to `min_factor`.

    Source: Loshchilov & Hutter, SGDR (2017), eq. 5, without restarts.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_factor + (1.0 - min_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))


class WarmupCosine(LambdaLR):
    """`warmup_cosine_factor` over the whole run, with `warmup_steps` of warm-up, at most half of the run."""

    def __init__(self, *, optimizer: Optimizer, total_steps: int, warmup_steps: int, min_factor: float) -> None:
        if warmup_steps < 0 or not 0.0 <= min_factor <= 1.0:
            raise ConfigError(
                f"scheduler: got warmup_steps {warmup_steps}, min_factor {min_factor}; expected at least 0, and 0 to 1"
            )
        warmup_steps = min(warmup_steps, total_steps // 2)

        def factor(step: int) -> float:
            return warmup_cosine_factor(step, total_steps=total_steps, warmup_steps=warmup_steps, min_factor=min_factor)

        super().__init__(optimizer, factor)
