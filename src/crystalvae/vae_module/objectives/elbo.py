"""The evidence lower bound with a weight on each part, and what the KL's place can be taken by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.checks import check_choice, check_count, check_number
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.decoders.heads import DecodedCrystals
from crystalvae.vae_module.layers.pooling import mean_over_atoms
from crystalvae.vae_module.objectives.cluster import cluster_loss
from crystalvae.vae_module.objectives.kl_schedules import NoSchedule
from crystalvae.vae_module.objectives.reconstruction import (
    CoordLoss,
    ElementLoss,
    check_reductions,
    reconstruction_losses,
)

ScheduleUnit = Literal["step", "epoch"]
PUBLISHED_WEIGHTS = {"atom_types": 1.0, "frac_coords": 10.0, "lengths": 1.0, "angles": 10.0, "kl": 1e-5}
"""Weights of the published Chemeleon2 VAE."""


def check_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return a weight for every part of the loss; the published ones where nothing is said."""
    given = dict(weights or {})
    for key, value in given.items():
        if key not in PUBLISHED_WEIGHTS:
            raise ConfigError(f"loss_weights.{key}: unknown part; expected some of {', '.join(PUBLISHED_WEIGHTS)}")
        check_number(f"loss_weights.{key}", value)
    return {**PUBLISHED_WEIGHTS, **given}


class ELBO(nn.Module):
    """Σ weight · reconstruction part + β(t) · KL (β-VAE, Higgins et al. 2017); without parameters.

    `weights` are the `loss_weights` of the model, β = `loss_weights.kl`. `schedule` is any callable from the step, or
    the epoch where `schedule_unit` says so, to a factor of β; null: always 1. `element_loss` and `reductions` as
    `reconstruction_losses`. With "mean" the KL is in nats per atom (summed over the latent dimensions), with "sum" in
    nats per crystal. `cluster_weight` above 0 adds that times `cluster_loss` of the crystals' mean latents, over
    `cluster_components` singular values.
    """

    def __init__(
        self,
        *,
        weights: Mapping[str, float],
        coord_loss: CoordLoss,
        latent_dim: int,
        schedule: Callable[[int], float] | None = None,
        schedule_unit: ScheduleUnit = "step",
        element_loss: ElementLoss = "cross_entropy",
        reductions: Mapping[str, Any] | None = None,
        cluster_weight: float = 0.0,
        cluster_components: int = 4,
    ) -> None:
        super().__init__()
        check_choice("coord_loss", coord_loss, get_args(CoordLoss))
        check_choice("objective.schedule_unit", schedule_unit, get_args(ScheduleUnit))
        check_choice("objective.element_loss", element_loss, get_args(ElementLoss))
        if schedule is not None and not callable(schedule):
            raise ConfigError(f"objective.schedule: got {schedule!r}; expected a function of the step")
        check_number("objective.cluster_weight", cluster_weight)
        check_count("objective.cluster_components", cluster_components)
        if cluster_weight > 0 and cluster_components > latent_dim:
            raise ConfigError(
                f"objective.cluster_components: got {cluster_components}; expected at most latent_dim, {latent_dim}, "
                "beyond which all singular values are 0"
            )
        self.weights = check_weights(weights)
        self.coord_loss: CoordLoss = coord_loss
        self.element_loss: ElementLoss = element_loss
        self.schedule = NoSchedule() if schedule is None else schedule
        self.schedule_unit: ScheduleUnit = schedule_unit
        self.reductions = check_reductions(reductions)
        self.cluster_weight, self.cluster_components = cluster_weight, cluster_components

    @property
    def needs_kl(self) -> bool:
        """Whether there are options that mean nothing to a bottleneck without a KL."""
        return not isinstance(self.schedule, NoSchedule)

    def kl_weight(self, time: int) -> float:
        """Return β times the schedule's factor at a step (or epoch); `ConfigError` where that is no weight."""
        factor = float(self.schedule(time))
        if not math.isfinite(factor) or factor < 0:
            raise ConfigError(
                f"objective.schedule: gave {factor} at {self.schedule_unit} {time}; expected a number of at least 0"
            )
        return self.weights["kl"] * factor

    def forward(
        self,
        decoded: DecodedCrystals,
        target: CrystalBatch,
        batch: TrainingBatch,
        *,
        means: Float[Tensor, "N L"],
        kl: Float[Tensor, "N L"] | None,
        penalties: Mapping[str, Tensor] | None = None,
        penalty_weights: Mapping[str, float] | None = None,
        step: int = 0,
        epoch: int = 0,
    ) -> dict[str, Tensor]:
        """Return `loss`, `recon_loss` (weighted), `kl_loss` (unweighted), `kl_weight`, and each part unweighted.

        `means` are the latents that evaluation uses, the posterior means of a Gaussian. `kl` is that of each atom and
        latent dimension in nats, None where the bottleneck has none. `penalties` are the bottleneck's further terms,
        unweighted numbers, added with `penalty_weights`.
        """
        parts = reconstruction_losses(
            decoded,
            target,
            batch,
            coord_loss=self.coord_loss,
            element_loss=self.element_loss,
            reductions=self.reductions,
        )
        recon = torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()
        loss, terms = recon, dict(penalties or {})
        for name, value in terms.items():
            loss = loss + (penalty_weights or {})[name] * value
        if kl is None and self.needs_kl:
            raise ConfigError(
                f"objective: {type(self).__name__} with this schedule acts on a KL, which this bottleneck does not "
                "have; use objective=elbo with schedule=none"
            )
        if kl is not None:
            time = step if self.schedule_unit == "step" else epoch
            weight = self.kl_weight(time)
            mean = kl.sum(dim=0) / (batch.mean_atoms if self.reductions["kl"] == "mean" else batch.mean_crystals)
            penalty, named = self.kl_penalty(mean, batch, time)
            loss = loss + weight * penalty
            terms |= {"kl_loss": mean.sum(), "kl_weight": recon.new_tensor(weight), **named}
        if self.cluster_weight > 0:
            embeddings = mean_over_atoms(means, target)
            terms["cluster_loss"] = cluster_loss(embeddings, batch, components=self.cluster_components)
            loss = loss + self.cluster_weight * terms["cluster_loss"]
        return {"loss": loss, "recon_loss": recon, **terms, **parts}

    def kl_penalty(
        self,
        kl: Float[Tensor, "L"],
        batch: TrainingBatch,  # noqa: ARG002
        time: int,  # noqa: ARG002
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return what the KL weight multiplies, and what else to log, from the mean KL of each latent dimension."""
        return kl.sum(), {}
