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
NEGLIGIBLE_WEIGHT = 1e-3
"""Below this weight a KL of some ten nats per atom is less than a hundredth of the weighted reconstruction loss."""


def check_weights(weights: Mapping[str, float | None] | None) -> dict[str, float]:
    """Return a weight for each part of the reconstruction, the published ones where nothing is said, and `kl` if given.

    A `kl` of None is as if nothing had been said: the objective knows its own.
    """
    given = {key: value for key, value in (weights or {}).items() if key != "kl" or value is not None}
    for key, value in given.items():
        if key not in PUBLISHED_WEIGHTS:
            raise ConfigError(f"loss_weights.{key}: unknown part; expected some of {', '.join(PUBLISHED_WEIGHTS)}")
        check_number(f"loss_weights.{key}", value)
    parts = {key: value for key, value in PUBLISHED_WEIGHTS.items() if key != "kl"}
    return {**parts, **{key: float(value) for key, value in given.items() if value is not None}}


class ELBO(nn.Module):
    """Σ weight · reconstruction part + β(t) · KL (β-VAE, Higgins et al. 2017); without parameters.

    `weights` are the `loss_weights` of the model. β is `loss_weights.kl`, and `kl_weight` where that says nothing.
    `schedule` is any callable from the step, or the epoch where `schedule_unit` says so, to a factor that β is
    multiplied by (it does not take its place); null: always 1. `element_loss` and `reductions` as
    `reconstruction_losses`. With "mean" the KL is in nats per atom (summed over the latent dimensions), with "sum" in
    nats per crystal. `cluster_weight` above 0 adds that times `cluster_loss` of the crystals' mean latents, over
    `cluster_components` singular values.
    """

    def __init__(
        self,
        *,
        weights: Mapping[str, float | None],
        coord_loss: CoordLoss,
        latent_dim: int,
        kl_weight: float = 1e-5,
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
        check_number("objective.kl_weight", kl_weight)
        self.weights = {"kl": float(kl_weight), **check_weights(weights)}
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

    @property
    def changes(self) -> bool:
        """Whether the KL weight changes with time, as far as is known: a schedule of the user's own may."""
        return not isinstance(self.schedule, NoSchedule) or self.schedule.kl_start > 0

    @property
    def too_light(self) -> str | None:
        """Say in words what has been chosen that a KL weight of next to nothing makes no difference to; None else."""
        weight = self.weights["kl"]
        if not self.needs_kl or weight >= NEGLIGIBLE_WEIGHT:
            return None
        kind = type(self).__name__ if type(self) is not ELBO else type(self.schedule).__name__
        return (
            f"{kind} acts on a KL whose weight, loss_weights.kl, is {weight:g}: next to the reconstruction that is "
            f"nothing, and the model trains as it would without. Weights from {NEGLIGIBLE_WEIGHT:g} on can matter; "
            "loss_weights.kl=null takes the objective's own"
        )

    def factor(self, time: int) -> float:
        """Return the schedule's factor at a step (or epoch); `ConfigError` where that is no weight."""
        factor = float(self.schedule(time))
        if not math.isfinite(factor) or factor < 0:
            raise ConfigError(
                f"objective.schedule: gave {factor} at {self.schedule_unit} {time}; expected a number of at least 0"
            )
        return factor

    def kl_weight(self, time: int) -> float:
        """Return β times the schedule's factor at a step (or epoch)."""
        return self.weights["kl"] * self.factor(time)

    def time(self, step: int | None, epoch: int | None, *, beta: float | None = None) -> int:
        """Return the step, or the epoch where that is what the schedule counts.

        Raises `ConfigError` where it is not told and matters; a weight `beta` that takes the schedule's place does not
        need it.
        """
        time = step if self.schedule_unit == "step" else epoch
        if time is not None:
            return check_count(self.schedule_unit, time, at_least=0)
        if self.needs_time(beta):
            what = type(self if beta is not None else self.schedule).__name__
            raise ConfigError(
                f"losses: {what} changes the loss with the {self.schedule_unit}, and no Trainer is at work that "
                f"counts; give {self.schedule_unit}=, from 0"
            )
        return 0

    def needs_time(self, beta: float | None) -> bool:
        """Whether the loss is a function of time, with a KL weight of `beta` or (None) of the schedule's."""
        return self.changes and beta is None

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
        step: int | None = None,
        epoch: int | None = None,
        beta: float | None = None,
    ) -> dict[str, Tensor]:
        """Return `loss`, `recon_loss` (weighted), `kl_loss` (unweighted), `kl_weight`, and each part unweighted.

        `means` are the latents that evaluation uses, the posterior means of a Gaussian. `kl` is that of each atom and
        latent dimension in nats, None where the bottleneck has none. `penalties` are the bottleneck's further terms,
        unweighted numbers, added with `penalty_weights`. `step` or `epoch` is for the schedule; `beta` is a KL weight
        that takes the place of β and its schedule. Raises `ConfigError` where a schedule that moves is told no time.
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
            time = self.time(step, epoch, beta=beta)
            weight = self.kl_weight(time) if beta is None else check_number("beta", beta)
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
