"""Errors meant for users: each says what was given, what was expected and what to do."""

from __future__ import annotations

import unicodedata


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


def printable(text: str) -> str:
    """Return text with its control characters escaped, so that an id of a file cannot give a terminal orders.

    Line ends and tabs stay; so do the characters of all languages, but for those that turn the direction of writing.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs"}
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )  # fmt: skip
