"""Denoising diffusion over the latents of a VAE that decodes elements: the published prior, read in or trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystalvae.checks import check_count
from crystalvae.data.batch import MAX_ATOMIC_NUMBER, CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.prior_module.diffusion import (
    STEPS,
    DiffusionSamplerOptions,
    NoiseSchedule,
    denoise,
    diffusion_losses,
)
from crystalvae.prior_module.diffusion_transformer import DiffusionTransformer
from crystalvae.vae_module.conditions.values import (
    CLASSES,
    ELEMENTS,
    Classes,
    Values,
    check_names,
    known_classes,
    told,
    unknown,
)
from crystalvae.vae_module.distribution import normal_noise
from crystalvae.vae_module.latent_source import Drawn, DrawOptions


class JointConditions(nn.Module):
    """One vector per crystal from all its conditions: a network on each, and one on them side by side.

    A condition that is unknown is replaced by learned inputs of its network. Numbers are standardised by `mean` and
    `std`; of classes the network sees a 1 among zeros, of elements one number each.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, names: Sequence[str], d_model: int, classes: Classes = CLASSES) -> None:
        super().__init__()
        check_names("prior.conditions", names)
        self.names, self.classes = list(names), classes
        self.embedders, self.unknown = nn.ModuleDict(), nn.ParameterDict()
        for name in self.names:
            width = len(classes[name]) if name in classes else MAX_ATOMIC_NUMBER + 1 if name in ELEMENTS else 1
            self.embedders[name] = nn.Sequential(nn.Linear(width, d_model), nn.SiLU(), nn.Linear(d_model, d_model))
            self.unknown[name] = nn.Parameter(torch.randn(1, width))
        self.joined = nn.Sequential(
            nn.Linear(max(1, len(self.names)) * d_model, d_model), nn.SiLU(), nn.Linear(d_model, d_model)
        )
        self.register_buffer("mean", torch.zeros(len(self.names)))
        self.register_buffer("std", torch.ones(len(self.names)))

    def fit(self, values: Values) -> None:
        """Take over the mean and standard deviation of the known numbers."""
        for index, name in enumerate(self.names):
            if name not in self.classes and name not in ELEMENTS:
                known = values[name][~values[name].isnan()]
                if len(known) < 2:
                    raise ConfigError(f"conditions: {name!r} has {len(known)} known values in the training set")
                self.mean[index], self.std[index] = known.mean(), known.std().clamp_min(1e-6)

    def forward(self, values: Values) -> Float[Tensor, "B D"]:
        """Embed the conditions of B crystals, of which there is at least one kind."""
        parts = []
        for index, name in enumerate(self.names):
            given = values[name].to(self.mean.device)
            missing = given.isnan()
            if name in self.classes:
                inputs = nn.functional.one_hot(given.nan_to_num().long(), len(self.classes[name])).to(self.mean.dtype)
            elif name in ELEMENTS:
                inputs, missing = given, missing.any(dim=-1)
            else:
                inputs = ((given - self.mean[index]) / self.std[index])[:, None]
            parts.append(self.embedders[name](torch.where(missing[:, None], self.unknown[name], inputs)))
        return self.joined(torch.cat(parts, dim=-1))


