"""The part of the evaluation about given targets: how well crystals come back, and whether candidates find them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import torch

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.matching.candidates import Candidates
from crystalvae.evaluation.matching.differences import error_metrics, lattice_parameters
from crystalvae.evaluation.matching.match_rate import (
    Gates,
    best_per_target,
    failure_metrics,
    match_metrics,
    pair_columns,
)
from crystalvae.evaluation.matching.pairs import STRICT_TOLERANCES, TIME_LIMIT_S, TOLERANCES, PairMatch, match_pairs
from crystalvae.evaluation.metric import Metric, Number, Section
from crystalvae.evaluation.parallel.runner import Runner


@dataclass(frozen=True)
class ReconstructionReport:
    """Measures of a reconstruction by name, each with its meaning, and the matcher's answer for each crystal in order.

    Numbers are attributes too (`report.match_rate`), NaN where there was nothing to average over.
    """

    metrics: Mapping[str, Metric]
    pairs: Sequence[PairMatch] = field(repr=False)
    gates: Gates = field(repr=False, compare=False)
    timeout_s: float | None = None
    parameters: Mapping[str, list[object]] = field(repr=False, compare=False, default_factory=dict)

    def __getattr__(self, name: str) -> Number:
        if name.startswith("_") or name not in self.metrics:
            known = ", ".join(self.metrics) if not name.startswith("_") else ""
            raise AttributeError(f"no measure {name!r}; there are {known}")
        value = self.metrics[name].value
        return math.nan if value is None else value

    def section(self) -> Section:
        """Return the report as a part of an evaluation."""
        return Section(
            name="reconstruction",
            title="Reconstruction",
            metrics=self.metrics,
            settings=_settings(self.gates, self.timeout_s),
            per_crystal=pair_columns(self.pairs, self.gates),
            distributions=dict(self.parameters),
        )

    def worst(self, count: int = 10) -> list[int]:
        """Return the indices of the worst crystals: failed, then unmatched, then by falling RMS displacement."""

        def badness(index: int) -> tuple[bool, bool, float]:
            pair = self.pairs[index]
            return pair.failure is not None, pair.rms is None, pair.rms or 0.0

        return sorted(range(len(self.pairs)), key=badness, reverse=True)[:count]


def reconstruction_metrics(
    targets: CrystalBatch,
    predictions: CrystalBatch,
    *,
    runner: Runner | None = None,
    timeout_s: float | None = TIME_LIMIT_S,
) -> ReconstructionReport:
    """Compare predictions with targets, crystal i with crystal i and atom j with atom j.

    The tolerances are the published ones (CDVAE, Xie et al. 2022), with pymatgen's stricter defaults beside them. In
    `match_rate` and `rmse` nothing but the matcher decides; the gated variants, which are those of the published codes,
    also ask for validity and need SMACT. `runner` is by default one process per core; a pair may take `timeout_s`.

    Raises `DataError` unless both hold the same numbers of atoms in the same order, and at least one crystal.
    """
    target, prediction = _double(targets), _double(predictions)
    if not torch.equal(target.num_atoms, prediction.num_atoms):
        raise DataError(
            f"predictions: expected the {len(target)} targets' atom counts {target.num_atoms[:5].tolist()}…, in their "
            f"order, got {len(prediction)} crystals with {prediction.num_atoms[:5].tolist()}…"
        )
    if len(target) == 0:
        raise DataError("targets: expected at least one crystal to compare, got none")
    pairs = match_pairs(target.to_arrays(), prediction.to_arrays(), runner=runner or Runner(), timeout_s=timeout_s)
    gates = Gates.of(target, prediction)
    return ReconstructionReport(
        metrics={
            "crystals": Metric(len(pairs), "pairs compared: prediction i with target i"),
            **match_metrics(pairs, Candidates.one_each(len(pairs)), gates, k=1),
            **error_metrics(target, prediction),
            **failure_metrics(pairs),
        },
        pairs=pairs,
        gates=gates,
        timeout_s=timeout_s,
        parameters=lattice_parameters(target, prediction),
    )


def csp_section(
    *,
    targets: CrystalBatch,
    generated: CrystalBatch,
    candidates: Candidates,
    runner: Runner,
    ks: Sequence[int] | None = None,
    unreadable: int = 0,
    target_ids: Sequence[str] | None = None,
    timeout_s: float | None = TIME_LIMIT_S,
) -> Section:
    """Match candidates with their targets, and return match rates and RMS displacements @k for each of `ks`.

    `candidates` says of each generated crystal which target it is for and which of its candidates it is; see
    `assign`. `ks` is by default 1 and the largest number of candidates. A target without candidates counts as not
    matched.

    Raises `ConfigError` for impossible `ks`, `DataError` where there are no targets.
    """
    if len(targets) == 0:
        raise DataError("targets: expected at least one crystal to predict, got none")
    ks = sorted({1, candidates.most} if ks is None else set(ks))
    if not ks or ks[0] < 1:
        raise ConfigError(f"ks={ks}: expected numbers of candidates of at least 1")
    known, offered = targets.to_arrays(), generated.to_arrays()
    pairs = match_pairs([known[i] for i in candidates.owner.tolist()], offered, runner=runner, timeout_s=timeout_s)
    gates = Gates.of(targets, generated)
    unasked = len(targets) - len(np.unique(candidates.owner))
    metrics: dict[str, Metric] = {
        "targets": Metric(len(targets), "crystals to predict"),
        "candidates": Metric(len(pairs) + unreadable, "candidates in total, unreadable ones included"),
        "candidates_per_target": Metric(candidates.most, "largest number of candidates of a target"),
        "targets_without_candidates": Metric(
            unasked, "targets with no readable candidate; they count as not matched", better="lower"
        ),
    }
    for k in ks:
        metrics |= match_metrics(pairs, candidates, gates, k=k, ending=f"@{k}")
    metrics |= failure_metrics(pairs, unreadable)
    ids = [str(i) for i in range(len(targets))] if target_ids is None else list(target_ids)
    rms = np.array([np.nan if pair.rms is None else pair.rms for pair in pairs], dtype=float)
    best = best_per_target(rms, candidates)
    return Section(
        name="csp",
        title="Structure prediction",
        metrics=metrics,
        settings=_settings(gates, timeout_s),
        per_crystal={
            "target": [ids[i] for i in candidates.owner.tolist()],
            "rank": candidates.rank.tolist(),
            **pair_columns(pairs, gates),
        },
        distributions={"target_id": ids, "target_best_rms": [x if np.isfinite(x) else None for x in best.tolist()]},
    )


def _settings(gates: Gates, timeout_s: float | None) -> dict[str, object]:
    """Return what decides about matches, for the output."""
    return {
        "tolerances": dict(TOLERANCES),
        "strict_tolerances": dict(STRICT_TOLERANCES),
        "timeout_s": timeout_s,
        "versions": {"pymatgen-core": version("pymatgen-core")},
        **gates.settings(),
    }


def _double(crystals: CrystalBatch) -> CrystalBatch:
    host = crystals.detach().to("cpu")
    return host.replace(frac_coords=host.frac_coords.double(), lattices=host.lattices.double())
