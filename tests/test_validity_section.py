"""Physical validity and the section on validity: numbers worked out by hand, brute force, real crystals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.data import covalent_radii
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.distances import shortest_distances
from crystalvae.errors import ConfigError
from crystalvae.evaluation.validity.contacts import contacts, physical_reasons, reference_ranges
from crystalvae.evaluation.validity.section import validity_section
from crystalvae.evaluation.validity.structure import describe
from tests.test_validity import cubic, real_crystals


def rock_salt(side: float = 5.64) -> CrystalBatch:
    faces = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    coords = np.concatenate([faces, (faces + 0.5) % 1])
    return CrystalBatch.from_arrays([(np.array([11] * 4 + [17] * 4), coords, side * np.eye(3))])


def test_contacts_of_rock_salt():
    # Na-Cl at half the cell, over 1.66 + 1.02 Å; Na-Na at √½ of it over 3.32 Å is farther by that measure.
    assert contacts(rock_salt())[0] == pytest.approx(2.82 / (1.66 + 1.02), rel=1e-6)


def test_own_images_of_the_largest_atom_count():
    # Caesium (2.44 Å) sees itself at 4 Å; hydrogen sees caesium at √3/2 of 4 Å, over 2.44 + 0.31 Å, which is farther.
    assert contacts(cubic(4.0, [1, 55], [[0, 0, 0], [0.5, 0.5, 0.5]]))[0] == pytest.approx(4.0 / 4.88, rel=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_contacts_equal_brute_force(seed: int):
    rng = np.random.default_rng(seed)
    compact = 4.0 * np.eye(3) + rng.uniform(-1, 1, (3, 3))
    coords = rng.random((rng.integers(1, 5), 3))
    radii = rng.uniform(0.1, 3.0, len(coords))
    skew = np.array([[1, *rng.integers(-5, 6, 2)], [0, 1, rng.integers(-5, 6)], [0, 0, 1]])[rng.permutation(3)]
    images = np.stack(np.meshgrid(*[np.arange(-5, 6)] * 3), axis=-1).reshape(-1, 3)
    lengths = np.linalg.norm((coords[:, None, None] - coords[None, :, None] + images) @ compact, axis=-1)
    own = np.eye(len(coords), dtype=bool)[:, :, None]
    quotients = np.where(own & (images == 0).all(axis=-1), np.inf, lengths / (radii[:, None] + radii)[:, :, None])
    given_cell = (skew @ compact)[None], coords @ np.linalg.inv(skew), np.array([len(coords)])
    assert shortest_distances(*given_cell, radii=radii)[0] == pytest.approx(quotients.min(), abs=1e-9)
    others = np.where(own, np.inf, lengths).min()
    assert shortest_distances(*given_cell, own_images=False)[0] == pytest.approx(others, abs=1e-9)


def test_ranges_are_those_of_the_references_valid_crystals():
    crystals = CrystalBatch.cat([cubic(side, [29], [[0, 0, 0]]) for side in (0.3, 2.0, 3.0, 4.0)])
    ranges = reference_ranges(describe(crystals))
    assert ranges.volume_per_atom == pytest.approx((8.0, 64.0))
    assert ranges.density == pytest.approx((63.546 * 1.66053907 / 64, 63.546 * 1.66053907 / 8), rel=1e-4)
    assert reference_ranges(describe(crystals), tails=0.25).volume_per_atom == pytest.approx((17.5, 45.5))
    with pytest.raises(ConfigError, match=r"tails=0\.5"):
        reference_ranges(describe(crystals), tails=0.5)
    with pytest.raises(ConfigError, match="no valid crystals"):
        reference_ranges(describe(crystals[:1]))


def test_physical_reasons_say_what_is_wrong():
    crystals = CrystalBatch.cat(
        [
            rock_salt(),
            rock_salt(3.7),  # 1.85 Å over 2.68 Å is 0.69
            rock_salt(12.0),  # too thin
            cubic(4.0, [97], [[0, 0, 0]]),  # berkelium has no radius
            cubic(0.4, [1], [[0, 0, 0]]),
        ]
    )
    facts = describe(crystals)
    ranges = reference_ranges(describe(CrystalBatch.cat([rock_salt(5.0), rock_salt(6.0)])))
    reasons = physical_reasons(facts, contacts(crystals), ranges)
    assert reasons[0] == ""
    assert reasons[1] == "two atoms at 0.69 of the sum of their covalent radii, below 0.7"
    assert reasons[2].startswith("volume per atom of 216 Å^3 outside the reference's 15.62 to 27")
    assert reasons[3] == "an element without a covalent radius"
    assert reasons[4].startswith("volume 0.064")


def test_what_cannot_be_measured_has_no_contact():
    crystals = CrystalBatch.cat([rock_salt()] * 4)
    coords, lattices, numbers = crystals.frac_coords.clone(), crystals.lattices.clone(), crystals.atom_types.clone()
    coords[8] = math.nan
    lattices[2] = math.inf
    numbers[-1] = 0
    measured = contacts(crystals.replace(frac_coords=coords, lattices=lattices, atom_types=numbers))
    assert np.isfinite(measured).tolist() == [True, False, False, False]
    assert len(contacts(CrystalBatch.from_arrays([]))) == 0


def known_set() -> CrystalBatch:
    """Six crystals: fine; neutral but overlapping; not neutral; alloy; too dense; not finite."""
    crystals = CrystalBatch.cat(
        [
            rock_salt(),
            cubic(10.0, [11, 17], [[0.1, 0, 0], [0.13, 0, 0]]),
            cubic(5.0, [11, 11, 17], [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0.5]]),
            cubic(3.0, [26, 28], [[0, 0, 0], [0.5, 0.5, 0.5]]),
            cubic(1.2, [3], [[0, 0, 0]]),
            rock_salt(),
        ]
    )
    lattices = crystals.lattices.clone()
    lattices[5, 0, 0] = math.nan
    return crystals.replace(lattices=lattices)


def test_every_share_is_the_one_worked_out_by_hand():
    pytest.importorskip("smact")
    reference = CrystalBatch.cat([rock_salt(5.0), rock_salt(6.0), cubic(2.8, [26, 28], [[0, 0, 0], [0.5, 0.5, 0.5]])])
    section = validity_section(generated=known_set(), reference=reference, unreadable=2)
    values = {name: metric.value for name, metric in section.metrics.items()}
    assert values == {
        "structure_valid": 4 / 8,  # crystals 0, 2, 3, 4
        "structure_valid_cdvae": 4 / 8,
        "composition_valid": 5 / 8,  # all but Na2Cl
        "composition_valid_capped": 5 / 8,
        "composition_valid_icsd24": 5 / 8,
        "valid": 3 / 8,  # 0, 3, 4
        "contacts_valid": 3 / 8,  # lithium at 1.2 Å of itself has 0.47
        "volume_in_range": 2 / 8,  # 0 and 3; Na2Cl has 41.7 Å^3 an atom, lithium 1.7
        "density_in_range": 3 / 8,  # lithium's 6.7 g/cm^3 lies between rock salt and the alloy, Na2Cl's 1.1 below
        "physical_valid": 2 / 8,
        "valid_physical": 2 / 8,
    }
    assert {metric.count for metric in section.metrics.values()} == {8}
    assert section.per_crystal["valid"] == [True, False, False, True, True, False]
    assert section.settings["oxidation_states"] == "smact14"
    assert {len(column) for column in section.per_crystal.values()} == {6}
    json.dumps([dict(section.per_crystal), dict(section.distributions), dict(section.settings)], allow_nan=False)


def test_own_images_alone_make_the_difference_to_the_published_code():
    thin = torch.tensor([[[0.4, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]]])
    crystal = cubic(5.0, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]]).replace(lattices=thin)
    metrics = validity_section(generated=crystal).metrics
    assert metrics["structure_valid"].value == 0.0
    assert metrics["structure_valid_cdvae"].value == 1.0
    alone = cubic(5.0, [11], [[0, 0, 0]]).replace(lattices=thin)
    assert validity_section(generated=alone).metrics["structure_valid_cdvae"].value == 1.0


def test_without_a_reference_only_contacts_decide():
    section = validity_section(generated=CrystalBatch.cat([rock_salt(), rock_salt(12.0), rock_salt(3.0)]))
    assert section.metrics["physical_valid"].value == pytest.approx(2 / 3)
    assert "volume_in_range" not in section.metrics


def test_no_crystals_have_no_shares():
    section = validity_section(generated=CrystalBatch.from_arrays([]))
    assert {metric.value for metric in section.metrics.values()} == {None}


def test_without_smact_the_rest_is_there_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("crystalvae.evaluation.validity.section.smact_installed", lambda: False)
    section = validity_section(generated=rock_salt())
    assert section.metrics["structure_valid"].value == 1.0
    assert "valid" not in section.metrics
    assert "pip install" in str(section.settings["composition"])


def test_radii_end_where_cordero_et_al_end():
    assert covalent_radii[96] == pytest.approx(1.69)
    assert set(covalent_radii[97:].tolist()) == {covalent_radii[97]}


@pytest.mark.mp20
def test_real_crystals_are_valid(mp20_dir: Path):
    crystals = real_crystals(mp20_dir, 300)
    metrics = validity_section(generated=crystals, reference=crystals).metrics
    assert metrics["structure_valid"].value == 1.0
    assert metrics["volume_in_range"].value == metrics["density_in_range"].value == 1.0
    assert metrics["contacts_valid"].value >= 0.99
