"""A number with its meaning: what every part of the evaluation returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from crystalvae.data.batch import CrystalBatch

Number = float | int | None
Better = Literal["higher", "lower", "neither"]

HERE = "this package"
"""The source of definitions that nobody has published."""
CDVAE = "CDVAE (Xie et al. 2022, arXiv:2110.06197) and its code"
DIFFCSP = "DiffCSP (Jiao et al. 2023, arXiv:2309.04475)"
MATTERGEN = "Zeni et al. 2025, doi:10.1038/s41586-025-08628-5"


@dataclass(frozen=True)
class Metric:
    """One measured number: its definition in a sentence, its source, its unit, and over how many crystals it is.

    `value` is None where there was nothing to measure. `unit` is "share" for fractions of 1, else the unit, or "" for
    pure numbers. `better` says which direction is good.
    """

    value: Number
    definition: str
    source: str = HERE
    unit: str = ""
    better: Better = "neither"
    count: int | None = None

    @classmethod
    def share(
        cls,
        part: int | Sequence[bool] | np.ndarray,
        total: int,
        definition: str,
        source: str = HERE,
        *,
        better: Better = "higher",
    ) -> Metric:
        """Return how much `part`, a number of crystals or a mask of them, is of `total`; None of nothing."""
        value = int(np.sum(part)) / total if total else None
        return cls(value, definition, source, "share", better, total)

    @classmethod
    def mean(
        cls,
        values: Sequence[float] | np.ndarray,
        definition: str,
        source: str = HERE,
        *,
        unit: str = "",
        better: Better = "lower",
    ) -> Metric:
        """Return the mean of some values; None of none."""
        return cls(float(np.mean(values)) if len(values) else None, definition, source, unit, better, len(values))


@dataclass(frozen=True)
class Section:
    """What one part of the evaluation found.

    `settings` holds thresholds, tolerances and versions of what decided; `per_crystal` columns with one plain value per
    crystal, in the crystals' order; `distributions` what the report draws, as plain data. `skipped` says why there is
    nothing (and what to install), and is empty otherwise. `references` holds metrics of the same names for what is
    shown beside the model, by its name; see `beside`. `relaxed` are the crystals that were relaxed: which, and as they
    ended.
    """

    name: str
    title: str
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    per_crystal: Mapping[str, Sequence[object]] = field(default_factory=dict)
    distributions: Mapping[str, Any] = field(default_factory=dict)
    skipped: str = ""
    references: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    relaxed: tuple[Sequence[int], CrystalBatch] | None = field(default=None, compare=False)

    def beside(self, name: str, reference: Section) -> Section:
        """Return the part with the numbers of a simpler method, of the same part and names, beside its own.

        What the reference has more than this part is left out.
        """
        metrics = {key: metric for key, metric in reference.metrics.items() if key in self.metrics}
        return replace(self, references={**self.references, name: metrics})
