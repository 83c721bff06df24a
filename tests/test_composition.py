"""Compositional validity: textbook compounds by hand, and SMACT's own search on many compositions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Composition, Element

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.evaluation.validity.composition import (
    OXIDATION_STATES,
    check_compositions,
    reduced_composition,
    reduced_compositions,
    smact_settings,
)

smact_screening = pytest.importorskip("smact.screening", reason="needs SMACT")


def composition(formula: str) -> tuple[tuple[int, int], ...]:
    return reduced_composition([element.Z for element, n in Composition(formula).items() for _ in range(int(n))])


def by_smact(compositions: list[tuple[tuple[int, int], ...]], states: str) -> list[bool]:
    return [
        smact_screening.smact_validity(
            Composition({Element.from_Z(z): n for z, n in entry}), oxidation_states_set=states
        )
        for entry in compositions
    ]


@pytest.mark.parametrize(
    ("formula", "valid"),
    [
        ("NaCl", True),
        ("Na2Cl", False),  # sodium is +1 or -1, chlorine odd: two sodiums and one chlorine are never neutral
        ("TiO2", True),
        ("CaTiO3", True),
        ("MgO2", True),  # magnesium +2, oxygen -1: a peroxide
        ("Al3O", False),  # aluminium at least +1 three times, oxygen at least -2
        ("Fe", True),  # single elements pass
        ("He", True),  # even without oxidation states
        ("Cl2", True),
        ("Al3Fe5Ni7", True),  # metals pass in any ratio
        ("NaHe", False),  # helium has no oxidation states
        ("OF2", True),  # oxygen is the cation here
    ],
)
def test_textbook_compositions(formula: str, valid: bool):
    (check,) = check_compositions([composition(formula)])
    assert check.valid == valid
    assert bool(check.reason) != valid


def test_cations_must_be_less_electronegative():
    # Cl +1 and O -2 are neutral as Cl2O, and oxygen is the more electronegative; N -3 with Cl +1 would be the reverse.
    assert check_compositions([composition("Cl2O")])[0].valid
    # Sodium hydride: H -1 (2.20) and Na +1 (0.93). Na -1 with H +1 alone would be refused.
    assert check_compositions([composition("NaH")])[0].valid
    # I +7 O -2 is fine, O with I -1 needs O +, which is more electronegative: nothing neutral is left for I3O.
    assert not check_compositions([composition("I3O")])[0].valid


@pytest.mark.parametrize("states", OXIDATION_STATES)
def test_random_compositions_equal_smact(states: str):
    rng = np.random.default_rng(0)
    compositions = [reduced_composition(rng.integers(1, 104, rng.integers(1, 6))) for _ in range(400)]
    ours = [check.valid for check in check_compositions(compositions, oxidation_states=states)]
    assert ours == by_smact(compositions, states)
    assert 0.2 < np.mean(ours) < 0.9


@pytest.mark.mp20
def test_real_compositions_equal_smact_and_about_nine_in_ten_pass(mp20_dir: Path):
    formulas = pd.read_csv(mp20_dir / "val.csv", usecols=["pretty_formula"], nrows=1500).pretty_formula
    compositions = [composition(formula) for formula in formulas]
    ours = [check.valid for check in check_compositions(compositions)]
    assert ours == by_smact(compositions, "smact14")
    assert 0.88 < np.mean(ours) < 0.93


def test_many_elements_take_no_time():
    rng = np.random.default_rng(1)
    compositions = [reduced_composition(rng.permutation(np.arange(3, 84))[:20]) for _ in range(50)]
    checks = check_compositions(compositions)  # up to 10^13 combinations of states each
    assert max(check.combinations for check in checks) > 10**10


def test_unknown_elements_are_invalid_with_a_reason():
    checks = check_compositions([((0, 1), (8, 1)), ((8, 1), (118, 2)), ((8, 1), (119, 1)), ()])
    assert [check.valid for check in checks] == [False] * 4
    assert checks[0].reason == "atomic number 0 unknown to SMACT"
    assert checks[3].reason == "no atoms"


def test_an_unknown_set_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"oxidation_states='wiki'.*smact14"):
        check_compositions([composition("NaCl")], oxidation_states="wiki")


def test_compositions_are_reduced_and_in_order():
    lattice, coords = 5 * np.eye(3), np.zeros((4, 3))
    batch = CrystalBatch.from_arrays(
        [(np.array([8, 22, 8, 22]), coords, lattice), (np.array([1]), coords[:1], lattice)]
    )
    assert reduced_compositions(batch) == [((8, 1), (22, 1)), ((1, 1),)]
    assert reduced_compositions(CrystalBatch.from_arrays([])) == []


def test_the_output_names_set_and_version():
    settings = smact_settings()
    assert settings["oxidation_states"] == "smact14"
    assert str(settings["smact_version"]).split(".")[0].isdigit()
