"""Denoising diffusion with a learned variance: noise schedules, fewer steps, and the steps of DDPM and DDIM.

Convention: x_t = √ᾱ_t·x_0 + √(1 - ᾱ_t)·ε with ε from N(0, I) and ᾱ_t = Π (1 - β_s) over s ≤ t, so that t = 0 is nearly
data and the last t nearly noise. The network predicts ε, and v, which says where log σ_t² lies between the smallest and
the largest that is sound. Sources: Ho et al., "Denoising diffusion probabilistic models" (2020); Nichol & Dhariwal,
"Improved denoising diffusion probabilistic models" (2021); Song et al., "Denoising diffusion implicit models" (2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystalvae.checks import check_choice, check_count, check_number
from crystalvae.errors import ConfigError

Method = Literal["ddim", "ddpm"]
FIRST_BETA, LAST_BETA, STEPS = 1e-4, 0.02, 1000
"""The linear schedule of Ho et al., section 4."""
Predict = Callable[[Float[Tensor, "N L"], int], tuple[Float[Tensor, "N L"], Float[Tensor, "N L"]]]
"""(x_t, t of the whole process) to (ε̂, v)."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Variances β (S,) of the steps of a process, and which `timesteps` (S,) of the whole process they are."""

    betas: Float[Tensor, "S"]
    timesteps: Int[Tensor, "S"]

    @classmethod
    def linear(cls, steps: int = STEPS) -> NoiseSchedule:
        """Return β from 1e-4 to 0.02 in a straight line, scaled where there are not 1,000 steps."""
        scale = STEPS / steps
        betas = torch.linspace(scale * FIRST_BETA, scale * LAST_BETA, steps, dtype=torch.float64)
        return cls(betas, torch.arange(steps))

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def kept(self) -> Float[Tensor, "S"]:
        """ᾱ_t, the share of the variance that is still data."""
        return (1.0 - self.betas).cumprod(0)

    @property
    def kept_before(self) -> Float[Tensor, "S"]:
        """ᾱ of the step before each, 1 before the first."""
        return torch.cat((self.kept.new_ones(1), self.kept[:-1]))

    @property
    def posterior_variance(self) -> Float[Tensor, "S"]:
        """β̃_t, the variance of q(x_{t-1} | x_t, x_0) (Ho et al., eq. 7); 0 at the first step."""
        return self.betas * (1 - self.kept_before) / (1 - self.kept)

    @property
    def smallest_log_variance(self) -> Float[Tensor, "S"]:
        """Log β̃_t, with that of the second step at the first, where it would be minus infinity."""
        variance = self.posterior_variance
        return torch.cat((variance[1:2], variance[1:])).log() if len(self) > 1 else self.betas.log()

    def with_steps(self, steps: int, method: Method) -> NoiseSchedule:
        """Return the process of fewer steps with the same marginals (Nichol & Dhariwal, section 4).

        "ddpm" takes steps as evenly spaced as whole numbers allow, with the first and the last; "ddim" every k-th one
        from the first, and only numbers of steps that some k gives.
        """
        count = len(self)
        if not 1 <= steps <= count:
            raise ConfigError(f"sampler.steps: got {steps}; expected 1 to the {count} steps of training")
        if method == "ddim":
            stride = next((k for k in range(1, count + 1) if len(range(0, count, k)) == steps), None)
            if stride is None:
                possible = sorted({len(range(0, count, k)) for k in range(1, count + 1)}, key=lambda n: abs(n - steps))
                raise ConfigError(
                    f"sampler.steps: no whole stride takes {steps} of {count} steps; the nearest numbers that work are "
                    + " and ".join(map(str, sorted(possible[:2])))
                )
            chosen = torch.arange(0, count, stride)
        else:
            spacing = (count - 1) / (steps - 1) if steps > 1 else 1.0
            chosen = torch.tensor([round(index * spacing) for index in range(steps)])
        kept = self.kept[chosen]
        return NoiseSchedule(1 - kept / torch.cat((kept.new_ones(1), kept[:-1])), self.timesteps[chosen])

    def noisy(
        self, clean: Float[Tensor, "N L"], noise: Float[Tensor, "N L"], steps: Int[Tensor, "N"]
    ) -> Float[Tensor, "N L"]:
        """Return x_t (Ho et al., eq. 4)."""
        kept = self.kept.to(clean.device)[steps][:, None]
        return (kept.sqrt() * clean + (1 - kept).sqrt() * noise).to(clean.dtype)

    def clean(
        self, noisy: Float[Tensor, "N L"], noise: Float[Tensor, "N L"], steps: Int[Tensor, "N"]
    ) -> Float[Tensor, "N L"]:
        """Return the x_0 that x_t and ε stand for."""
        kept = self.kept.to(noisy.device)[steps][:, None]
        return ((noisy - (1 - kept).sqrt() * noise) / kept.sqrt()).to(noisy.dtype)

    def posterior_mean(
        self, clean: Float[Tensor, "N L"], noisy: Float[Tensor, "N L"], steps: Int[Tensor, "N"]
    ) -> Float[Tensor, "N L"]:
        """Return the mean of q(x_{t-1} | x_t, x_0) (Ho et al., eq. 7)."""
        beta, kept, before = (
            part.to(clean.device)[steps][:, None] for part in (self.betas, self.kept, self.kept_before)
        )
        of_clean, of_noisy = beta * before.sqrt() / (1 - kept), (1 - before) * (1 - beta).sqrt() / (1 - kept)
        return (of_clean * clean + of_noisy * noisy).to(clean.dtype)

    def log_variance(self, v: Float[Tensor, "N L"], steps: Int[Tensor, "N"]) -> Float[Tensor, "N L"]:
        """Return log σ_t² between log β̃_t (v = -1) and log β_t (v = 1) (Nichol & Dhariwal, eq. 15)."""
        low, high = (part.to(v.device)[steps][:, None] for part in (self.smallest_log_variance, self.betas.log()))
        share = (v + 1) / 2
        return (share * high + (1 - share) * low).to(v.dtype)


