"""Hulls worked out by hand; relaxation and S.U.N. with a quick potential (EMT); CHGNet where it is installed."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from crystalvae.build import trusting
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.parallel.attempt import is_repeatable
from crystalvae.evaluation.parallel.cache import ResultCache
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.stability.elemental_crystals import elemental_crystals
from crystalvae.evaluation.stability.hull import (
    Entry,
    SystemIndex,
    elemental_energies,
    energies_above_hull,
    formation_energies,
    hull_energies,
)
from crystalvae.evaluation.stability.metrics import Outcome, stability_metrics
from crystalvae.evaluation.stability.potentials import CHGNET, Potential
from crystalvae.evaluation.stability.relax_crystals import relax_crystals
from crystalvae.evaluation.stability.relaxation import Relaxation, displacement, matched_rmsd, relax
from crystalvae.evaluation.stability.section import StabilitySettings, stability_section
from crystalvae.evaluation.symmetry.section import find_space_groups
from crystalvae.evaluation.validity.structure import describe

RUNNER = Runner(n_jobs=1, progress=False)
EMT = Potential.from_config({"name": "EMT", "calculator": {"_target_": "ase.calculators.emt.EMT"}})
CU, AG, AU, FE, NA, CL = 29, 47, 79, 26, 11, 17
FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
needs_chgnet = pytest.mark.skipif(find_spec("chgnet") is None, reason='pip install "crystalvae[stability]"')


def fcc(numbers: list[int], side: float, *, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    moved = FCC + noise * np.random.default_rng(0).standard_normal((4, 3))
    return np.array(numbers), moved, side * np.eye(3)


def known() -> CrystalBatch:
    """Cu, Au and two ordered Cu–Au crystals, of which EMT puts both below the line between the elements."""
    return CrystalBatch.from_arrays(
        [fcc([CU] * 4, 3.6), fcc([AU] * 4, 4.06), fcc([AU, CU, CU, CU], 3.75), fcc([AU, AU, CU, CU], 3.9)]
    )


# ---- hulls ----------------------------------------------------------------------------------------------------------

SALT = [Entry({NA: 1}, -1.0), Entry({NA: 2}, -1.8), Entry({CL: 2}, -4.0), Entry({NA: 1, CL: 1}, -5.0)]


def test_energies_above_a_hull_worked_out_by_hand():
    asked = [
        Entry({NA: 1, CL: 1}, -5.0),  # the crystal on the hull itself
        Entry({NA: 2, CL: 2}, -9.0),  # its dearer polymorph: -2.25 against -2.5
        Entry({NA: 3, CL: 1}, -6.0),  # -1.5; half the atoms from Na at -1, half from NaCl at -2.5: -1.75
        Entry({NA: 1, CL: 3}, -10.0),  # -2.5; half from Cl at -2, half from NaCl: -2.25
        Entry({NA: 5}, -4.0),  # -0.8 against -1
    ]
    above = energies_above_hull(asked, SALT, runner=RUNNER)
    assert [energy for energy, _ in above] == pytest.approx([0.0, 0.25, 0.25, -0.25, 0.2], abs=1e-9)
    assert all(not reason for _, reason in above)


def test_a_hull_without_an_element_gives_no_energy_but_a_reason():
    asked = [Entry({NA: 1, CL: 1}, -5.0), Entry({NA: 1}, -1.0), Entry({NA: 1, FE: 1}, -3.0)]
    above = energies_above_hull(asked, [SALT[0], SALT[3]], runner=RUNNER)
    assert math.isnan(above[0][0])
    assert above[0][1] == "no reference crystal of pure Cl"
    assert above[1] == (pytest.approx(0.0), "")
    assert above[2][1] == "no reference crystal of pure Fe"


def test_what_is_asked_is_no_part_of_the_hull():
    deep = Entry({NA: 1, CL: 1}, -50.0)
    above = energies_above_hull([deep, SALT[3]], SALT, runner=RUNNER)
    assert [energy for energy, _ in above] == pytest.approx([-22.5, 0.0])


def test_hulls_equal_a_linear_program():
    from scipy.optimize import linprog

    rng = np.random.default_rng(1)
    amounts = np.vstack([np.eye(4, dtype=int), rng.integers(0, 4, (30, 4))])
    amounts = amounts[amounts.sum(axis=1) > 0]
    energies = rng.normal(-1.0, 0.3, len(amounts)) * amounts.sum(axis=1)
    targets = rng.integers(1, 5, (6, 4))
    found = hull_energies((np.array([NA, CL, FE, CU]), amounts, energies, targets))
    fractions = amounts / amounts.sum(axis=1, keepdims=True)
    for target, energy in zip(targets, found["energies"], strict=True):
        best = linprog(energies / amounts.sum(axis=1), A_eq=fractions.T, b_eq=target / target.sum())
        assert energy == pytest.approx(best.fun, abs=1e-8)


def test_formation_energies_are_relative_to_the_lowest_elements():
    elements = elemental_energies(SALT)
    assert elements == {NA: -1.0, CL: -2.0}
    values = formation_energies([SALT[3], SALT[1], Entry({FE: 1}, -3.0)], elements)
    assert values[:2] == pytest.approx([-1.0, 0.1])
    assert math.isnan(values[2])


def test_the_index_gives_systems_and_their_parts():
    systems = [frozenset(entry.composition) for entry in SALT] + [frozenset((NA, FE)), frozenset((CU,))]
    index = SystemIndex(systems)
    assert index.inside(frozenset((NA, CL))) == [0, 1, 2, 3]
    assert index.inside(frozenset((NA,))) == [0, 1]
    assert index.inside(frozenset((AG, AU))) == []
    assert index.inside(frozenset((NA, CL, FE))) == [0, 1, 2, 3, 4]  # likewise, and one system lies outside
    assert index.inside(frozenset(range(1, 60))) == list(range(6))  # more parts than there are systems


# ---- single crystals ------------------------------------------------------------------------------------------------


def test_relaxation_finds_the_lattice_constant_of_a_potential():
    result = relax(fcc([CU] * 4, 3.8, noise=0.01), potential=EMT, relaxation=Relaxation(fmax=0.01))
    assert result["converged"]
    assert result["failure"] == ""
    assert result["energy"] < result["initial_energy"] - 0.1
    volume = abs(np.linalg.det(np.array(result["lattice"])))
    assert volume ** (1 / 3) == pytest.approx(3.589, abs=0.01)  # ASE's EMT: Cu at 3.59 Å
    distances = np.array(result["frac_coords"]) - FCC
    assert np.abs(distances - distances.mean(axis=0)).max() < 2e-3


def test_energy_alone_moves_nothing():
    crystal = fcc([CU] * 4, 3.8, noise=0.01)
    result = relax(crystal, potential=EMT, relaxation=Relaxation(max_steps=0))
    assert result["energy"] == result["initial_energy"]
    assert result["steps"] == 0
    np.testing.assert_allclose(result["frac_coords"], crystal[1], atol=1e-12)


def test_too_few_steps_are_no_convergence_and_too_little_time_a_failure():
    crystal = fcc([CU] * 4, 3.8, noise=0.02)
    short = relax(crystal, potential=EMT, relaxation=Relaxation(max_steps=2))
    assert (short["converged"], short["steps"], short["failure"]) == (False, 2, "")
    late = relax(crystal, potential=EMT, relaxation=Relaxation(time_limit_s=1e-4))
    assert late["passing"]
    assert late["failure"] == "no answer within 0.0001 s"


@pytest.mark.parametrize(
    ("error", "kept"), [(RuntimeError("CUDA out of memory"), False), (MemoryError(), False), (ValueError("no"), True)]
)
def test_what_depends_on_the_machine_is_not_kept(error: Exception, kept: bool, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("crystalvae.evaluation.stability.relaxation._relax", fail)
    assert is_repeatable(relax(fcc([CU] * 4, 3.8), potential=EMT, relaxation=Relaxation())) == kept


def test_elements_a_potential_lacks_are_a_failure_of_that_crystal_alone():
    crystals = CrystalBatch.from_arrays([fcc([FE] * 4, 3.6), fcc([CU] * 4, 3.6)])
    results = relax_crystals(crystals, potential=EMT, relaxation=Relaxation(), runner=RUNNER)
    assert "NotImplementedError" in results[0]["failure"]
    assert results[1]["converged"]


def test_what_ran_out_of_time_is_tried_again_and_the_rest_is_kept(tmp_path):
    crystals = CrystalBatch.from_arrays([fcc([CU] * 4, 3.8, noise=0.02)])
    runner = Runner(n_jobs=1, progress=False, cache=ResultCache(tmp_path))
    options = {"potential": EMT, "runner": runner}
    assert relax_crystals(crystals, relaxation=Relaxation(time_limit_s=1e-4), **options)[0]["passing"]
    first = relax_crystals(crystals, relaxation=Relaxation(), **options)
    assert first[0]["converged"]
    # From the cache: no time is needed now, and it is the same to the last bit.
    assert relax_crystals(crystals, relaxation=Relaxation(time_limit_s=1e-9), **options) == first


def test_displacement_leaves_out_a_common_shift():
    before = fcc([CU] * 4, 4.0)
    moved = before[1] + np.array([0.3, -0.2, 0.1])
    assert displacement(before, (before[0], moved, before[2])) == pytest.approx(0.0, abs=1e-12)
    moved[0, 0] += 0.1  # 0.4 Å of one of four atoms; the mean moves by 0.1 Å
    assert displacement(before, (before[0], moved, before[2])) == pytest.approx(np.sqrt((0.3**2 + 3 * 0.1**2) / 4))


def test_rmsd_in_the_published_way():
    before = fcc([AU, CU, CU, CU], 3.75)
    same = matched_rmsd((before, before), time_limit_s=None)
    assert same == {"rmsd": pytest.approx(0.0, abs=1e-6), "matched": True, "passing": False}
    other = fcc([AU, AU, CU, CU], 3.75)
    apart = matched_rmsd((before, other), time_limit_s=None)
    assert apart == {"rmsd": pytest.approx(0.5 * 3.75 / 4 ** (1 / 3)), "matched": False, "passing": False}


# ---- the section ----------------------------------------------------------------------------------------------------


def test_metrics_are_those_worked_out_by_hand():
    outcomes = [
        Outcome(relaxed=True, above_hull=-0.01, formation_energy=-1.0, rmsd=0.1, matched=True, converged=True, steps=4),
        Outcome(relaxed=True, above_hull=0.0, formation_energy=0.0, rmsd=0.3, matched=False, converged=True, steps=6),
        Outcome(relaxed=True, above_hull=0.1, formation_energy=1.0, rmsd=0.2, matched=True, converged=False, steps=8),
        Outcome(
            relaxed=True, failure="no reference crystal of pure F", rmsd=0.2, matched=True, converged=True, steps=2
        ),
        Outcome(failure="no atoms"),
    ]
    masks = {"": np.array([False, True, True, True, True]), "_relaxed": np.array([True, True, False, False, False])}
    found = stability_metrics(
        outcomes, [0.0, 1.0, 2.0], masks, potential="P", hull="H", stable=0.0, metastable=0.1, unusable=3
    )
    value = {name: metric.value for name, metric in found.items()}
    assert value["relaxed"] == 0.8
    assert value["converged"] == 0.6
    assert value["stable"] == 0.4
    assert value["metastable"] == pytest.approx(0.6)
    assert value["sun"] == 0.2
    assert value["msun"] == 0.4
    assert value["sun_relaxed"] == 0.4
    assert value["msun_relaxed"] == 0.4
    assert value["no_hull"] == 0.2
    assert value["hull_failed"] == 3
    assert value["energy_above_hull"] == pytest.approx(0.03)
    assert value["energy_above_hull_median"] == 0.0
    assert value["relaxation_rmsd"] == pytest.approx(0.2)
    assert value["relaxation_matched"] == 0.75
    assert value["relaxation_steps"] == 5.0
    assert value["wasserstein_energy"] == pytest.approx(1.0)
    assert found["energy_above_hull"].count == 3
    assert "H" in found["stable"].definition
    assert "P" in found["stable"].definition


def test_no_crystals_give_no_numbers():
    found = stability_metrics([], [], {}, potential="P", hull="H", stable=0.0, metastable=0.1, unusable=0)
    assert {metric.value for name, metric in found.items() if name != "hull_failed"} == {None}


def generated() -> CrystalBatch:
    rng = np.random.default_rng(3)
    return CrystalBatch.from_arrays(
        [
            fcc([CU] * 4, 3.7, noise=0.01),  # 0 relaxes to the hull
            fcc([AU, CU, CU, CU], 3.75, noise=0.02),  # 1 too
            fcc([AU, AU, AU, CU], 4.0),  # 2 Au3Cu, which the hull lacks
            fcc([AG] * 4, 4.1),  # 3 the hull has no silver
            fcc([FE] * 4, 3.6),  # 4 no such element in the potential
            (np.array([CU, CU]), np.zeros((2, 3)), 4 * np.eye(3)),  # 5 both in one place
            (np.array([CU]), np.zeros((1, 3)), np.zeros((3, 3))),  # 6 no volume
            (np.array([CU]), np.full((1, 3), np.nan), 3 * np.eye(3)),  # 7
            (np.full(500, CU), rng.random((500, 3)), 3 * np.eye(3)),  # 8
            (np.array([0]), np.zeros((1, 3)), 3 * np.eye(3)),  # 9 no element
        ]
    )


@pytest.fixture(scope="module")
def emt_section(tmp_path_factory):
    """Return the section for the crystals above, relaxed once for all tests."""
    runner = Runner(n_jobs=1, progress=False, cache=ResultCache(tmp_path_factory.mktemp("cache")))

    def section(**options):
        arguments = {"generated": generated(), "reference": known(), "hull": known(), "hull_name": "four crystals"}
        return stability_section(**{**arguments, "runner": runner, "potential": EMT, **options})

    return section


def test_every_crystal_has_an_energy_above_the_hull_or_a_reason(emt_section):
    section = emt_section(settings=StabilitySettings(complete_elements=False))
    above, failure = section.per_crystal["energy_above_hull"], section.per_crystal["failure"]
    assert above[:2] == pytest.approx([0.0, 0.0], abs=2e-3)
    assert above[2] is not None
    assert above[3:] == [None] * 7
    assert failure[:3] == [None] * 3
    assert failure[3] == "no reference crystal of pure Ag"
    assert "NotImplementedError" in failure[4]
    for index, words in {5: "shortest distance", 6: "volume", 7: "not finite", 8: "shortest", 9: "unknown"}.items():
        assert words in failure[index]
    assert section.metrics["relaxed"].value == 0.4
    assert section.metrics["no_hull"].value == 0.1
    assert section.metrics["metastable"].value == pytest.approx(0.1 * sum(e is not None and e <= 0.1 for e in above))
    assert section.settings["potential"] == "EMT"
    assert section.settings["hull_crystals"] == 4
    assert "four crystals" in section.metrics["stable"].definition


def test_elements_that_the_hull_lacks_are_added(emt_section):
    quick = StabilitySettings(relaxation=Relaxation(optimizer="LBFGS", max_steps=15))
    section = emt_section(generated=generated()[[0, 3, 4]], settings=quick)
    assert section.settings["hull_elements_added"] == ["Ag"]  # and no iron, which the potential does not know
    assert section.metrics["no_hull"].value == 0.0
    assert section.per_crystal["energy_above_hull"][1] == pytest.approx(0.0, abs=2e-3)  # fcc silver itself
    assert emt_section(generated=generated()[[0, 1]]).settings["hull_elements_added"] == []


def test_elemental_crystals_are_what_they_are_called():
    crystals = elemental_crystals([AG, 25, 9])
    formulas = [{int(z) for z in numbers} for numbers, _, _ in crystals.to_arrays()]
    assert formulas == [{AG}] * 9 + [{25}] * 11 + [{9}] * 9  # two forms of manganese are prototypes themselves
    assert describe(crystals)["valid"].all()
    volumes = (crystals.volumes / crystals.num_atoms).tolist()
    assert volumes[:9] == pytest.approx([10.27 / 0.602214] * 9, rel=1e-3)  # silver: 10.27 cm^3/mol
    assert find_space_groups(crystals[:5], runner=RUNNER, tolerances=(0.01,)).ravel().tolist() == [
        225,
        194,
        229,
        194,
        227,
    ]


def test_only_systems_that_matter_are_computed(emt_section):
    section = emt_section(generated=generated()[[0]], reference=known()[[0]])
    assert section.settings["hull_crystals"] == 1


def test_sun_counts_what_is_stable_and_unique_and_novel(emt_section):
    settings = StabilitySettings(stable=0.05, complete_elements=False)
    unique = [True, True, False] + [True] * 7
    novel = [True, False, True] + [True] * 7
    seen = []

    def classify(crystals: CrystalBatch):
        seen.append(crystals)
        return [True] * len(crystals), [True, True, False, True]

    section = emt_section(settings=settings, unique=unique, novel=novel, classify=classify)
    assert section.metrics["sun"].value == 0.1  # the first alone
    assert section.metrics["sun_relaxed"].value == 0.2  # the first two
    assert seen[0].num_atoms.tolist() == [4, 4, 4, 4]
    assert float(seen[0].lengths[0, 0]) == pytest.approx(3.589, abs=0.02)
    assert "sun" not in emt_section().metrics


def test_the_same_crystals_have_the_same_energies(emt_section):
    section = emt_section(generated=known(), settings=StabilitySettings(relaxation=Relaxation(fmax=0.001)))
    assert section.metrics["wasserstein_energy"].value == pytest.approx(0.0, abs=1e-9)
    assert section.metrics["stable"].value == 1.0
    assert section.metrics["energy_above_hull"].value == pytest.approx(0.0, abs=1e-9)


def test_a_hull_that_is_not_relaxed_is_higher(emt_section):
    kept = emt_section(generated=known()).metrics["energy_above_hull"].value
    loose = emt_section(generated=known(), settings=StabilitySettings(relax_hull=False)).metrics["energy_above_hull"]
    assert loose.value < kept - 1e-3


def test_what_lies_absurdly_far_below_the_hull_is_a_failure(emt_section):
    section = emt_section(settings=StabilitySettings(lowest=0.5))
    assert section.metrics["stable"].value == 0.0
    assert "the potential cannot be trusted" in section.per_crystal["failure"][0]


def test_a_choice_of_crystals_is_seeded_and_columns_keep_their_length(emt_section):
    settings = StabilitySettings(max_crystals=4, seed=1)
    section, again = emt_section(settings=settings), emt_section(settings=settings)
    assert section == again
    assert section.metrics["relaxed"].count == 4
    failures = section.per_crystal["failure"]
    assert len(failures) == 10
    assert failures.count("not chosen (max_crystals)") == 6
    other = emt_section(settings=replace(settings, seed=2)).per_crystal["failure"]
    assert [f == "not chosen (max_crystals)" for f in other] != [f == "not chosen (max_crystals)" for f in failures]


def test_unreadable_crystals_are_not_stable(emt_section):
    stable = StabilitySettings(stable=0.05)
    options = {"generated": known()[[0, 1]], "settings": stable, "unique": [True, True], "novel": [True, False]}
    section = emt_section(**options, unreadable=2)
    assert section.metrics["stable"].value == 0.5
    assert section.metrics["sun"].value == 0.25
    assert section.metrics["relaxed"].count == 4
    assert len(section.per_crystal["failure"]) == 2
    few = emt_section(**{**options, "settings": replace(stable, max_crystals=1)}, unreadable=10**6)
    assert few.metrics["stable"].value == 0.0
    assert few.metrics["relaxed"].count == 1


def test_only_bad_crystals_give_shares_of_0(emt_section):
    section = emt_section(generated=generated()[[5, 6, 7]], classify=lambda crystals: ([], []))
    assert section.metrics["stable"].value == 0.0
    assert section.metrics["sun_relaxed"].value == 0.0
    assert section.metrics["energy_above_hull"].value is None


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setattr("crystalvae.evaluation.stability.potentials.find_spec", lambda _name: None)
    section = stability_section(
        generated=generated(), reference=known(), hull=known(), hull_name="four crystals", runner=RUNNER
    )
    assert section.skipped == 'the potential CHGNet 0.3.0 needs the package chgnet: pip install "crystalvae[stability]"'


def test_masks_of_another_length_are_refused(emt_section):
    with pytest.raises(DataError, match="unique: expected one value for each of 10 crystals, got 2"):
        emt_section(unique=[True, True], novel=[True] * 10)


def test_wrong_settings_are_refused(without_type_checks):
    for wrong, words in (
        ({"optimizer": "Adam"}, "FIRE, LBFGS, BFGS"),
        ({"fmax": 0.0}, "positive force"),
        ({"max_steps": -1}, "0 or more"),
        ({"time_limit_s": -1.0}, "positive number of seconds"),
    ):
        with pytest.raises(ConfigError, match=words):
            Relaxation(**wrong)
    for config, words in (
        ({"name": "x"}, "name and calculator"),
        ({"name": "x", "calculator": {"a": 1}}, "_target_"),
        ({"name": "x", "calculator": {"_target_": "a.b", "c": object()}}, "plain values"),
    ):
        with pytest.raises(ConfigError, match=words):
            Potential.from_config(config)
    broken = Potential.from_config(
        {"name": "x", "calculator": {"_target_": "crystalvae.evaluation.stability.potentials.chgnet", "a": 1}}
    )
    elsewhere = {"name": "x", "calculator": {"_target_": "ase.calculators.nothing.Here"}}
    with pytest.raises(ConfigError, match="none of the parts"):
        Potential.from_config(elsewhere)
    with trusting(["nowhere."]):
        absent = Potential.from_config({"name": "x", "calculator": {"_target_": "nowhere.Here"}})
    for potential in (broken, absent):
        with pytest.raises(ConfigError, match=r"potential\.calculator"):
            potential.calculator()


def test_a_potential_is_known_by_its_arguments_versions_and_files(tmp_path):
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"1")
    config = {"name": "x", "calculator": {"_target_": "ase.calculators.emt.EMT", "path": str(weights)}}
    first = Potential.from_config(config).identity()
    assert Potential.from_config(config).identity() == first
    weights.write_bytes(b"2")
    assert Potential.from_config(config).identity() != first
    assert "ase" in first


# ---- CHGNet ---------------------------------------------------------------------------------------------------------


@needs_chgnet
def test_chgnet_knows_rock_salt(capsys):
    salt = (np.array([NA] * 4 + [CL] * 4), np.vstack([FCC, FCC + np.array([0.5, 0, 0])]), 5.75 * np.eye(3))
    result = relax(salt, potential=CHGNET, relaxation=Relaxation())
    assert result["failure"] == ""
    assert result["converged"]
    assert abs(np.linalg.det(np.array(result["lattice"]))) ** (1 / 3) == pytest.approx(5.69, abs=0.06)  # PBE: 5.69 Å
    assert result["energy"] / 8 == pytest.approx(-3.65, abs=0.15)  # mp-22862 after the corrections of 2020
    assert capsys.readouterr().out == ""


@needs_chgnet
def test_chgnet_fails_softly_and_needs_known_weights(without_type_checks):
    alone = (np.array([2]), np.zeros((1, 3)), 30 * np.eye(3))
    heavy = fcc([99] * 4, 5.0)
    for crystal in (alone, heavy):
        assert relax(crystal, potential=CHGNET, relaxation=Relaxation(max_steps=0))["failure"]
    wrong = {"_target_": "crystalvae.evaluation.stability.potentials.chgnet", "model": "9.9"}
    with pytest.raises(ConfigError, match=r"model='9\.9'"):
        Potential.from_config({"name": "x", "calculator": wrong}).calculator()


@needs_chgnet
@pytest.mark.slow
def test_a_pool_gives_the_numbers_of_one_process():
    crystals = CrystalBatch.from_arrays([fcc([CU] * 4, 3.6), fcc([AU] * 4, 4.1), fcc([AU, CU, CU, CU], 3.75)])
    options = {"potential": CHGNET, "relaxation": Relaxation(max_steps=2)}
    alone = relax_crystals(crystals, runner=RUNNER, **options)
    pool = relax_crystals(crystals, runner=Runner(n_jobs=2, progress=False), **options)
    torch.testing.assert_close([r["energy"] for r in alone], [r["energy"] for r in pool], rtol=0, atol=1e-4)
