"""Options that cannot be used are refused by name: those of the model's parts, of the commands and of calls."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Integral
from pathlib import Path

from crystalvae.errors import ConfigError

MAX_SEED = 2**32 - 1
"""Generators of random numbers take 32 bits of a seed: 2^32 would give what 0 gives."""


def check_choice(key: str, got: object, allowed: tuple[object, ...]) -> None:
    """Raise `ConfigError` naming the key, what it got and what is allowed."""
    if got not in allowed:
        raise ConfigError(f"{key}: got {got!r}; expected one of {', '.join(map(repr, allowed))}")


def check_count(key: str, got: object, *, at_least: int = 1) -> int:
    """Return a whole number; `ConfigError` naming the key, what it got and the smallest number allowed."""
    if isinstance(got, bool) or not isinstance(got, Integral) or got < at_least:  # NumPy's whole numbers, too
        raise ConfigError(f"{key}: got {got!r}; expected a whole number of at least {at_least}")
    return int(got)


def check_seed(key: str, got: object) -> int:
    """Return a seed; `ConfigError` unless it is a whole number that 32 bits hold: larger ones repeat the smaller."""
    if isinstance(got, Integral) and not isinstance(got, bool) and int(got) > MAX_SEED:
        raise ConfigError(f"{key}: got {got}; expected a whole number from 0 to {MAX_SEED}")
    return check_count(key, got, at_least=0)


def check_number(key: str, got: object) -> float:
    """Return a number; `ConfigError` naming the key unless it is finite and at least 0."""
    if isinstance(got, bool) or not isinstance(got, (int, float)) or not (math.isfinite(got) and got >= 0):
        raise ConfigError(f"{key}: got {got!r}; expected a number of at least 0")
    return float(got)


def check_switch(key: str, got: object) -> bool:
    """Return true or false; `ConfigError` naming the key for anything else, such as the text "no"."""
    if not isinstance(got, bool):
        raise ConfigError(f"{key}: got {got!r}; expected true or false")
    return got


def check_n_jobs(got: object) -> int:
    """Return a number of processes, -1 standing for one per core; `ConfigError` for anything else."""
    return -1 if got == -1 else check_count("n_jobs", got)


def check_path(key: str, got: object) -> Path:
    """Return the path of a file or folder, `~` being the user's home; `ConfigError` where there is none."""
    if not isinstance(got, (str, Path)) or not str(got):
        raise ConfigError(f"{key}: got {got!r}; expected the name of a file or folder")
    return Path(got).expanduser()


def check_choices(key: str, got: object, allowed: Collection[str]) -> list[str]:
    """Return some of the names allowed, given as a list or as one name; `ConfigError` naming the key for others."""
    names = [got] if isinstance(got, str) else list(got) if isinstance(got, Sequence) else None
    if names is None or not all(isinstance(name, str) and name in allowed for name in names):
        some = ",".join(list(allowed)[:2])
        raise ConfigError(f"{key}: got {got}; expected a list of some of {', '.join(allowed)}, such as [{some}]")
    return names


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
