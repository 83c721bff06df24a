"""The parts of the evaluation that compare distributions: coverage, and Wasserstein distances."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from jaxtyping import Bool

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.distributions.coverage import (
    CUTOFFS,
    TIMEOUT_S,
    Cutoffs,
    Fingerprints,
    fingerprints,
    nearest_distances,
)
from crystalvae.evaluation.distributions.fingerprints import INSTALL as INSTALL_MATMINER
from crystalvae.evaluation.distributions.fingerprints import matminer_installed
from crystalvae.evaluation.distributions.wasserstein import quantities, wasserstein
from crystalvae.evaluation.metric import CDVAE, HERE, Metric, Section
from crystalvae.evaluation.novelty.uniqueness import valid_crystals
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.validity.composition import INSTALL as INSTALL_SMACT
from crystalvae.evaluation.validity.composition import smact_installed

COVERAGE_SOURCE = f"{CDVAE} (compute_cov); the same in DiffCSP and FlowMM"
WASSERSTEIN_SOURCE = f"{CDVAE} (GenEval); the same in DiffCSP and FlowMM"
NUM_SAMPLES = 1000
"""How many valid crystals CDVAE's code compares in Wasserstein distances."""


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
        return Section(name="coverage", title=title, skipped=f"coverage {INSTALL_MATMINER}")
    ours = fingerprints(generated, runner, timeout_s=timeout_s, description="fingerprints")
    theirs = fingerprints(reference, runner, timeout_s=timeout_s, description="fingerprints of the reference")
    kept, reference_kept = ours.kept(), theirs.kept()
    found, nearest = _coverage(ours, theirs, kept, reference_kept, cutoffs, len(generated) + unreadable)
    columns: dict[str, list[object]] = {"fingerprint_failure": list(ours.failures)}
    for name, values in nearest.items():
        column: list[object] = [None] * len(generated)
        for index, value in zip(kept.tolist(), values.tolist(), strict=True):
            column[index] = float(f"{value:.7g}")
        columns[name] = column
    failures = Metric(
        len(generated) - len(kept), "generated crystals without a fingerprint; CDVAE's code counts them as invalid",
        COVERAGE_SOURCE, "crystals", "lower", len(generated),
    )  # fmt: skip
    return Section(
        name="coverage",
        title=title,
        metrics={**found, "fingerprint_failed": failures},
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


def wasserstein_section(
    *,
    generated: CrystalBatch,
    reference: CrystalBatch,
    valid: Bool[np.ndarray, "B"] | None = None,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> Section:
    """Return Wasserstein distances to the reference, of a seeded choice of valid crystals, and of all of them.

    `valid` says which crystals are valid, by default those valid in structure and composition. CDVAE's code also wants
    a fingerprint of each, and stops where there are fewer than `num_samples` valid ones; here all of them are taken
    then, and `count` says how many that is.

    Raises `ConfigError` for `num_samples` below 1, `DataError` unless `valid` has one value per crystal.
    """
    title = "Distributions"
    if num_samples < 1:
        raise ConfigError(f"num_samples={num_samples}: expected at least 1")
    if valid is None:
        if not smact_installed():
            return Section(name="wasserstein", title=title, skipped=f"the choice of valid crystals {INSTALL_SMACT}")
        valid = valid_crystals(generated)
    if valid.shape != (len(generated),):
        raise DataError(f"valid: expected one value for each of {len(generated)} crystals, got shape {valid.shape}")
    ours, theirs = quantities(generated), quantities(reference)
    usable = np.isfinite(ours.to_numpy(dtype=float)).all(axis=1)
    chosen = np.flatnonzero(valid & usable)
    if len(chosen) > num_samples:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, num_samples, replace=False))
    metrics: dict[str, Metric] = {}
    for ending, members, what in (
        ("", chosen, f"{num_samples} valid generated crystals, chosen by seed (all valid ones if fewer)"),
        ("_all", np.flatnonzero(usable), "all generated crystals that have a density, valid or not"),
    ):
        for name, unit, text in (
            ("density", "g/cm^3", "densities"),
            ("num_elements", "elements", "numbers of different elements"),
            ("volume_per_atom", "Å^3", "volumes per atom"),
        ):
            metrics[f"wasserstein_{name}{ending}"] = Metric(
                wasserstein(ours[name].to_numpy(dtype=float)[members], theirs[name].to_numpy(dtype=float)),
                f"Wasserstein-1 distance of {text} between {what}, and the reference",
                WASSERSTEIN_SOURCE if name != "volume_per_atom" and not ending else HERE,
                unit,
                "lower",
                len(members),
            )
    return Section(
        name="wasserstein",
        title=title,
        metrics=metrics,
        settings={"num_samples": num_samples, "seed": seed, "reference_crystals": len(reference)},
    )


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
        "cov_recall": Metric.share(
            near, len(near), f"COV-R: share of reference crystals that have a generated one {limits}", COVERAGE_SOURCE
        ),
        "cov_precision": Metric.share(
            precise, total, f"COV-P: share of generated crystals that have a reference one {limits}", COVERAGE_SOURCE
        ),
    }
    structure, composition = "structure fingerprint", "scaled composition fingerprint"
    for name, values, what in (
        ("amsd_recall", structure_recall, f"{structure} from reference crystals to generated ones"),
        ("amsd_precision", structure_precision, f"{structure} from generated crystals to reference ones"),
        ("amcd_recall", composition_recall, f"{composition} from reference crystals to generated ones"),
        ("amcd_precision", composition_precision, f"{composition} from generated to reference crystals"),
    ):
        finite = values[np.isfinite(values)]
        found[name] = Metric.mean(finite, f"mean of the smallest distance in {what}", COVERAGE_SOURCE)
    return found, {"structure_distance": structure_precision, "composition_distance": composition_precision}
