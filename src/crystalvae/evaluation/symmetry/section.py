"""Symmetry of generated crystals: space groups and crystal systems against those of a reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.symmetry import CRYSTAL_SYSTEMS, crystal_system, space_group_symbol
from crystalvae.evaluation.metric import Metric, Section
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.symmetry.space_groups import (
    Library,
    check_library,
    library_version,
    space_groups,
    tolerance_name,
)
from crystalvae.evaluation.validity.structure import map_valid

TOLERANCES = (0.1, 0.01)
"""Å; 0.1 is what codes for generated crystals use mostly, 0.01 is what pymatgen's `SpacegroupAnalyzer` begins with."""
_VERSION = 1
_SOURCE = "International Tables for Crystallography A; search by {library}"


def symmetry_section(
    *,
    generated: CrystalBatch,
    reference: CrystalBatch,
    runner: Runner,
    tolerances: Sequence[float] = TOLERANCES,
    library: Library = "moyopy",
    unreadable: int = 0,
) -> Section:
    """Compare the space groups and crystal systems of generated crystals with the reference's, at each tolerance (Å).

    Only structurally valid crystals are searched (`validity.structure.describe`); the others, and those in which
    the library finds no group, count as having none: they are neither P1 nor part of the distributions. So do the
    `unreadable` crystals that were generated besides.

    Per crystal, for a tolerance of 0.1: `space_group_0.1` (its number, None where there is none).
    """
    found = find_space_groups(generated, runner=runner, tolerances=tolerances, library=library)
    expected = find_space_groups(
        reference, runner=runner, tolerances=tolerances, library=library, description="space groups of the reference"
    )
    metrics: dict[str, Metric] = {}
    distributions: dict[str, object] = {}
    columns: dict[str, Sequence[object]] = {}
    for position, tolerance in enumerate(tolerances):
        name = tolerance_name(tolerance)
        ours, theirs = found[:, position], expected[:, position]
        metrics.update(
            _metrics(np.concatenate((ours, np.zeros(unreadable, dtype=np.int64))), theirs, tolerance, library)
        )
        columns[f"space_group_{name}"] = [int(number) or None for number in ours]
        distributions[f"space_group_{name}"] = {
            "generated": _groups(ours),
            "reference": _groups(theirs),
        }
        distributions[f"crystal_system_{name}"] = {
            "generated": {system: _systems(ours).get(system, 0) for system in CRYSTAL_SYSTEMS},
            "reference": {system: _systems(theirs).get(system, 0) for system in CRYSTAL_SYSTEMS},
        }
    numbers = sorted({int(number) for number in np.concatenate((found, expected)).ravel()} - {0})
    distributions["space_group_symbols"] = {str(number): space_group_symbol(number) for number in numbers}
    return Section(
        name="symmetry",
        title="Symmetry",
        metrics=metrics,
        settings={"tolerances": list(tolerances), "library": library_version(library)},
        per_crystal=columns,
        distributions=distributions,
    )


def find_space_groups(
    crystals: CrystalBatch,
    *,
    runner: Runner,
    tolerances: Sequence[float] = TOLERANCES,
    library: Library = "moyopy",
    description: str = "space groups",
) -> np.ndarray:
    """Return space group numbers (crystals, tolerances), 0 for crystals that are not valid or in which none is found.

    Raises `ConfigError` for an unknown or missing library and for impossible tolerances.
    """
    check_library(library, tolerances)
    lengths = tuple(float(value) for value in tolerances)
    found = map_valid(
        partial(space_groups, library=library, tolerances=lengths),
        crystals,
        runner=runner,
        otherwise=lambda _: [0] * len(lengths),
        description=description,
        namespace=f"space_groups/{_VERSION}/{library_version(library)}/{lengths}",
        chunk=64,
    )
    return np.array(found, dtype=np.int64).reshape(len(crystals), len(lengths))


def _metrics(ours: np.ndarray, theirs: np.ndarray, tolerance: float, library: Library) -> dict[str, Metric]:
    name, source = tolerance_name(tolerance), _SOURCE.format(library=library_version(library))
    with_group, reference_with_group = ours[ours > 0], theirs[theirs > 0]
    at = f"at a tolerance of {name} Å"
    p1 = f"share in P1 among the {{}} crystals that have a space group {at}"

    def divergence(kind: str, first: Mapping[str, int], second: Mapping[str, int]) -> Metric:
        definition = (
            "Jensen–Shannon divergence in bits, 0 for equal and 1 for disjoint distributions, of the "
            f"{kind} of generated and reference crystals that have a space group at {name} Å"
        )
        source = "Lin 1991, doi:10.1109/18.61115"
        return Metric(_jensen_shannon(first, second), definition, source, "", "lower", len(with_group))

    return {
        f"p1_{name}": Metric.share(with_group == 1, len(with_group), p1.format("generated"), source, better="neither"),
        f"p1_reference_{name}": Metric.share(
            reference_with_group == 1, len(reference_with_group), p1.format("reference"), source, better="neither"
        ),
        f"no_space_group_{name}": Metric.share(
            ours == 0,
            len(ours),
            f"share of all generated crystals without a space group {at}: unreadable, structurally invalid, or none "
            "was found",
            source,
            better="lower",
        ),
        f"distinct_space_groups_{name}": Metric(
            len(np.unique(with_group)),
            f"number of different space groups among the generated crystals {at}",
            source,
            count=len(with_group),
        ),
        f"space_group_js_{name}": divergence("space groups", _groups(ours), _groups(theirs)),
        f"crystal_system_js_{name}": divergence("crystal systems", _systems(ours), _systems(theirs)),
    }


def _groups(numbers: np.ndarray) -> dict[str, int]:
    """Count space groups, 0 for none left out."""
    groups, counts = np.unique(numbers[numbers > 0], return_counts=True)
    return dict(zip(map(str, groups.tolist()), counts.tolist(), strict=True))


def _systems(numbers: np.ndarray) -> dict[str, int]:
    return dict(Counter(crystal_system(int(number)) for number in numbers[numbers > 0]))


def _jensen_shannon(first: Mapping[str, int], second: Mapping[str, int]) -> float | None:
    from scipy.stats import entropy

    if not first or not second:
        return None
    names = sorted(set(first) | set(second))
    p, q = (np.array([counts.get(name, 0) for name in names], dtype=float) for counts in (first, second))
    p, q = p / p.sum(), q / q.sum()
    mean = (p + q) / 2
    return float((entropy(p, mean, base=2) + entropy(q, mean, base=2)) / 2)
