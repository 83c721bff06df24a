"""Errors meant for users: each says what was given, what was expected and what to do."""

from __future__ import annotations


class CrystalVAEError(Exception):
    """Base class of every error this package raises on purpose; entry points print it without a traceback."""


class ConfigError(CrystalVAEError, ValueError):
    """A configuration value that cannot be used."""


class DataError(CrystalVAEError, ValueError):
    """A data file, or a row of one, that cannot be read."""


class CheckpointError(CrystalVAEError, ValueError):
    """A checkpoint that cannot be read, or is refused."""


class OutputError(CrystalVAEError, OSError):
    """A place that cannot be written to, or already holds something."""


class TrainingError(CrystalVAEError, RuntimeError):
    """Training that cannot go on."""


class EvaluationError(CrystalVAEError, RuntimeError):
    """An evaluation that cannot go on."""
