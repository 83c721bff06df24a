"""Flow matching on straight paths, and the solvers that follow them: pure functions of a denoiser.

Convention: x_t = (1 - t)·ε + t·x_1 with ε from N(0, I), so t = 0 is noise and t = 1 is data, and the velocity along a
path is x_1 - ε = (x_1 - x_t) / (1 - t). Source: Lipman et al., "Flow matching for generative modeling" (2023), section
4.1; Liu et al., "Flow straight and fast" (2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.checks import check_choice, check_count, check_switch
from crystalvae.errors import ConfigError

Prediction = Literal["preconditioned", "x1", "velocity"]
Solver = Literal["euler", "midpoint", "heun"]
Known = Literal["nearest", "drawn", "none"]
Estimate = Callable[[Float[Tensor, "N L"], float, "Tensor | None"], Float[Tensor, "N L"]]
"""(x_t, t, last estimate or None) to an estimate of x_1."""
MOST_REDRAWS = 100


def interpolate(
    clean: Float[Tensor, "N L"], noise: Float[Tensor, "N L"], time: Float[Tensor, "N"]
) -> Float[Tensor, "N L"]:
    """Return x_t = (1 - t)·ε + t·x_1."""
    return (1 - time[:, None]) * noise + time[:, None] * clean


def preconditioning(time: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Return (c_skip, c_out) of x̂_1 = c_skip·x_t + c_out·F for a network output F.

    c_skip = t / ((1-t)² + t²) and c_out = (1-t) / √((1-t)² + t²) are the best linear estimate of x_1 and the standard
    deviation of its error for data of unit variance, so that F has unit variance at all times: early the network says
    what x_1 is, late only by how much x_t is off. Source: Karras et al., "Elucidating the design space of
    diffusion-based generative models" (2022), table 1 and appendix B.6, for this path.
    """
    total = (1 - time).square() + time.square()
    return time / total, (1 - time) / total.sqrt()


