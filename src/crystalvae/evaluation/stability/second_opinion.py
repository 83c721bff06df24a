"""Stability under a second potential, beside that under the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from crystalvae.evaluation.metric import Metric, Section
from crystalvae.evaluation.stability.metrics import TIE

OPINIONS = ("energy_above_hull", "energy", "converged", "failure")
"""Columns of the second potential that are kept, with `_second` behind their names."""


def with_second_opinion(first: Section, second: Section, *, name: str) -> Section:
    """Return the first part with the second's numbers beside its own, and how far both agree.

    Each potential has relaxed the crystals and its own hull; their energies are never mixed.
    """
    if first.skipped:
        return first
    if second.skipped:
        return replace(first, settings={**first.settings, "second_potential": f"left out: {second.skipped}"})
    ours, theirs = _above(first), _above(second)
    both = np.isfinite(ours) & np.isfinite(theirs)
    settings = {**first.settings, "second_potential": second.settings["potential"]}
    columns = {f"{key}_second": second.per_crystal[key] for key in OPINIONS}
    found = replace(
        first,
        settings={**settings, "second_calculator": second.settings["calculator"]},
        metrics={**first.metrics, **_agreement(first, ours, theirs, both, name)},
        per_crystal={**first.per_crystal, **columns},
        distributions={**first.distributions, "energy_above_hull_pairs": np.stack((ours[both], theirs[both])).tolist()},
    )
    return found.beside(name, second)


def _above(section: Section) -> Float[np.ndarray, "B"]:
    return np.array([np.nan if value is None else value for value in section.per_crystal["energy_above_hull"]], float)


def _agreement(
    first: Section, ours: np.ndarray, theirs: np.ndarray, both: np.ndarray, name: str
) -> Mapping[str, Metric]:
    metrics: dict[str, Metric] = {}
    for kind in ("stable", "metastable"):
        limit, total = float(str(first.settings[kind])) + TIE, first.metrics[kind].count or 0
        with np.errstate(invalid="ignore"):
            agreed = (ours <= limit) & (theirs <= limit)
        definition = f"{first.metrics[kind].definition}, and likewise under {name}, by its own relaxation and hull"
        metrics[f"{kind}_both"] = Metric.share(agreed, total, definition)
    metrics["energy_above_hull_difference"] = Metric.mean(
        np.abs(ours - theirs)[both],
        f"mean absolute difference of the energies above the hull under {first.settings['potential']} and under {name}",
        unit="eV/atom",
    )
    return metrics
