"""How far the densities and the numbers of elements of generated crystals are from those of a reference."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.metric import Metric, Section
from crystalvae.evaluation.novelty.uniqueness import valid_crystals
from crystalvae.evaluation.validity.composition import INSTALL, reduced_compositions, smact_installed
from crystalvae.evaluation.validity.structure import describe

NUM_SAMPLES = 1000
"""How many valid crystals CDVAE's code compares."""
SOURCE = "CDVAE (Xie et al. 2022, arXiv:2110.06197) and its code (GenEval); the same in DiffCSP and FlowMM"


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

    Raises `ConfigError` for `num_samples` below 1, `DataError` unless `valid` has one value a crystal.
    """
    title = "Distributions"
    if num_samples < 1:
        raise ConfigError(f"num_samples={num_samples}: expected at least 1")
    if valid is None:
        if not smact_installed():
            return Section(name="wasserstein", title=title, skipped=f"the choice of valid crystals {INSTALL}")
        valid = valid_crystals(generated)
    if valid.shape != (len(generated),):
        raise DataError(f"valid: expected one value for each of {len(generated)} crystals, got shape {valid.shape}")
    ours, theirs = _quantities(generated), _quantities(reference)
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
                value=wasserstein(ours[name].to_numpy(dtype=float)[members], theirs[name].to_numpy(dtype=float)),
                definition=f"Wasserstein-1 distance of {text} between {what}, and the reference",
                source=SOURCE if name != "volume_per_atom" and not ending else "this package",
                unit=unit,
                better="lower",
                count=len(members),
            )
    return Section(
        name="wasserstein",
        title=title,
        metrics=metrics,
        settings={"num_samples": num_samples, "seed": seed, "reference_crystals": len(reference)},
    )


def wasserstein(first: Float[np.ndarray, "M"], second: Float[np.ndarray, "N"]) -> float | None:
    """Return the Wasserstein-1 distance of two samples, NaN left out; None where one of them is empty."""
    from scipy.stats import wasserstein_distance

    first, second = first[np.isfinite(first)], second[np.isfinite(second)]
    return float(wasserstein_distance(first, second)) if len(first) and len(second) else None


def _quantities(crystals: CrystalBatch) -> pd.DataFrame:
    facts = describe(crystals)
    with np.errstate(divide="ignore", invalid="ignore"):
        volume = facts.volume.to_numpy(dtype=float) / facts.atoms.to_numpy(dtype=float)
    density = np.where(np.isfinite(facts.density), facts.density, np.nan)
    elements = [len(composition) for composition in reduced_compositions(crystals)]
    return pd.DataFrame({"density": density, "num_elements": elements, "volume_per_atom": volume})