def logit_normal(draws: Float[Tensor, "B"], *, mean: float, std: float) -> Float[Tensor, "B"]:
    """Return times sigmoid(mean + std·n) for standard normal n (Esser et al. 2024, eq. 19)."""
    return torch.sigmoid(mean + std * draws)


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How latents are drawn: the solver, its steps, and how much noise is renewed on the way.

    `stochasticity` η in [0, 1], for euler: at each step from t to t' the estimated noise ε̂ is replaced by
    √(1 - ν²)·ε̂ + ν·fresh noise with ν² = η²·(1 - (r'/r)²), r = (1 - t)/t, which is DDIM's σ (Song et al. 2021, eq. 16)
    on these paths: in the limit of many steps any η gives the same distribution, 1 is ancestral sampling and 0 follows
    the ODE.
    `time_shift` s places the steps: t = u / (u + s·(1 - u)) for evenly spaced u, so that s > 1 takes small steps
    early and s < 1 small steps late. `guidance_scale` w: x̂_1 = x̂_unknown + w·(x̂_asked - x̂_unknown) (Ho & Salimans
    2021, eq. 6, in its form 1 + w → w); 1 is plain conditional sampling. `composition_temperature` divides the logits
    from which elements and their numbers are drawn, where the prior proposes them; with genes, of all their parts.
    With genes, `projection` moves the estimate at every step onto the sites and cells of its space group (at the end
    crystals always are), and `analogues` says which training crystal with the same sites the flow is told: the nearest,
    one drawn by similarity, or none; up to time `trust` it is itself taken for the estimate, where there is one.
    Crystals with atoms closer than 0.7 of the sum of their covalent radii are drawn again, up to `redraws` times (those
    for which elements or genes are proposed with new ones, those of formulas with genes not at all); what is too close
    even then stays.
    """

    solver: Solver = "euler"
    steps: int = 20
    stochasticity: float = 0.0
    time_shift: float = 1.0
    guidance_scale: float = 1.0
    composition_temperature: float = 1.0
    projection: bool = False
    analogues: Known = "nearest"
    trust: float = 0.0
    redraws: int = 0

    def __post_init__(self) -> None:
        check_choice("sampler.solver", self.solver, get_args(Solver))
        check_choice("sampler.analogues", self.analogues, get_args(Known))
        check_switch("sampler.projection", self.projection)
        for name in ("stochasticity", "time_shift", "guidance_scale", "composition_temperature", "trust"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"sampler.{name}: got {value!r}; expected a number")
        check_count("sampler.steps", self.steps)
        if check_count("sampler.redraws", self.redraws, at_least=0) > MOST_REDRAWS:
            raise ConfigError(f"sampler.redraws: got {self.redraws}; expected at most {MOST_REDRAWS}")
        if not 0.0 <= self.stochasticity <= 1.0:
            raise ConfigError(f"sampler.stochasticity: got {self.stochasticity}; expected a number in [0, 1]")
        if not 0.0 <= self.trust <= 1.0:
            raise ConfigError(f"sampler.trust: got {self.trust}; expected a time in [0, 1]")
        if self.stochasticity > 0 and self.solver != "euler":
            raise ConfigError(
                f"sampler.stochasticity: got {self.stochasticity} with solver={self.solver}, which follows the ODE; "
                "set stochasticity=0 or solver=euler"
            )
        if not 1e-3 <= self.time_shift <= 1e3:
            raise ConfigError(f"sampler.time_shift: got {self.time_shift}; expected a number in [0.001, 1000]")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ConfigError(f"sampler.guidance_scale: got {self.guidance_scale}; expected a number of at least 0")
        if not (math.isfinite(self.composition_temperature) and self.composition_temperature > 0):
            raise ConfigError(
                f"sampler.composition_temperature: got {self.composition_temperature}; expected a number above 0"
            )

    def times(self) -> list[float]:
        """Return the steps + 1 times from 0 to 1."""
        even = [index / self.steps for index in range(self.steps + 1)]
        return [u / (u + self.time_shift * (1 - u)) for u in even]

    @property
    def evaluations(self) -> int:
        """How often the network is run, without guidance."""
        return self.steps if self.solver == "euler" else 2 * self.steps - 1


def solve(
    estimate: Estimate,
    noise: Float[Tensor, "N L"],
    options: SamplerOptions,
    fresh: Callable[[], Float[Tensor, "N L"]],
) -> Float[Tensor, "N L"]:
    """Follow the flow from noise at t = 0 to data at t = 1; `fresh()` gives more standard normal noise.

    midpoint and heun are of second order; their last step is an Euler step, where the velocity at t = 1 is not defined.
    """
    x, last = noise, None
    times = options.times()
    for index, (now, then) in enumerate(pairwise(times)):
        step, final = then - now, index == len(times) - 2
        clean = estimate(x, now, last)
        velocity = (clean - x) / (1 - now)
        if final or options.solver == "euler":
            x = _euler_step(x, clean, now, then, options.stochasticity, fresh)
            last = clean
            continue
        if options.solver == "midpoint":
            middle = now + step / 2
            between = x + step / 2 * velocity
            last = estimate(between, middle, clean)
            x = x + step * (last - between) / (1 - middle)
        else:
            guess = x + step * velocity
            last = estimate(guess, then, clean)
            x = x + step / 2 * (velocity + (last - guess) / (1 - then))
    return x


def _euler_step(
    x: Float[Tensor, "N L"],
    clean: Float[Tensor, "N L"],
    now: float,
    then: float,
    stochasticity: float,
    fresh: Callable[[], Float[Tensor, "N L"]],
) -> Float[Tensor, "N L"]:
    noise = (x - now * clean) / (1 - now)
    if stochasticity > 0 and then < 1:
        kept = now * (1 - then) / (then * (1 - now))  # r'/r
        renewed = stochasticity * math.sqrt(1 - kept**2)
        noise = math.sqrt(1 - renewed**2) * noise + renewed * fresh()
    return then * clean + (1 - then) * noise
