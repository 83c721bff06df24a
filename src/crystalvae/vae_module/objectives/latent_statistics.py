"""Whether a latent space is used: active units and the KL of each latent dimension over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

ACTIVE_VARIANCE = 0.01
"""A latent dimension is active where its posterior mean varies by more than this over the data (Burda et al. 2016)."""


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Moments of the posterior means over atoms, (L,) each, and the mean KL of each latent dimension in nats.

    `count` atoms; `variance` is that of the population. Statistics of parts of a data set are put together by `merged`
    as if all had been seen at once (Chan et al. 1979), which loses no precision to large means.
    """

    count: Float[Tensor, ""]
    mean: Float[Tensor, "L"]
    variance: Float[Tensor, "L"]
    kl: Float[Tensor, "L"] | None

    @classmethod
    def of(cls, means: Float[Tensor, "N L"], kl: Float[Tensor, "N L"] | None) -> LatentStatistics:
        """Take the statistics of the posterior means of N atoms, and of their KL where there is one."""
        means = means.detach().float()
        return cls(
            count=means.new_tensor(float(len(means))),
            mean=means.mean(dim=0),
            variance=means.var(dim=0, correction=0),
            kl=None if kl is None else kl.detach().float().mean(dim=0),
        )

    @classmethod
    def merged(cls, parts: Iterable[LatentStatistics]) -> LatentStatistics:
        """Return the statistics of all atoms of at least one part; the KL where all parts have it."""
        whole = list(parts)
        counts = torch.stack([part.count for part in whole])
        share = (counts / counts.sum())[:, None]
        means = torch.stack([part.mean for part in whole])
        mean = (share * means).sum(dim=0)
        variances = torch.stack([part.variance for part in whole]) + (means - mean).square()
        kls = [part.kl for part in whole if part.kl is not None]
        kl = (share * torch.stack(kls)).sum(dim=0) if len(kls) == len(whole) else None
        return cls(count=counts.sum(), mean=mean, variance=(share * variances).sum(dim=0), kl=kl)

    def gathered(self, gather: Callable[[Tensor], Any]) -> LatentStatistics:
        """Return the statistics over all processes; `gather` stacks a tensor of each along a new first dimension."""
        kls = None if self.kl is None else gather(self.kl)
        parts = zip(gather(self.count), gather(self.mean), gather(self.variance), strict=True)
        return LatentStatistics.merged(
            LatentStatistics(count, mean, variance, None if kls is None else kls[rank])
            for rank, (count, mean, variance) in enumerate(parts)
        )

    @property
    def active_units(self) -> int:
        """Number of latent dimensions whose posterior mean varies by more than 0.01 over the atoms."""
        return int((self.variance > ACTIVE_VARIANCE).sum())

    def metrics(self) -> dict[str, float]:
        """Return what is logged: `active_units`, and `kl_dim_0`, `kl_dim_1`, … in nats."""
        kl = [] if self.kl is None else self.kl.tolist()
        return {"active_units": float(self.active_units), **{f"kl_dim_{i}": value for i, value in enumerate(kl)}}
