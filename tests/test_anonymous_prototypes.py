"""Prototypes without elements: the same whatever takes the sites and however the crystal is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from crystalvae.data.batch import CrystalBatch
from crystalvae.evaluation.novelty.prototypes import anonymous_prototypes
from crystalvae.evaluation.novelty.section import uniqueness_section
from crystalvae.evaluation.parallel.runner import Runner

RUNNER = Runner(n_jobs=1, progress=False)


def salt(first: str, second: str, side: float, group: str = "Fm-3m") -> Structure:
    return Structure.from_spacegroup(group, Lattice.cubic(side), [first, second], [[0, 0, 0], [0.5, 0.5, 0.5]])


def perovskite(a: str, b: str, x: str) -> Structure:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
    return Structure.from_spacegroup("Pm-3m", Lattice.cubic(4.0), [a, b, x], sites)


def prototypes(structures: list[Structure]) -> list[str]:
    return anonymous_prototypes(CrystalBatch.from_structures(structures), runner=RUNNER)


def test_a_prototype_knows_no_elements_origin_cell_or_order():
    rock = salt("Na", "Cl", 5.64)
    moved = rock.copy().translate_sites(range(len(rock)), [0.5, 0.5, 0.5])
    found = prototypes([rock, salt("Cl", "Mg", 4.2), moved, rock.get_primitive_structure(), rock.copy() * (1, 1, 2)])
    assert found == ["225_a_b"] * 5
    assert prototypes([salt("Cs", "Cl", 4.12, "Pm-3m")]) == ["221_a_b"]


def test_the_origin_of_a_perovskite_may_be_either_cation():
    moved = perovskite("Sr", "Ti", "O").translate_sites(range(5), [0.5, 0.5, 0.5])
    anti = perovskite("O", "Na", "Ag")  # anions and cations exchanged: other elements on the same sites
    found = prototypes([perovskite("Sr", "Ti", "O"), perovskite("Ti", "Sr", "O"), moved, anti])
    assert found == ["221_a_b_c"] * 4


def test_only_a_prototype_that_the_training_set_lacks_is_new():
    train = [salt("Na", "Cl", 5.64), salt("K", "Br", 6.6)]
    generated = CrystalBatch.from_structures(
        [
            salt("Li", "F", 4.03),
            salt("Cs", "Cl", 4.12, "Pm-3m"),
            salt("Cs", "Br", 4.29, "Pm-3m"),
            salt("Na", "Cl", 5.64),
        ]
    )
    broken = CrystalBatch.from_arrays([(np.array([11, 11]), np.zeros((2, 3)), 4 * np.eye(3))])
    section = uniqueness_section(
        generated=CrystalBatch.cat([generated, broken]), train=CrystalBatch.from_structures(train), runner=RUNNER,
        valid=torch.ones(5, dtype=torch.bool).numpy(), unreadable=5,
    )  # fmt: skip
    assert section.metrics["novel_prototype"].value == pytest.approx(2 / 10)  # CsCl twice; the broken one is not new
    assert section.metrics["unique_prototype"].value == pytest.approx(2 / 10)
    assert section.metrics["novel_formula"].value == pytest.approx(4 / 10)  # and Na2, the broken one
    assert section.per_crystal["prototype"] == ["225_a_b", "221_a_b", "221_a_b", "225_a_b", None]
