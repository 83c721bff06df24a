"""Coverage: how much of a reference generated crystals come near (COV-R), and how many of them come near it (COV-P)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import Float

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.evaluation.distributions.fingerprints import (
    COMPOSITION_LENGTH,
    INSTALL,
    ORBIT_SYMPREC,
    STRUCTURE_LENGTH,
    composition_fingerprint,
    matminer_installed,
    structure_fingerprint,
)
from crystalvae.evaluation.metric import Metric, Section
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.parallel.time_limit import check_time_limit
from crystalvae.evaluation.validity.composition import reduced_compositions

SOURCE = "CDVAE (Xie et al. 2022, arXiv:2110.06197) and its code (compute_cov); the same in DiffCSP and FlowMM"
TIMEOUT_S = 300.0
"""Seconds that one structure fingerprint may take."""
ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class Cutoffs:
    """Distances within which a crystal is covered: of structure and of scaled composition fingerprints."""

    structure: float
    composition: float

    def __post_init__(self) -> None:
        for name in ("structure", "composition"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"coverage cut-off {name}={getattr(self, name)}: expected a positive number")


CUTOFFS: Mapping[str, Cutoffs] = {
    "mp_20": Cutoffs(structure=0.4, composition=10.0),
    "carbon_24": Cutoffs(structure=0.2, composition=4.0),
    "perov_5": Cutoffs(structure=0.2, composition=4.0),
}
"""The published cut-offs, by data set (CDVAE's code)."""


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Structure and scaled composition fingerprints of B crystals; `failures` say why a row is NaN."""

    structure: Float[np.ndarray, "B 61"]
    composition: Float[np.ndarray, "B 132"]
    failures: Sequence[str]

    def kept(self) -> np.ndarray:
        """Return the numbers of the crystals that have both."""
        return np.flatnonzero(np.isfinite(self.structure).all(axis=1) & np.isfinite(self.composition).all(axis=1))


def coverage_section(
    *,
    generated: CrystalBatch,
    reference: CrystalBatch,
    runner: Runner,
    cutoffs: Cutoffs = CUTOFFS["mp_20"],
    unreadable: int = 0,
    timeout_s: float | None = TIMEOUT_S,
) -> Section:
    """Return COV-R and COV-P with the mean smallest distances behind them (AMSD of structures, AMCD of compositions).

    All generated crystals count, valid or not; those without a fingerprint, and `unreadable` ones, which are not in
    `generated`, cover nothing and are not covered. Crystals of the reference without a fingerprint are left out; how
    many stands in the settings. Without matminer the section is skipped.
    """
    title = "Coverage"
    if not matminer_installed():
        return Section(name="coverage", title=title, skipped=f"coverage {INSTALL}")
    ours = fingerprints(generated, runner, timeout_s=timeout_s, description="fingerprints")
    theirs = fingerprints(reference, runner, timeout_s=timeout_s, description="fingerprints of the reference")
    kept, reference_kept = ours.kept(), theirs.kept()
    found, nearest = _coverage(ours, theirs, kept, reference_kept, cutoffs, len(generated) + unreadable)
    failed = len(generated) - len(kept)
    columns: dict[str, list[object]] = {"fingerprint_failure": list(ours.failures)}
    for name, values in nearest.items():
        column: list[object] = [None] * len(generated)
        for index, value in zip(kept.tolist(), values.tolist(), strict=True):
            column[index] = float(f"{value:.7g}")
        columns[name] = column
    found["fingerprint_failed"] = Metric(
        value=failed,
        definition="generated crystals without a fingerprint; CDVAE's code counts them as invalid",
        source=SOURCE,
        unit="crystals",
        better="lower",
        count=len(generated),
    )
    return Section(
        name="coverage",
        title=title,
        metrics=found,
        settings={
            "structure_cutoff": cutoffs.structure,
            "composition_cutoff": cutoffs.composition,
            "reference_crystals": len(reference_kept),
            "reference_without_fingerprint": len(reference) - len(reference_kept),
            "fingerprints": "matminer: CrystalNNFingerprint ops, mean over sites; ElementProperty magpie, not imputed",
            "scaling": "composition features by CDVAE's means and standard deviations, NaN to 0 afterwards",
            "matminer_version": version("matminer"),
            "pymatgen_version": version("pymatgen-core"),
        },
        per_crystal=columns,
    )


def fingerprints(
    crystals: CrystalBatch, runner: Runner, *, timeout_s: float | None = TIMEOUT_S, description: str = "fingerprints"
) -> Fingerprints:
    """Return the fingerprints of crystals; compositions are scaled as published, with NaN set to 0 after it."""
    check_time_limit("timeout_s", timeout_s)
    packages = ("matminer", "moyopy", "pymatgen-core")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    structures = runner.map(
        partial(structure_fingerprint, timeout_s=timeout_s),
        crystals.to_arrays(),
        description=description,
        namespace=f"CrystalNN ops fingerprint, an atom of each orbit at {ORBIT_SYMPREC:g} Å, {versions}",
        chunk=4,
    )
    compositions = runner.map(
        composition_fingerprint,
        reduced_compositions(crystals),
        description=f"{description}: compositions",
        namespace=f"Magpie fingerprint, {versions}",
        chunk=256,
    )
    means, deviations = published_scaling()
    scaled = (_rows(compositions, COMPOSITION_LENGTH) - means) / deviations
    known = np.array(["failure" not in result for result in compositions], dtype=bool)
    scaled[known] = np.nan_to_num(scaled[known], nan=0.0)
    failures = [
        str(first.get("failure") or second.get("failure") or "")
        for first, second in zip(structures, compositions, strict=True)
    ]
    return Fingerprints(structure=_rows(structures, STRUCTURE_LENGTH), composition=scaled, failures=failures)


@cache
def published_scaling() -> tuple[Float[np.ndarray, "132"], Float[np.ndarray, "132"]]:
    """Return mean and standard deviation of each Magpie feature, in matminer's order, that CDVAE's code scales by."""
    stored = json.loads(Path(__file__).with_name("magpie_scaling.json").read_text(encoding="utf-8"))
    return np.concatenate(list(stored["mean"].values())), np.concatenate(list(stored["std"].values()))


def _rows(results: Sequence[Mapping[str, object]], length: int) -> np.ndarray:
    empty = [np.nan] * length
    return np.array([result.get("fingerprint", empty) for result in results], dtype=float).reshape(-1, length)


def _coverage(
    ours: Fingerprints,
    theirs: Fingerprints,
    kept: np.ndarray,
    reference_kept: np.ndarray,
    cutoffs: Cutoffs,
    total: int,
) -> tuple[dict[str, Metric], dict[str, np.ndarray]]:
    structure_precision, structure_recall = nearest_distances(ours.structure[kept], theirs.structure[reference_kept])
    composition_precision, composition_recall = nearest_distances(
        ours.composition[kept], theirs.composition[reference_kept]
    )
    near = (structure_recall <= cutoffs.structure) & (composition_recall <= cutoffs.composition)
    precise = (structure_precision <= cutoffs.structure) & (composition_precision <= cutoffs.composition)
    limits = (
        f"within {cutoffs.structure:g} of its structure fingerprint and one, not always the same, within "
        f"{cutoffs.composition:g} of its scaled composition fingerprint"
    )
    found = {
        "cov_recall": Metric(
            value=float(near.mean()) if len(near) else None,
            definition=f"COV-R: share of reference crystals that have a generated one {limits}",
            source=SOURCE,
            unit="share",
            better="higher",
            count=len(near),
        ),
        "cov_precision": Metric(
            value=int(precise.sum()) / total if total else None,
            definition=f"COV-P: share of generated crystals that have a reference one {limits}",
            source=SOURCE,
            unit="share",
            better="higher",
            count=total,
        ),
    }
    for name, values, what in (
        ("amsd_recall", structure_recall, "structure fingerprint from reference crystals to generated ones"),
        ("amsd_precision", structure_precision, "structure fingerprint from generated crystals to reference ones"),
        ("amcd_recall", composition_recall, "scaled composition fingerprint from reference crystals to generated ones"),
        (
            "amcd_precision",
            composition_precision,
            "scaled composition fingerprint from generated to reference crystals",
        ),
    ):
        finite = values[np.isfinite(values)]
        found[name] = Metric(
            value=float(finite.mean()) if len(finite) else None,
            definition=f"mean of the smallest distance in {what}",
            source=SOURCE,
            better="lower",
            count=len(finite),
        )
    return found, {"structure_distance": structure_precision, "composition_distance": composition_precision}


def nearest_distances(
    first: Float[np.ndarray, "M F"], second: Float[np.ndarray, "N F"]
) -> tuple[Float[np.ndarray, "M"], Float[np.ndarray, "N"]]:
    """Return the smallest Euclidean distance from each row of one array to the other's; infinite to an empty array."""
    from scipy.spatial.distance import cdist

    forward, backward = np.full(len(first), np.inf), np.full(len(second), np.inf)
    if len(first) == 0 or len(second) == 0:
        return forward, backward
    for start in range(0, len(first), ROWS_AT_ONCE):
        distances = cdist(first[start : start + ROWS_AT_ONCE], second)
        forward[start : start + ROWS_AT_ONCE] = distances.min(axis=1)
        backward = np.minimum(backward, distances.min(axis=0))
    return forward, backward
