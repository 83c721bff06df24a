"""Groups of trajectories compared by what their motifs do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from crystalvae.errors import ConfigError
from crystalvae.sequence_module.motifs.statistics import MotifStatistics, motif_statistics


@dataclass(frozen=True)
class MotifContrast:
    """One motif in all groups: mean and standard deviation over trajectories of its usage, and how the groups differ.

    `p_value` is of the Mann-Whitney U test of two groups, Kruskal-Wallis of more, over trajectories; `q_value` is it
    after Benjamini and Hochberg's (1995) correction for all motifs. None where a group has fewer than two trajectories
    or all usages are the same.
    """

    motif: int
    mean: dict[str, float]
    std: dict[str, float | None]
    p_value: float | None
    q_value: float | None


@dataclass(frozen=True, eq=False)
class GroupComparison:
    """Statistics of each group over all its trajectories, contrasts of each motif, and distances between groups.

    `distances` are, for each pair of groups, half the sum of the absolute differences of usage, and the same of the
    transitions, as the mean over rows with the weights of both groups' usage: 0 where they are the same, 1 where they
    have nothing in common.
    """

    groups: dict[str, list[str]]
    statistics: dict[str, MotifStatistics]
    contrasts: list[MotifContrast]
    distances: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "groups": self.groups,
            "statistics": {name: entry.to_dict() for name, entry in self.statistics.items()},
            "contrasts": [asdict(entry) for entry in self.contrasts],
            "distances": self.distances,
        }


def compare_groups(
    motifs: Mapping[str, Int[np.ndarray, "_"]], groups: Mapping[str, Sequence[str]], num_motifs: int
) -> GroupComparison:
    """Compare groups of trajectories: `motifs` has the motif of each frame of each trajectory, `groups` their ids.

    Raises `ConfigError` for fewer than two groups, an empty one, an unknown trajectory, or one in two groups.
    """
    _check_groups(motifs, groups)
    alone = {name: motif_statistics([motifs[name]], num_motifs).usage for part in groups.values() for name in part}
    usages = {group: np.stack([alone[name] for name in part]) for group, part in groups.items()}
    p_values = [_p_value([values[:, motif] for values in usages.values()]) for motif in range(num_motifs)]
    contrasts = [
        MotifContrast(
            motif=motif,
            mean={group: float(values[:, motif].mean()) for group, values in usages.items()},
            std={g: float(v[:, motif].std(ddof=1)) if len(v) > 1 else None for g, v in usages.items()},
            p_value=p_values[motif],
            q_value=q_value,
        )
        for motif, q_value in enumerate(_corrected(p_values))
    ]
    statistics = {group: motif_statistics([motifs[n] for n in part], num_motifs) for group, part in groups.items()}
    names = list(groups)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return GroupComparison(
        groups={group: list(part) for group, part in groups.items()},
        statistics=statistics,
        contrasts=contrasts,
        distances=[{"groups": [a, b], **_distances(statistics[a], statistics[b])} for a, b in pairs],
    )


def _check_groups(motifs: Mapping[str, np.ndarray], groups: Mapping[str, Sequence[str]]) -> None:
    if len(groups) < 2 or not all(groups.values()):
        raise ConfigError(f"groups: got {dict(groups)}; expected at least two, each with the ids of its trajectories")
    named = [name for part in groups.values() for name in part]
    unknown = sorted(set(named) - set(motifs))
    if unknown:
        raise ConfigError(f"groups: no trajectory {', '.join(unknown)}; there are {', '.join(sorted(motifs))}")
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ConfigError(f"groups: {', '.join(twice)} stands in them more than once")


def _p_value(samples: Sequence[Float[np.ndarray, "_"]]) -> float | None:
    from scipy.stats import kruskal, mannwhitneyu

    if min(map(len, samples)) < 2 or np.ptp(np.concatenate(samples)) == 0:
        return None
    test: Any = mannwhitneyu(samples[0], samples[1]) if len(samples) == 2 else kruskal(*samples)
    return float(test.pvalue)


def _corrected(p_values: Sequence[float | None]) -> list[float | None]:
    from scipy.stats import false_discovery_control

    known = [row for row, value in enumerate(p_values) if value is not None]
    corrected: list[float | None] = [None] * len(p_values)
    if known:
        for row, value in zip(known, false_discovery_control([p_values[row] for row in known]), strict=True):
            corrected[row] = float(value)
    return corrected


def _distances(one: MotifStatistics, other: MotifStatistics) -> dict[str, float]:
    rows = 0.5 * np.abs(one.transitions - other.transitions).sum(axis=1)
    return {
        "usage": float(0.5 * np.abs(one.usage - other.usage).sum()),
        "transitions": float((0.5 * (one.usage + other.usage)) @ rows),
    }
