"""Options of the model's parts that cannot be used are refused by name."""

from __future__ import annotations

import math
from numbers import Integral

from crystalvae.errors import ConfigError


def check_choice(key: str, got: object, allowed: tuple[object, ...]) -> None:
    """Raise `ConfigError` naming the key, what it got and what is allowed."""
    if got not in allowed:
        raise ConfigError(f"{key}: got {got!r}; expected one of {', '.join(map(repr, allowed))}")


def check_count(key: str, got: int, *, at_least: int = 1) -> None:
    """Raise `ConfigError` naming the key, what it got and the smallest number allowed."""
    if isinstance(got, bool) or not isinstance(got, Integral) or got < at_least:  # NumPy's whole numbers, too
        raise ConfigError(f"{key}: got {got!r}; expected a whole number of at least {at_least}")


def check_number(key: str, got: float) -> None:
    """Raise `ConfigError` naming the key unless it is a finite number of at least 0."""
    if isinstance(got, bool) or not isinstance(got, (int, float)) or not (math.isfinite(got) and got >= 0):
        raise ConfigError(f"{key}: got {got!r}; expected a number of at least 0")


def check_dropout(key: str, got: float) -> None:
    """Raise `ConfigError` naming the key unless it is a probability below 1."""
    if not 0.0 <= got < 1.0:
        raise ConfigError(f"{key}: got {got}; expected a value in [0, 1)")


def feedforward_width(key: str, got: int | None, d_model: int) -> int:
    """Return the width of feed-forward networks, 4 · d_model where null; `ConfigError` where it is no width."""
    if got is None:
        return 4 * d_model
    check_count(key, got)
    return got
