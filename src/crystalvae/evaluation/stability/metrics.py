"""The numbers of stability, from what became of each crystal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crystalvae.evaluation.metric import HERE, MATTERGEN, Metric

TIE = 1e-6
"""eV/atom by which an energy may pass a threshold and still be at it: rounding, nothing else."""
_CDVAE = "Xie et al. 2022, arXiv:2110.06197, with the energies of a potential"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one crystal; energies in eV/atom, lengths in Å, NaN where there is nothing.

    `failure` says why there is no energy above the hull. `formation_energy` is that of the crystal as generated.
    """

    failure: str = ""
    energy: float = math.nan
    relaxation_energy: float = math.nan
    above_hull: float = math.nan
    formation_energy: float = math.nan
    rmsd: float = math.nan
    matched: bool = False
    displacement: float = math.nan
    steps: int = 0
    converged: bool = False
    relaxed: bool = False


def stability_metrics(
    outcomes: Sequence[Outcome],
    reference_formation_energies: Sequence[float],
    masks: Mapping[str, np.ndarray],
    *,
    potential: str,
    hull: str,
    stable: float,
    metastable: float,
    unusable: int,
) -> dict[str, Metric]:
    """Return all metrics of stability.

    Args:
        outcomes: One per crystal; shares are of all of them, failed ones included, unless their definition says else.
        reference_formation_energies: eV/atom, of reference crystals as they are.
        masks: Which crystals are unique and novel, by the ending of the metrics' names: "" judged as generated,
            "_relaxed" judged after relaxation.
        potential: Name of the potential.
        hull: Name of the crystals that make up the hull.
        stable: Highest energy above the hull of a stable crystal.
        metastable: Highest energy above the hull of a metastable one.
        unusable: Crystals of the hull for which the potential gave no energy.
    """
    above = np.array([outcome.above_hull for outcome in outcomes], dtype=float)
    relaxed = np.array([outcome.relaxed for outcome in outcomes], dtype=bool)
    with np.errstate(invalid="ignore"):
        below = {"stable": above <= stable + TIE, "metastable": above <= metastable + TIE}
    limits = {"stable": stable, "metastable": metastable}
    on_hull = f"the convex hull of {hull}, both under {potential}"
    total, known = len(outcomes), above[np.isfinite(above)]
    metrics = {
        "relaxed": Metric.share(
            relaxed, total, f"share of crystals that {potential} relaxed (structurally valid before and after)"
        ),
        "converged": Metric.share(
            sum(outcome.converged for outcome in outcomes),
            total,
            "share of crystals whose forces fell below fmax within max_steps",
        ),
        "energy_above_hull": Metric.mean(
            known, f"mean energy of relaxed crystals above {on_hull}", MATTERGEN, unit="eV/atom"
        ),
        "energy_above_hull_median": Metric(
            float(np.median(known)) if len(known) else None,
            f"median energy of relaxed crystals above {on_hull}", HERE, "eV/atom", "lower", len(known),
        ),
        "no_hull": Metric.share(
            relaxed & ~np.isfinite(above),
            total,
            "share of crystals that relaxed, but have no energy above the hull: it lacks one of their elements, or "
            "they are further below it than the potential can be trusted",
            better="lower",
        ),
        "hull_failed": Metric(
            unusable, f"crystals of {hull} that the hull lacks, because {potential} gave no energy for them",
            HERE, "crystals", "lower",
        ),
    }  # fmt: skip
    within = {
        name: f"share of all crystals at most {limit:g} eV/atom above {on_hull}" for name, limit in limits.items()
    }
    for name, mask in below.items():
        metrics[name] = Metric.share(mask, total, within[name], MATTERGEN)
    judged = {"": "as generated", "_relaxed": "after relaxation, as in MatterGen's code"}
    for ending, unique_novel in masks.items():
        new = f"unique among all and not in the training set; uniqueness and novelty judged {judged[ending]}"
        for name, short in (("stable", "sun"), ("metastable", "msun")):
            metrics[f"{short}{ending}"] = Metric.share(
                below[name] & unique_novel, total, f"{within[name]}, {new}", MATTERGEN
            )
    return metrics | _relaxation_metrics(outcomes) | _energy_distance(outcomes, reference_formation_energies, potential)


def _relaxation_metrics(outcomes: Sequence[Outcome]) -> dict[str, Metric]:
    relaxed = [outcome for outcome in outcomes if outcome.relaxed]
    return {
        "relaxation_rmsd": Metric.mean(
            [outcome.rmsd for outcome in relaxed],
            "mean over relaxed crystals of StructureMatcher(ltol=0.5, stol=0.5, angle_tol=10, scale=False, "
            "attempt_supercell=True).get_rms_dist(generated, relaxed) times the (V/n)^(1/3) of their mean lattice; "
            "0.5 (V/n)^(1/3) where they do not match",
            f"{MATTERGEN}, its code",
            unit="Å",
        ),
        "relaxation_matched": Metric.share(
            sum(outcome.matched for outcome in relaxed),
            len(relaxed),
            "share of relaxed crystals that match themselves before relaxation, at the tolerances of relaxation_rmsd",
        ),
        "relaxation_displacement": Metric.mean(
            [outcome.displacement for outcome in relaxed],
            "mean over relaxed crystals of the root mean square displacement of atoms, in the mean of both "
            "cells, without the common shift",
            unit="Å",
        ),
        "relaxation_energy": Metric.mean(
            [outcome.relaxation_energy for outcome in relaxed],
            "mean energy gain of relaxation",
            unit="eV/atom",
        ),
        "relaxation_steps": Metric.mean(
            [outcome.steps for outcome in relaxed], "mean number of steps of relaxation", unit="steps"
        ),
    }


def _energy_distance(outcomes: Sequence[Outcome], reference: Sequence[float], potential: str) -> dict[str, Metric]:
    from scipy.stats import wasserstein_distance

    ours = [outcome.formation_energy for outcome in outcomes if math.isfinite(outcome.formation_energy)]
    value = float(wasserstein_distance(ours, reference)) if ours and len(reference) else None
    definition = (
        f"Wasserstein distance between the formation energies under {potential} of generated crystals, as generated, "
        "and of reference crystals, relative to the hull's lowest elemental crystals; only structurally valid crystals "
        "that the potential can relax, and whose elements the hull has"
    )
    return {"wasserstein_energy": Metric(value, definition, _CDVAE, "eV/atom", "lower", len(ours))}
