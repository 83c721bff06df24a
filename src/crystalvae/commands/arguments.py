"""Values from the command line, checked: each function returns what it was given, or raises `ConfigError`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from crystalvae.data.writers import FORMATS
from crystalvae.errors import ConfigError


def whole(key: str, value: object, *, least: int = 0) -> int:
    """Check for a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{key}: got {value!r}; expected a whole number, at least {least}")
    return value


def positive(key: str, value: object) -> int:
    """Check for a whole number of at least 1."""
    return whole(key, value, least=1)


def number(key: str, value: object) -> float:
    """Check for a finite number of at least 0."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{key}: got {value!r}; expected a number, at least 0")
    return float(value)


def switch(key: str, value: object) -> bool:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key}: got {value!r}; expected true or false")
    return value


def n_jobs(value: object) -> int:
    """Check for a number of processes, or -1 for one a core."""
    return -1 if value == -1 else positive("n_jobs", value)


def formats(value: object) -> list[str]:
    """Check for one or some of the formats in which crystals are written."""
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else None
    if names is None or not all(isinstance(name, str) and name in FORMATS for name in names):
        raise ConfigError(
            f"formats: got {value}; expected a list of some of {', '.join(FORMATS)}, such as [cif,extxyz]"
        )
    return names


def path(key: str, value: object) -> Path:
    """Check for the name of a file or folder; `~` is the user's home."""
    if value is None or not str(value):
        raise ConfigError(f"{key}: got {value!r}; expected the name of a file or folder")
    return Path(str(value)).expanduser()
