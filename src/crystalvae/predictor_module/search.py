"""Gradient search in the latent space for crystals of a wanted property."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.checks import check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.predictor_module.property_head import PropertyHead
from crystalvae.vae_module.latent_space.latents import continuous_latents, decode_latents
from crystalvae.vae_module.layers.pooling import mean_over_atoms
from crystalvae.vae_module.vae import CrystalVAE


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How latents are moved.

    `steps` of Adam (Kingma & Ba 2015) with `learning_rate`, in standard deviations of the latents. `penalty` weighs
    the squared distance (per atom and latent dimension, in standard deviations) to the nearest latents that are known
    to be those of a crystal: at first the start's, and every `project_every` steps those of the crystal that the
    current latents decode to, encoded anew.
    """

    steps: int = 200
    learning_rate: float = 0.1
    penalty: float = 1.0
    project_every: int = 20

    def __post_init__(self) -> None:
        check_count("search.steps", self.steps)
        check_count("search.project_every", self.project_every)
        for name in ("learning_rate", "penalty"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"search.{name}: got {value}; expected a number of at least 0")


def search_latents(
    vae: CrystalVAE, head: PropertyHead, crystals: CrystalBatch, target: float, options: SearchOptions
) -> CrystalBatch:
    """Return crystals near given ones of which the head predicts `target`, with what it predicts as properties.

    Minimised for each crystal is ((p - t) / s)² + penalty · mean over atoms and numbers of ((z - z_known) / σ)², with p
    the prediction, t the target, s and σ the standard deviations of property and latents in the training set. Of the
    crystals decoded on the way, the start's reconstruction among them, the one is returned whose prediction, encoded
    anew, is nearest to the target.

    Raises `ConfigError` for a target that is no number.
    """
    if not isinstance(target, (int, float)) or isinstance(target, bool) or not math.isfinite(target):
        raise ConfigError(f"search: got target {target!r}; expected a finite number")
    start = continuous_latents(vae, crystals, "search").detach()
    current = best = _Found.decoded(vae, head, start, crystals)
    for first in range(0, options.steps, options.project_every):
        count = min(options.project_every, options.steps - first)
        latents = descend(head, current.latents, current.encoded, crystals, target, options, count)
        current = _Found.decoded(vae, head, latents, crystals)
        best = best.improved(current, target)
    with torch.no_grad():
        moved = (best.latents - start) / head.latent_std
        distance = mean_over_atoms(moved.square().mean(dim=-1, keepdim=True), crystals).squeeze(-1).sqrt()
        values = {
            "predicted_before": head.predict(start, crystals),
            "predicted_latent": head.predict(best.latents, crystals),
            "predicted_after": best.predicted,
            "latent_distance": distance,
        }
    return best.crystals.replace(properties=values)


@dataclass(frozen=True, eq=False)
class _Found:
    """Latents, the crystals they decode to, these encoded anew, and what the head predicts of that."""

    latents: Float[Tensor, "N L"]
    crystals: CrystalBatch
    encoded: Float[Tensor, "N L"]
    predicted: Float[Tensor, "B"]

    @classmethod
    @torch.no_grad()
    def decoded(
        cls, vae: CrystalVAE, head: PropertyHead, latents: Float[Tensor, "N L"], template: CrystalBatch
    ) -> _Found:
        crystals = decode_latents(vae, latents, template)
        encoded = continuous_latents(vae, crystals.replace(conditions=template.conditions), "search")
        return cls(latents, crystals, encoded, head.predict(encoded, crystals))

    def improved(self, other: _Found, target: float) -> _Found:
        """Return, crystal by crystal, the one whose prediction is nearer to the target."""
        better = (other.predicted - target).abs() < (self.predicted - target).abs()
        atoms = better[self.crystals.batch]
        crystals = self.crystals.replace(
            atom_types=torch.where(atoms, other.crystals.atom_types, self.crystals.atom_types),
            frac_coords=torch.where(atoms[:, None], other.crystals.frac_coords, self.crystals.frac_coords),
            lattices=torch.where(better[:, None, None], other.crystals.lattices, self.crystals.lattices),
        )
        return _Found(
            latents=torch.where(atoms[:, None], other.latents, self.latents),
            crystals=crystals,
            encoded=torch.where(atoms[:, None], other.encoded, self.encoded),
            predicted=torch.where(better, other.predicted, self.predicted),
        )


def descend(
    head: PropertyHead,
    start: Float[Tensor, "N L"],
    anchor: Float[Tensor, "N L"],
    crystals: CrystalBatch,
    target: float,
    options: SearchOptions,
    steps: int,
) -> Float[Tensor, "N L"]:
    """Return latents after some steps of Adam, in units of the latents' standard deviations."""
    goal = (target - head.target_mean) / head.target_std
    known = head.standardized(anchor)
    moving = head.standardized(start).detach().requires_grad_(True)
    optimizer = torch.optim.Adam([moving], lr=options.learning_rate)
    for _ in range(steps):
        latents = head.latent_mean + head.latent_std * moving
        away = mean_over_atoms((moving - known).square().mean(dim=-1, keepdim=True), crystals).squeeze(-1)
        loss = (head(latents, crystals) - goal).square() + options.penalty * away
        (moving.grad,) = torch.autograd.grad(loss.sum(), moving)
        optimizer.step()
    return (head.latent_mean + head.latent_std * moving).detach()
