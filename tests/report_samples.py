"""Small evaluations for the tests of the report."""

from __future__ import annotations

import math

import torch

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import SkippedRow
from crystalvae.evaluation.evaluation_report import EvaluationReport
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.metric import Metric, Section
from tests.samples import random_crystals, rock_salt_and_friends

HOSTILE = "</script><img src=x onerror=alert(1)>"
"""An id that would do harm if it were taken for HTML."""


def metric(value, definition, unit="share", better="higher") -> Metric:
    return Metric(value, definition, "tests", unit, better, 6)


def generation_report() -> EvaluationReport:
    """Six generated crystals (one without volume, one with nan, one of 450 atoms), against twenty others."""
    good = CrystalBatch.from_structures(rock_salt_and_friends()[:3])
    flat, unknown = random_crystals((2,), seed=1), random_crystals((3,), seed=2)
    flat = flat.replace(lattices=torch.zeros(1, 3, 3))
    unknown = unknown.replace(frac_coords=torch.full((3, 3), math.nan))
    large = random_crystals((450,), seed=3)
    crystals = CrystalBatch.cat([part.replace(properties={}) for part in (good, flat, unknown, large)])
    reference = random_crystals(tuple(range(1, 21)), seed=4)
    groups = {"generated": {"225": 2, "1": 1}, "reference": {"225": 10, "194": 9, "1": 1}}
    systems = {"generated": {"cubic": 2, "triclinic": 1}, "reference": {"cubic": 10, "hexagonal": 9, "triclinic": 1}}
    ids = ["salt", "diamond", "zincite", "flat", HOSTILE, "large"]
    return EvaluationReport(
        kind="generation",
        generated=CrystalSet(
            "samples", crystals, ids, list(range(6)), [SkippedRow(6, "bad.cif", "no atom sites")]
        ),
        reference=CrystalSet.of("prototypes/val", reference),
        command="evaluate.py generated=samples seed=0",
        seed=0,
        seconds={"total": 12.5},
        machine={"processor": "any", "cores": 2, "memory_gib": None},
        versions={"torch": "2.13.0"},
        extra={"latent": "posterior mean", "config": {"seed": 0}},
        sections=[
            Section(
                name="validity",
                title="Validity",
                metrics={
                    "structure_valid": metric(4 / 6, "share of crystals without short distances"),
                    "composition_valid": metric(None, "share of neutral crystals"),
                },
                settings={"min_distance": 0.5, "range": [1.0, math.nan], "smact": {"version": "4.0"}},
                per_crystal={
                    "structure_valid": [True, True, True, False, False, True],
                    "structure_reason": [
                        "", "", "", "volume 0 Å^3 is below 0.1 Å^3", "coordinates are not finite", "",
                    ],
                },
            ),
            Section(
                name="wasserstein",
                title="Distributions",
                metrics={
                    "wasserstein_density": metric(0.466, "Wasserstein distance of densities", "g/cm^3", "lower"),
                    "wasserstein_energy": metric(math.inf, "Wasserstein distance of energies", "eV/atom", "lower"),
                },
            ),
            Section(
                name="uniqueness",
                title="Uniqueness",
                metrics={"unique": metric(1.0, "share of crystals unlike all others")},
                per_crystal={"unique": [True] * 6, "novel": [True, False, True, True, True, True]},
            ),
            Section(
                name="symmetry",
                title="Symmetry",
                metrics={"p1_0.1": metric(0.5, "share in P1", better="neither")},
                distributions={
                    "space_group_0.1": groups,
                    "crystal_system_0.1": systems,
                    "space_group_symbols": {"1": "P1", "194": "P6_3/mmc", "225": "Fm-3m"},
                },
            ),
            Section(
                name="stability",
                title="Stability",
                skipped="stability needs chgnet: pip install 'crystalvae[stability]'",
                distributions={"energy_above_hull": [0.0, 0.05, 0.2]},
            ),
        ],
    )  # fmt: skip


def reconstruction_report() -> EvaluationReport:
    """Three targets and their predictions: a match, a better one of fewer atoms, and none."""
    structures = [rock_salt_and_friends()[index] for index in (0, 2, 1)]
    targets = CrystalBatch.from_structures(structures)
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(targets.frac_coords.shape, generator=generator)
    predictions = targets.replace(frac_coords=(targets.frac_coords + noise) % 1.0, lattices=targets.lattices * 1.01)
    return EvaluationReport(
        kind="reconstruction",
        generated=CrystalSet.of("vae", predictions, ["first", "second", "third"]),
        reference=CrystalSet.of("mp_20/val", targets),
        targets=targets,
        predictions=predictions,
        command="evaluate.py ckpt_path=best.ckpt",
        seed=0,
        seconds={"reconstruction": 3.25},
        machine={},
        versions={},
        sections=[
            Section(
                name="reconstruction",
                title="Reconstruction",
                metrics={
                    "match_rate": metric(2 / 3, "share of matched targets"),
                    "rmse": metric(0.03, "mean RMS displacement", "", "lower"),
                },
                per_crystal={"rms": [0.05, 0.01, None], "failure": [None, None, None]},
            )
        ],
    )