@dataclass(frozen=True, kw_only=True)
class DiffusionSamplerOptions:
    """How latents are drawn: "ddpm" (ancestral, with the learned variances) or "ddim", and in how many `steps`.

    `eta` η in [0, 1] scales the noise that "ddim" renews: 0 is deterministic, 1 as much as ancestral sampling with the
    smallest variances (Song et al., eq. 16). `guidance_scale` w: ε̂_unknown + w·(ε̂_asked - ε̂_unknown) (Ho & Salimans
    2021, eq. 6, in its form 1 + w → w); 1 is plain conditional sampling, and without conditions w changes nothing.
    """

    method: Method = "ddim"
    steps: int = 50
    eta: float = 1.0
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        check_choice("sampler.method", self.method, get_args(Method))
        check_count("sampler.steps", self.steps)
        check_number("sampler.eta", self.eta)
        check_number("sampler.guidance_scale", self.guidance_scale)
        if not 0.0 <= self.eta <= 1.0:
            raise ConfigError(f"sampler.eta: got {self.eta}; expected a number in [0, 1]")


def ddpm_step(
    schedule: NoiseSchedule,
    step: int,
    noisy: Float[Tensor, "N L"],
    noise: Float[Tensor, "N L"],
    v: Float[Tensor, "N L"],
) -> tuple[Float[Tensor, "N L"], Float[Tensor, "N L"]]:
    """Return mean and log variance of p(x_{t-1} | x_t) for the predictions ε̂ and v."""
    steps = torch.full((len(noisy),), step, device=noisy.device)
    clean = schedule.clean(noisy, noise, steps)
    return schedule.posterior_mean(clean, noisy, steps), schedule.log_variance(v, steps)


def ddim_step(
    schedule: NoiseSchedule, step: int, noisy: Float[Tensor, "N L"], noise: Float[Tensor, "N L"], eta: float
) -> tuple[Float[Tensor, "N L"], float]:
    """Return mean and standard deviation of x_{t-1} given x_t and the prediction ε̂ (Song et al., eq. 12 and 16)."""
    kept, before = float(schedule.kept[step]), float(schedule.kept_before[step])
    clean = schedule.clean(noisy, noise, torch.full((len(noisy),), step, device=noisy.device))
    sigma = eta * math.sqrt((1 - before) / (1 - kept)) * math.sqrt(1 - kept / before)
    return math.sqrt(before) * clean + math.sqrt(max(0.0, 1 - before - sigma**2)) * noise, sigma


def denoise(
    predict: Predict,
    noise: Float[Tensor, "N L"],
    schedule: NoiseSchedule,
    options: DiffusionSamplerOptions,
    fresh: Callable[[], Float[Tensor, "N L"]],
) -> Float[Tensor, "N L"]:
    """Go from noise to data in `options.steps` steps; `fresh()` gives more standard normal noise."""
    process = schedule.with_steps(options.steps, options.method)
    x = noise
    for step in reversed(range(len(process))):
        predicted, v = predict(x, int(process.timesteps[step]))
        if options.method == "ddim":
            x, spread = ddim_step(process, step, x, predicted, options.eta)
            if step > 0 and spread > 0:
                x = x + spread * fresh()
        else:
            x, log_variance = ddpm_step(process, step, x, predicted, v)
            if step > 0:
                x = x + (0.5 * log_variance).exp() * fresh()
    return x


def diffusion_losses(
    schedule: NoiseSchedule,
    clean: Float[Tensor, "N L"],
    noisy: Float[Tensor, "N L"],
    noise: Float[Tensor, "N L"],
    steps: Int[Tensor, "N"],
    prediction: tuple[Float[Tensor, "N L"], Float[Tensor, "N L"]],
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Return |ε̂ - ε|² and the bound's term in bits, each a mean over latent dimensions (Nichol & Dhariwal, eq. 16).

    The term is KL(q(x_{t-1} | x_t, x_0) ‖ p(x_{t-1} | x_t)), at t = 0 -log p(x_0 | x_1) of the Gaussian density; it
    teaches the variances alone, as no gradient goes through the mean.
    """
    predicted, v = prediction
    true_mean = schedule.posterior_mean(clean, noisy, steps)
    mean = schedule.posterior_mean(schedule.clean(noisy, predicted.detach(), steps), noisy, steps)
    true_log_variance = schedule.smallest_log_variance.to(clean.device)[steps][:, None].to(clean.dtype)
    log_variance = schedule.log_variance(v, steps)
    first = (steps == 0)[:, None]
    off = torch.where(first, clean - mean, true_mean - mean).square() * (-log_variance).exp()
    kl = 0.5 * (log_variance - true_log_variance - 1 + (true_log_variance - log_variance).exp() + off)
    density = 0.5 * (math.log(2 * math.pi) + log_variance + off)
    bound = torch.where(first, density, kl).mean(dim=1) / math.log(2)
    return (predicted - noise).square().mean(dim=1), bound
