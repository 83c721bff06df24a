"""Every sampler's transition against the closed form: what x_t and the estimate leave of x_t', and the marginals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crystalvae.prior_module.flow import SamplerOptions, solve

MEAN, SPREAD = 0.7, 0.4
"""Of Gaussian data, whose paths x_t = (1 - t) ε + t x_1 are N(t·MEAN, (1 - t)² + t²·SPREAD²)."""


def visited(
    options: SamplerOptions, noise: Tensor, estimate: Callable[[Tensor, float], Tensor], fresh: Callable[[], Tensor]
) -> list[tuple[float, Tensor]]:
    """Each time with the x that the estimate is asked about there, and t = 1 with the sample."""
    seen = []

    def asked(x: Tensor, time: float, _last: Tensor | None) -> Tensor:
        seen.append((time, x))
        return estimate(x, time)

    end = solve(asked, noise, options, fresh)
    return [*seen, (1.0, end)]


def ancestral(now: float, then: float, x: Tensor, clean: Tensor) -> tuple[Tensor, float]:
    """Mean and variance of x_then given x_now and x_1 = clean, by Bayes' rule on the chain then → now.

    x_now = a x_then + √v n with a = now / then, so that both have their marginals given x_1.
    """
    prior_variance = (1 - then) ** 2
    a = now / then
    v = (1 - now) ** 2 - a**2 * prior_variance
    variance = 1 / (1 / prior_variance + a**2 / v)
    return variance * (then * clean / prior_variance + a * x / v), variance


@pytest.mark.parametrize("shift", [1.0, 2.5])
@pytest.mark.parametrize("stochasticity", [0.0, 0.3, 1.0])
def test_euler_steps_are_those_of_the_closed_form(stochasticity: float, shift: float) -> None:
    """Each step is mean + √variance · fresh noise: variance η² of the ancestral one, mean by what is left of ε̂."""
    generator = torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(6, 3, generator=generator, dtype=torch.float64)

    options = SamplerOptions(steps=7, stochasticity=stochasticity, time_shift=shift)
    estimates, noises = [], []

    def estimate(_x: Tensor, _time: float) -> Tensor:
        estimates.append(normal())
        return estimates[-1]

    def fresh() -> Tensor:
        noises.append(normal())
        return noises[-1]

    path = visited(options, normal(), estimate, fresh)
    assert [time for time, _ in path] == pytest.approx(options.times())
    for step in range(6):
        (now, x), (then, got) = path[step], path[step + 1]
        clean = estimates[step]
        mean, full = ancestral(now, then, x, clean)
        variance = stochasticity**2 * full
        if stochasticity < 1:
            direction = (x - now * clean) / (1 - now)
            mean = then * clean + math.sqrt((1 - then) ** 2 - variance) * direction
        new = noises[step] if stochasticity else torch.zeros_like(x)
        torch.testing.assert_close(got, mean + math.sqrt(variance) * new, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(path[-1][1], estimates[-1], atol=1e-9, rtol=1e-9)


def best_estimate(x: Tensor, time: float) -> tuple[Tensor, float]:
    """Mean and variance of x_1 given x_t, for the Gaussian data."""
    total = (1 - time) ** 2 + time**2 * SPREAD**2
    gain = time * SPREAD**2 / total
    return MEAN + gain * (x - time * MEAN), SPREAD**2 - gain * time * SPREAD**2


@pytest.mark.parametrize("stochasticity", [0.0, 0.5, 1.0])
def test_gaussian_data_have_their_marginal_at_every_step(stochasticity: float) -> None:
    """With x_1 drawn from what x_t leaves of it a few steps are exact, however much noise is renewed."""
    generator, count = torch.Generator().manual_seed(1), 200_000

    def normal() -> Tensor:
        return torch.randn(count, 1, generator=generator, dtype=torch.float64)

    def estimate(x: Tensor, time: float) -> Tensor:
        mean, variance = best_estimate(x, time)
        return mean + math.sqrt(variance) * normal()

    options = SamplerOptions(steps=5, stochasticity=stochasticity)
    for time, x in visited(options, normal(), estimate, normal):
        spread = math.sqrt((1 - time) ** 2 + time**2 * SPREAD**2)
        assert float(x.mean()) == pytest.approx(time * MEAN, abs=5 * spread / math.sqrt(count)), time
        assert float(x.std()) == pytest.approx(spread, rel=5 / math.sqrt(2 * count)), time


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_the_ode_keeps_quantiles_at_every_step_to_its_order(solver: str, order: int) -> None:
    """With the best estimate x_t = t·MEAN + x_0·σ_t on the exact flow; errors shrink as steps to that power."""
    start = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]

    def error(steps: int) -> float:
        options = SamplerOptions(steps=steps, solver=solver)  # pyright: ignore[reportArgumentType]
        path = visited(options, start, lambda x, time: best_estimate(x, time)[0], lambda: torch.zeros_like(start))
        grid = options.times()
        worst = 0.0
        for time, x in path:
            if min(abs(time - point) for point in grid) < 1e-12 and not (solver != "euler" and _inner(path, time, x)):
                exact = time * MEAN + start * math.sqrt((1 - time) ** 2 + time**2 * SPREAD**2)
                worst = max(worst, float((x - exact).abs().max()))
        return worst

    coarse, fine = error(40), error(80)
    assert fine < 0.02 if order == 1 else fine < 1e-3
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def _inner(path: list[tuple[float, Tensor]], time: float, x: Tensor) -> bool:
    """Whether x is a guess of Heun's method, which is asked about at the next time before the step is made."""
    same = [entry for moment, entry in path if abs(moment - time) < 1e-12]
    return len(same) > 1 and x is same[0]
