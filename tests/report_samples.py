"""Small evaluations, as plain data and crystals, for the tests of the report."""

from __future__ import annotations

import math

import torch

from crystalvae.data.batch import CrystalBatch
from tests.samples import random_crystals, rock_salt_and_friends

HOSTILE = "</script><img src=x onerror=alert(1)>"
"""An id that would do harm if it were taken for HTML."""


def metric(value, definition, unit="share", better="higher", count=6):
    return {"value": value, "definition": definition, "source": "tests", "unit": unit, "better": better, "count": count}


def section(name, title, metrics, **more):
    return {"name": name, "title": title, "skipped": "", "settings": {}, "metrics": metrics, "distributions": {}} | more


def generation_report():
    """A report, six generated crystals (one without volume, one with nan, one of 450 atoms), and a reference."""
    good = CrystalBatch.from_structures(rock_salt_and_friends()[:3])
    flat, unknown = random_crystals((2,), seed=1), random_crystals((3,), seed=2)
    flat = flat.replace(lattices=torch.zeros(1, 3, 3))
    unknown = unknown.replace(frac_coords=torch.full((3, 3), math.nan))
    large = random_crystals((450,), seed=3)
    crystals = CrystalBatch.cat([part.replace(properties={}) for part in (good, flat, unknown, large)])
    reference = random_crystals(tuple(range(1, 21)), seed=4)
    groups = {"generated": {"225": 2, "1": 1}, "reference": {"225": 10, "194": 9, "1": 1}}
    systems = {"generated": {"cubic": 2, "triclinic": 1}, "reference": {"cubic": 10, "hexagonal": 9, "triclinic": 1}}
    report = {
        "format_version": 1,
        "kind": "generation",
        "name": "samples",
        "command": "evaluate.py generated=samples seed=0",
        "seed": 0,
        "seconds": {"total": 12.5},
        "latent": "posterior mean",
        "machine": {"processor": "any", "cores": 2},
        "versions": {"torch": "2.13.0"},
        "inputs": {
            "generated": {"name": "samples", "count": 7, "unreadable": [{"id": "bad.cif", "reason": "no atom sites"}]},
            "reference": {"name": "prototypes/val", "count": 20, "unreadable": []},
            "train": None,
        },
        "sections": [
            section(
                "validity",
                "Validity",
                {
                    "structure_valid": metric(4 / 6, "share of crystals without short distances"),
                    "composition_valid": metric(None, "share of neutral crystals"),
                },
                settings={"min_distance": 0.5, "range": [1.0, None], "smact": {"version": "4.0"}},
            ),
            section(
                "wasserstein",
                "Distributions",
                {"wasserstein_density": metric(0.466, "Wasserstein distance of densities", "g/cm^3", "lower")},
            ),
            section("uniqueness", "Uniqueness", {"unique": metric(1.0, "share of crystals unlike all others")}),
            section(
                "symmetry",
                "Symmetry",
                {"p1_0.1": metric(0.5, "share in P1", better="neither")},
                distributions={
                    "space_group_0.1": groups,
                    "crystal_system_0.1": systems,
                    "space_group_symbols": {"1": "P1", "194": "P6_3/mmc", "225": "Fm-3m"},
                },
            ),
            section(
                "stability",
                "Stability",
                {},
                skipped="stability needs chgnet: pip install 'crystalvae[stability]'",
                distributions={"energy_above_hull": [0.0, 0.05, 0.2]},
            ),
        ],
        "per_crystal": {
            "id": ["salt", "diamond", "zincite", "flat", HOSTILE, "large"],
            "validity.structure_valid": [True, True, True, False, False, True],
            "validity.structure_reason": [
                "",
                "",
                "",
                "volume 0 Å^3 is below 0.1 Å^3",
                "coordinates are not finite",
                "",
            ],
            "uniqueness.unique": [True] * 6,
            "uniqueness.novel": [True, False, True, True, True, True],
        },
    }
    return report, crystals, reference


def reconstruction_report():
    """A report, three targets and their predictions: a match, a better one of fewer atoms, and none."""
    structures = [rock_salt_and_friends()[index] for index in (0, 2, 1)]
    targets = CrystalBatch.from_structures(structures)
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(targets.frac_coords.shape, generator=generator)
    predictions = targets.replace(frac_coords=(targets.frac_coords + noise) % 1.0, lattices=targets.lattices * 1.01)
    report = {
        "format_version": 1,
        "kind": "reconstruction",
        "name": "vae",
        "command": "evaluate.py ckpt_path=best.ckpt",
        "seed": 0,
        "seconds": 3.25,
        "machine": {},
        "versions": {},
        "inputs": {"reference": {"name": "mp_20/val", "count": 3, "unreadable": []}},
        "sections": [
            section(
                "reconstruction",
                "Reconstruction",
                {
                    "match_rate": metric(2 / 3, "share of matched targets"),
                    "rmse": metric(0.03, "mean RMS displacement", "", "lower"),
                },
            )
        ],
        "per_crystal": {
            "id": ["first", "second", "third"],
            "reconstruction.rms": [0.05, 0.01, None],
            "reconstruction.failure": [None, None, None],
        },
    }
    return report, targets, predictions