class LatentDiffusion(nn.Module):
    """Denoising diffusion over the latents of the atoms of a crystal, given atom counts and conditions.

    Elements are in the latents: the VAE has to decode them. `steps` of the noise process, `sampler` the default
    `DiffusionSamplerOptions`. Latents are divided by `latent_std`, one number, the standard deviation over the training
    set, as the published model does.
    """

    own_prior = "learned prior"
    proposes_elements = False
    composition = None
    """Elements are decoded: no model proposes them, or their sites."""
    latent_std: Tensor
    conditions: JointConditions | None

    def __init__(
        self,
        *,
        latent_dim: int,
        elements_given: bool,
        d_model: int,
        nhead: int,
        num_layers: int,
        dim_feedforward: int | None = None,
        steps: int = STEPS,
        conditions: Sequence[str] = (),
        classes: Mapping[str, int | Sequence[str]] | None = None,
        sampler: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if elements_given:
            raise ConfigError(
                "prior: diffusion is for a VAE that decodes elements (atom_type_predict=true); where they are given, "
                "use the flow, which is told them"
            )
        self.latent_dim = latent_dim
        self.schedule = NoiseSchedule.linear(check_count("prior.steps", steps))
        self.sampler = DiffusionSamplerOptions(**(sampler or {}))
        self.names, self.classes = list(conditions), known_classes(classes, key="prior.classes")
        self.conditions = None
        if self.names:
            self.conditions = JointConditions(names=conditions, d_model=d_model, classes=self.classes)
        self.denoiser = DiffusionTransformer(
            latent_dim=latent_dim, d_model=d_model, nhead=nhead, num_layers=num_layers, dim_feedforward=dim_feedforward
        )
        self.register_buffer("latent_std", torch.ones(()))

    def fit_latents(self, mean: Float[Tensor, "N L"], variance: Float[Tensor, "N L"]) -> None:
        """Take over the standard deviation of draws from the posteriors N(mean, variance) of a whole training set."""
        total = mean.cpu().double().var() + variance.cpu().double().mean()
        self.latent_std.copy_(total.sqrt().clamp_min(1e-6).float())

    # ---- the network on crystals of any size -------------------------------------------------------------------------

    def predict(
        self, noisy: Float[Tensor, "N L"], time: Int[Tensor, "B"], crystals: CrystalBatch, values: Values
    ) -> tuple[Float[Tensor, "N L"], Float[Tensor, "N L"]]:
        """Return (ε̂, v) for all atoms; crystals of one size go through the network together, so none is padded."""
        context = None if self.conditions is None else self.conditions(values)
        noise, v = torch.empty_like(noisy), torch.empty_like(noisy)
        for rows, atoms in by_size(crystals):
            told_rows = None if context is None else context[rows]
            part = self.denoiser(noisy[atoms], time[rows].to(noisy.dtype), told_rows)
            noise[atoms], v[atoms] = (output.to(noisy.dtype) for output in part)
        return noise, v

    def losses(
        self,
        latents: Float[Tensor, "N L"],
        crystals: CrystalBatch,
        values: Values,
        *,
        noise: Float[Tensor, "N L"],
        uniform: Float[Tensor, "B"],
    ) -> dict[str, Float[Tensor, "N"]]:
        """Return per atom the `diffusion_loss`, of which `noise_error` and `bound` (in bits) are the parts.

        The loss is |ε̂ - ε|² + T/1000 · bound (Nichol & Dhariwal, section 3.1, rescaled to one step); `uniform` in
        [0, 1) says which step each crystal is seen at.
        """
        time = (uniform * len(self.schedule)).long().clamp_max(len(self.schedule) - 1)
        steps, clean = time[crystals.batch], latents / self.latent_std
        noisy = self.schedule.noisy(clean, noise, steps)
        prediction = self.predict(noisy, time, crystals, values)
        error, bound = diffusion_losses(self.schedule, clean, noisy, noise, steps, prediction)
        return {"diffusion_loss": error + len(self.schedule) / 1000 * bound, "noise_error": error, "bound": bound}

    # ---- as a source of latents (`LearnedPrior`) ---------------------------------------------------------------------

    def sampler_options(self, changes: Mapping[str, Any] | None) -> DiffusionSamplerOptions:
        """Return the default options with some changed; `ConfigError` lists what there is where one is unknown."""
        allowed = {entry.name for entry in fields(DiffusionSamplerOptions)}
        strange = sorted(set(changes or {}) - allowed)
        if strange:
            raise ConfigError(
                f"sampler: unknown {', '.join(strange)}; this prior is a diffusion and has {', '.join(sorted(allowed))}"
            )
        return replace(self.sampler, **(changes or {}))

    def check(self, options: DrawOptions) -> None:
        """Raise `ConfigError` for a temperature, which it has none of, and for options of the sampler."""
        if options.temperature != 1.0:
            raise ConfigError(
                f"temperature: got {options.temperature}; expected 1.0, as a learned prior has no temperature"
            )
        chosen = self.sampler_options(options.sampler)
        self.schedule.with_steps(chosen.steps, chosen.method)

    @torch.no_grad()
    def draw(self, crystals: CrystalBatch, *, options: DrawOptions, generator: torch.Generator) -> Drawn:
        """Draw latents for the atom counts and conditions of `crystals`; the VAE gets no conditions."""
        if bool((crystals.atom_types != 0).any()):
            raise ConfigError(
                "composition: this model decodes elements from its latents and cannot take them; use a checkpoint "
                "for structure prediction"
            )
        sampler, values = self.sampler_options(options.sampler), told(crystals, self.names)
        nothing = {name: unknown(name, len(crystals)).to(crystals.device) for name in self.names}

        def predict(x: Float[Tensor, "N L"], step: int) -> tuple[Float[Tensor, "N L"], Float[Tensor, "N L"]]:
            time = torch.full((len(crystals),), step, device=x.device)
            asked = self.predict(x, time, crystals, values)
            if not self.names or sampler.guidance_scale == 1.0:
                return asked
            free = self.predict(x, time, crystals, nothing)
            noise, v = (y + sampler.guidance_scale * (x - y) for x, y in zip(asked, free, strict=True))
            return noise, v

        fresh = partial(normal_noise, (crystals.num_nodes, self.latent_dim), crystals.device, generator)
        latents = denoise(predict, fresh(), self.schedule, sampler, fresh)
        return Drawn(latents * self.latent_std, crystals.replace(conditions={}))


def by_size(crystals: CrystalBatch) -> Iterator[tuple[Int[Tensor, "b"], Int[Tensor, "b n"]]]:
    """Yield, for each atom count n, the crystals that have it and the numbers of their atoms."""
    for size in crystals.num_atoms.unique().tolist():
        rows = (crystals.num_atoms == size).nonzero()[:, 0]
        yield rows, crystals.ptr[rows, None] + torch.arange(size, device=rows.device)
