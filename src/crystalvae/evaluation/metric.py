"""A number with its meaning: what every part of the evaluation returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Number = float | int | None


@dataclass(frozen=True)
class Metric:
    """One measured number: its definition in a sentence, its source, its unit, and over how many crystals it is.

    `value` is None where there was nothing to measure. `unit` is "share" for fractions of 1, else the unit, or "" for
    pure numbers. `better` says which direction is good.
    """

    value: Number
    definition: str
    source: str
    unit: str = ""
    better: Literal["higher", "lower", "neither"] = "neither"
    count: int | None = None


@dataclass(frozen=True)
class Section:
    """What one part of the evaluation found.

    `settings` holds thresholds, tolerances and versions of what decided; `per_crystal` columns with one plain value a
    crystal, in the crystals' order; `distributions` what the report draws, as plain data. `skipped` says why there is
    nothing (and what to install), and is empty otherwise.
    """

    name: str
    title: str
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    per_crystal: Mapping[str, Sequence[object]] = field(default_factory=dict)
    distributions: Mapping[str, object] = field(default_factory=dict)
    skipped: str = ""
