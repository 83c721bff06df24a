"""KL weights as pure functions of the step: what `loss_weights.kl` is multiplied with."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from crystalvae.build import Part
from crystalvae.checks import check_count
from crystalvae.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule(Part, ABC):
    """A factor of the KL weight for every step (or epoch, see `objective.schedule_unit`), counted from 0.

    Before `kl_start` the factor is 0; from there the schedule counts its own time. It holds no state, so a resumed run
    goes on where it was.
    """

    kl_start: int = 0

    def __post_init__(self) -> None:
        check_count("objective.schedule.kl_start", self.kl_start, at_least=0)

    def __call__(self, step: int) -> float:
        """Return the factor at a step."""
        return 0.0 if step < self.kl_start else self.factor(step - self.kl_start)

    @abstractmethod
    def factor(self, elapsed: int) -> float:
        """Return the factor this many steps after `kl_start`."""


@dataclass(frozen=True, kw_only=True)
class NoSchedule(Schedule):
    """The full weight from `kl_start` on."""

    def factor(self, elapsed: int) -> float:  # noqa: ARG002
        """Return 1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class LinearSchedule(Schedule):
    """min(1, t / T) with T = `warmup` (Bowman et al. 2016; Sønderby et al. 2016)."""

    warmup: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("objective.schedule.warmup", self.warmup)

    def factor(self, elapsed: int) -> float:
        """Return min(1, t / T)."""
        return min(1.0, elapsed / self.warmup)


@dataclass(frozen=True, kw_only=True)
class SigmoidSchedule(Schedule):
    """1 / (1 + exp(-s (t / T - ½))) with T = `warmup`, s = `steepness`: ½ at half the warm-up (Bowman et al. 2016).

    It starts at 1 / (1 + exp(s / 2)), 0.0067 for the default of 10, and is as far from 1 at the end of the warm-up.
    """

    warmup: int
    steepness: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("objective.schedule.warmup", self.warmup)
        if not (math.isfinite(self.steepness) and self.steepness > 0):
            raise ConfigError(f"objective.schedule.steepness: got {self.steepness}; expected a number above 0")

    def factor(self, elapsed: int) -> float:
        """Return the logistic function of the time since half the warm-up."""
        return 0.5 * (1.0 + math.tanh(0.5 * self.steepness * (elapsed / self.warmup - 0.5)))  # does not overflow


@dataclass(frozen=True, kw_only=True)
class CyclicalSchedule(Schedule):
    """min(1, τ / R) with τ the share of the period that has passed: from 0 to 1 again and again.

    `cyclical_period` is the length of one cycle, `ramp_share` = R the share of it in which the weight rises; then it
    stays at 1 until the next cycle begins. Source: Fu et al. (2019).
    """

    cyclical_period: int
    ramp_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("objective.schedule.cyclical_period", self.cyclical_period)
        if not 0.0 < self.ramp_share <= 1.0:
            raise ConfigError(f"objective.schedule.ramp_share: got {self.ramp_share}; expected a share in (0, 1]")

    def factor(self, elapsed: int) -> float:
        """Return min(1, τ / R)."""
        passed = (elapsed % self.cyclical_period) / self.cyclical_period
        return min(1.0, passed / self.ramp_share)
