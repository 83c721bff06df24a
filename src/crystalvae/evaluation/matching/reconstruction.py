"""How well crystals come back: structure matching, elements, lattices and coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import lattice_to_parameters, periodic_difference
from crystalvae.errors import DataError
from crystalvae.evaluation.matching.match_rate import Candidates, Gates, failure_metrics, match_metrics, pair_columns
from crystalvae.evaluation.matching.pairs import STRICT_TOLERANCES, TIME_LIMIT_S, TOLERANCES, PairMatch, match_pairs
from crystalvae.evaluation.metric import Metric, Number, Section
from crystalvae.evaluation.parallel.runner import Runner

HERE = "this package"


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
            settings={
                "tolerances": dict(TOLERANCES),
                "strict_tolerances": dict(STRICT_TOLERANCES),
                "timeout_s": self.timeout_s,
                "versions": {"pymatgen-core": version("pymatgen-core")},
                **self.gates.settings(),
            },
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
    also ask for validity and need SMACT. `runner` is by default one process a core; a pair may take `timeout_s`.

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
    everything = np.arange(len(pairs))
    gates = Gates.of(target, prediction)
    one_each = Candidates(owner=everything, rank=np.zeros_like(everything), targets=len(pairs))
    crystals = Metric(len(pairs), "pairs compared: prediction i with target i", HERE)
    return ReconstructionReport(
        metrics={
            "crystals": crystals,
            **match_metrics(pairs, one_each, gates, k=1),
            **_errors(target, prediction),
            **failure_metrics(pairs),
        },
        pairs=pairs,
        gates=gates,
        timeout_s=timeout_s,
        parameters=_parameters(target, prediction),
    )


def _errors(target: CrystalBatch, prediction: CrystalBatch) -> dict[str, Metric]:
    """Return errors of elements, lattice and coordinates; the last two over crystals that are finite on both sides."""
    finite = _finite(target) & _finite(prediction)
    target_kept, prediction_kept = target[finite], prediction[finite]
    lengths, angles = lattice_to_parameters(target_kept.lattices)
    predicted_lengths, predicted_angles = lattice_to_parameters(prediction_kept.lattices)
    difference = periodic_difference(prediction_kept.frac_coords, target_kept.frac_coords)
    displacement = torch.einsum("ni,nij->nj", difference, target_kept.lattices[target_kept.batch])
    same = (target.atom_types == prediction.atom_types).double()
    count = int(finite.sum())
    return {
        "element_accuracy": Metric(
            _number(same.mean()),
            "share of atoms with the target's element, atoms compared in the same order",
            HERE,
            unit="share",
            better="higher",
            count=len(target),
        ),
        "length_mae": Metric(
            _number((predicted_lengths - lengths).abs().mean()),
            "mean absolute error of a, b and c, over `finite`",
            HERE,
            unit="Å",
            better="lower",
            count=count,
        ),
        "angle_mae": Metric(
            _number(torch.rad2deg(predicted_angles - angles).abs().mean()),
            "mean absolute error of α, β and γ, over `finite`",
            HERE,
            unit="°",
            better="lower",
            count=count,
        ),
        "coordinate_rms": Metric(
            _number(displacement.square().sum(-1).mean().sqrt()),
            "root mean square over atoms, in the same order, of the difference of fractional coordinates, wrapped to "
            "the nearest image, in the target's lattice, over `finite`; no common shift is taken out",
            HERE,
            unit="Å",
            better="lower",
            count=count,
        ),
        "finite": Metric(count, "crystals with finite lattice and coordinates", HERE, better="higher"),
    }


def _parameters(target: CrystalBatch, prediction: CrystalBatch) -> dict[str, list[object]]:
    """Return lengths (Å) and angles (degrees) of each crystal on both sides, to be drawn against each other."""
    result: dict[str, list[object]] = {}
    for name, crystals in (("target", target), ("prediction", prediction)):
        for quantity, values in (("lengths", crystals.lengths), ("angles", crystals.angles)):
            result[f"{name}_{quantity}"] = [
                [round(value, 5) if math.isfinite(value) else None for value in row] for row in values.tolist()
            ]
    return result


def _double(crystals: CrystalBatch) -> CrystalBatch:
    host = crystals.detach().to("cpu")
    return host.replace(frac_coords=host.frac_coords.double(), lattices=host.lattices.double())


def _finite(crystals: CrystalBatch) -> Bool[Tensor, "B"]:
    finite = torch.isfinite(crystals.lattices).all(dim=-1).all(dim=-1)
    finite[crystals.batch[~torch.isfinite(crystals.frac_coords).all(dim=-1)]] = False
    return finite


def _number(value: Tensor) -> float | None:
    return float(value) if bool(torch.isfinite(value)) else None
