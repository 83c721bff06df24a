"""Match rates and RMS displacements of predictions, at any number of candidates per target, gated or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from crystalvae.data.batch import CrystalBatch
from crystalvae.evaluation.matching.candidates import Candidates
from crystalvae.evaluation.matching.pairs import STRICT_TOLERANCES, TOLERANCES, PairMatch
from crystalvae.evaluation.metric import CDVAE, DIFFCSP, Metric
from crystalvae.evaluation.novelty.uniqueness import valid_crystals
from crystalvae.evaluation.validity.composition import INSTALL, PUBLISHED_STATES, smact_installed, smact_settings

GATES = {
    "": ("", f"the tolerances: {CDVAE}; that only the matcher decides: OMatG (Höllmer et al. 2025, arXiv:2502.02582)"),
    "_strict": (", at pymatgen's default tolerances, `strict_tolerances`", "pymatgen"),
    "_gated": (
        ", where only predictions that are valid in structure and composition, of targets that are too, can match",
        f"{DIFFCSP} and its code @1; FlowMM (Miller et al. 2024, arXiv:2406.04713) @1",
    ),
    "_gated_prediction": (
        ", where only predictions that are valid in structure and composition can match",
        f"{CDVAE}; {DIFFCSP} and its code @k, k > 1",
    ),
}
"""By ending of the metric's name: what is different about it, and whose definition it is."""


@dataclass(frozen=True, eq=False)
class Gates:
    """Which of T targets and M predictions are valid in structure and composition; None where that is not known."""

    target: Bool[np.ndarray, "T"] | None = None
    prediction: Bool[np.ndarray, "M"] | None = None

    @classmethod
    def of(cls, targets: CrystalBatch, predictions: CrystalBatch) -> Gates:
        """Return what SMACT and the structural limits say; without SMACT nothing is known."""
        if not smact_installed():
            return cls()
        return cls(valid_crystals(targets), valid_crystals(predictions))

    def settings(self) -> dict[str, object]:
        """Return what decides about validity, for the output."""
        if self.prediction is None:
            return {"gate": f"left out: gated match rates {INSTALL}"}
        return {"gate": smact_settings(PUBLISHED_STATES)}


def match_metrics(
    pairs: Sequence[PairMatch], candidates: Candidates, gates: Gates, *, k: int, ending: str = ""
) -> dict[str, Metric]:
    """Return match rate and mean RMS displacement over the targets, each with its gated and its stricter variant.

    A target is matched where one of its first `k` candidates matches it; the smallest RMS displacement of these is
    taken, as the published codes do. `ending` is put after each name, such as "@20".
    """
    early = candidates.rank < k
    loose = np.array([math.nan if pair.rms is None else pair.rms for pair in pairs], dtype=float)
    strict = np.array([math.nan if pair.rms_strict is None else pair.rms_strict for pair in pairs], dtype=float)
    chosen = {"": (loose, early), "_strict": (strict, early)}
    if gates.prediction is not None and gates.target is not None:
        chosen["_gated"] = (loose, early & gates.prediction & gates.target[candidates.owner])
        chosen["_gated_prediction"] = (loose, early & gates.prediction)
    best_of = f", the best of the first {k} candidates" if k > 1 else ", the first candidate" if ending else ""
    result: dict[str, Metric] = {}
    for gate, (rms, allowed) in chosen.items():
        best = best_per_target(np.where(allowed, rms, math.nan), candidates)
        matched = best[np.isfinite(best)]
        difference, source = GATES[gate]
        tolerances = STRICT_TOLERANCES if gate == "_strict" else TOLERANCES
        result[f"match_rate{gate}{ending}"] = Metric.share(
            len(matched),
            candidates.targets,
            "share of all targets, failed ones included, that StructureMatcher matches at "
            f"{tuple(tolerances.values())} (ltol, stol, angle_tol){best_of}{difference}",
            source,
        )
        result[f"rmse{gate}{ending}"] = Metric(
            math.fsum(matched) / len(matched) if len(matched) else None,
            "mean over the matched targets of the RMS displacement divided by (V/n)^(1/3), as "
            f"get_rms_dist(prediction, target) gives it{best_of}{difference}",
            source,
            better="lower",
            count=len(matched),
        )
    return result


def best_per_target(rms: Float[np.ndarray, "M"], candidates: Candidates) -> Float[np.ndarray, "T"]:
    """Return the smallest number of each target, NaN where it has none."""
    best = np.full(candidates.targets, math.inf)
    np.fmin.at(best, candidates.owner, rms)
    return np.where(np.isfinite(best), best, math.nan)


def failure_metrics(pairs: Sequence[PairMatch], unreadable: int = 0) -> dict[str, Metric]:
    """Return how often the matcher gave no answer, and how often that was for lack of time."""
    failed = sum(pair.failure is not None for pair in pairs) + unreadable
    timed_out = sum(pair.timed_out for pair in pairs)
    total = len(pairs) + unreadable
    return {
        "failed": Metric(
            failed,
            "predictions for which the matcher gave no answer, unreadable ones included; they count as no match",
            better="lower",
            count=total,
        ),
        "timed_out": Metric(
            timed_out, "of `failed`, those for which `timeout_s` was not enough", better="lower", count=total
        ),
    }


def pair_columns(pairs: Sequence[PairMatch], gates: Gates) -> dict[str, list[object]]:
    """Return what is known of each pair, for the output."""
    columns: dict[str, list[object]] = {
        "rms": [pair.rms for pair in pairs],
        "rms_strict": [pair.rms_strict for pair in pairs],
        "failure": [pair.failure for pair in pairs],
    }
    if gates.prediction is not None:
        columns["valid"] = gates.prediction.tolist()
    return columns
