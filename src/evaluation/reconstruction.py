"""How well crystals come back: structure matching, elements, lattices and coordinates."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from src.data.batch import CrystalBatch
from src.data.lattice import lattice_to_parameters, periodic_difference
from src.errors import DataError, OutputError
from src.evaluation.matching import STRICT_TOLERANCES, TOLERANCES, PairMatch, match_pairs

if TYPE_CHECKING:
    from rich.table import Table

DEFINITIONS = {
    "crystals": "pairs compared: prediction i with target i",
    "match_rate": "share of all crystals, failed ones included, that StructureMatcher matches at `tolerances`",
    "rmse": "mean over the matches of the RMS displacement divided by (V/n)^(1/3), as get_rms_dist(prediction, target) "
    "gives it",
    "match_rate_strict": "as match_rate, at pymatgen's default tolerances, `strict_tolerances`",
    "rmse_strict": "as rmse, over the matches at `strict_tolerances`",
    "element_accuracy": "share of atoms with the target's element, atoms compared in the same order",
    "length_mae": "mean absolute error of a, b and c in Å",
    "angle_mae": "mean absolute error of α, β and γ in degrees",
    "coordinate_rms": "root mean square over atoms, in the same order, of the difference of fractional coordinates, "
    "wrapped to the nearest image, in the target's lattice, in Å; no common shift is taken out",
    "failed": "crystals for which the matcher gave no answer; they count as no match",
    "finite": "crystals with finite lattice and coordinates; length_mae, angle_mae and coordinate_rms are over these",
}
"""What each number of a report means; written beside the numbers."""


@dataclass(frozen=True)
class ReconstructionReport:
    """Measures of a reconstruction, defined in `DEFINITIONS`; NaN where there was nothing to average over.

    `pairs` has the matcher's answer for each crystal, in order.
    """

    crystals: int
    match_rate: float
    rmse: float
    match_rate_strict: float
    rmse_strict: float
    element_accuracy: float
    length_mae: float
    angle_mae: float
    coordinate_rms: float
    failed: int
    finite: int
    pairs: Sequence[PairMatch] = field(repr=False)

    def metrics(self) -> dict[str, float | int]:
        """Return the measures alone, by name."""
        return {name: getattr(self, name) for name in DEFINITIONS}

    def to_dict(self, *, ids: Sequence[str] | None = None) -> dict[str, object]:
        """Return everything as plain data for JSON (NaN as None), with definitions, tolerances and versions.

        With `ids`, one a crystal, the matcher's answer for each is added under `per_crystal`.
        """
        result: dict[str, object] = {
            "metrics": {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in self.metrics().items()},
            "definitions": DEFINITIONS,
            "tolerances": TOLERANCES,
            "strict_tolerances": STRICT_TOLERANCES,
            "versions": {"pymatgen": version("pymatgen")},
        }
        if ids is not None:
            result["per_crystal"] = [{"id": n, **asdict(p)} for n, p in zip(ids, self.pairs, strict=True)]
        return result

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
    n_jobs: int = -1,
    timeout_s: float | None = None,
    progress: bool = True,
) -> ReconstructionReport:
    """Compare predictions with targets, crystal i with crystal i and atom j with atom j.

    `n_jobs`, `timeout_s` and `progress` are those of `match_pairs`. The tolerances are the published ones
    (CDVAE, Xie et al. 2022), with pymatgen's stricter defaults beside them; unlike CDVAE's code, which calls every
    reconstruction with an implausible composition unmatched, nothing but the matcher decides.

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
    pairs = match_pairs(
        target.to_arrays(), prediction.to_arrays(), n_jobs=n_jobs, timeout_s=timeout_s, progress=progress
    )
    loose = [pair.rms for pair in pairs if pair.rms is not None]
    strict = [pair.rms_strict for pair in pairs if pair.rms_strict is not None]
    finite = _finite(target) & _finite(prediction)
    target_kept, prediction_kept = target[finite], prediction[finite]
    lengths, angles = lattice_to_parameters(target_kept.lattices)
    predicted_lengths, predicted_angles = lattice_to_parameters(prediction_kept.lattices)
    difference = periodic_difference(prediction_kept.frac_coords, target_kept.frac_coords)
    displacement = torch.einsum("ni,nij->nj", difference, target_kept.lattices[target_kept.batch])
    return ReconstructionReport(
        crystals=len(pairs),
        match_rate=len(loose) / len(pairs),
        rmse=_mean(loose),
        match_rate_strict=len(strict) / len(pairs),
        rmse_strict=_mean(strict),
        element_accuracy=float((target.atom_types == prediction.atom_types).double().mean()),
        length_mae=float((predicted_lengths - lengths).abs().mean()),
        angle_mae=float(torch.rad2deg(predicted_angles - angles).abs().mean()),
        coordinate_rms=float(displacement.square().sum(-1).mean().sqrt()),
        failed=sum(pair.failure is not None for pair in pairs),
        finite=int(finite.sum()),
        pairs=pairs,
    )


def format_table(report: ReconstructionReport) -> Table:
    """Return a table of the measures for `rich`'s console."""
    from rich.table import Table

    table = Table(title=f"Reconstruction of {report.crystals} crystals")
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("definition")
    units = {"length_mae": " Å", "angle_mae": "°", "coordinate_rms": " Å"}
    for name, value in report.metrics().items():
        if "rate" in name or "accuracy" in name:
            shown = f"{value:.2%}"
        elif isinstance(value, int):
            shown = str(value)
        else:
            shown = "none" if math.isnan(value) else f"{value:.4f}{units.get(name, '')}"
        table.add_row(name, shown, DEFINITIONS[name])
    return table


def write_report(
    report: ReconstructionReport,
    path: Path | str,
    *,
    ids: Sequence[str] | None = None,
    extra: dict[str, object] | None = None,
) -> Path:
    """Write `report.to_dict(ids=ids)` and what is in `extra` as JSON, whole or not at all, and return the path.

    Raises `OutputError` where the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**(extra or {}), **report.to_dict(ids=ids)}, indent=1, ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write the report {path}: {error.strerror or error}. Give another path") from error
    finally:
        if partial.exists():
            partial.unlink()
    return path


def _double(crystals: CrystalBatch) -> CrystalBatch:
    host = crystals.detach().to("cpu")
    return host.replace(frac_coords=host.frac_coords.double(), lattices=host.lattices.double())


def _finite(crystals: CrystalBatch) -> Bool[Tensor, "B"]:
    finite = torch.isfinite(crystals.lattices).all(dim=-1).all(dim=-1)
    finite[crystals.batch[~torch.isfinite(crystals.frac_coords).all(dim=-1)]] = False
    return finite


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
