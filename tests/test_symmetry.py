"""Space groups of textbook crystals, distributions worked out by hand, symmetrised CIFs, bad crystals."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import rock_salt_and_friends

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.sources import MP20
from crystalvae.data.symmetry import crystal_system, space_group_symbol
from crystalvae.errors import ConfigError, OutputError
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.symmetry.section import find_space_groups, symmetry_section
from crystalvae.evaluation.symmetry.symmetrized_cifs import write_symmetrized

RUNNER = Runner(n_jobs=1, progress=False)
ROCK_SALT, DIAMOND, WURTZITE, TRICLINIC = range(4)


@cache
def textbook() -> CrystalBatch:
    return CrystalBatch.from_structures(rock_salt_and_friends())


def bad_crystals() -> CrystalBatch:
    rng = np.random.default_rng(0)
    return CrystalBatch.from_arrays(
        [
            (np.array([11, 17]), np.zeros((2, 3)), 4 * np.eye(3)),  # both in one place
            (np.array([11, 17]), rng.random((2, 3)), np.zeros((3, 3))),  # no volume
            (np.array([11, 17]), np.full((2, 3), np.nan), 4 * np.eye(3)),
            (np.array([0, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), 4 * np.eye(3)),  # no element
            (np.full(500, 6), np.zeros((500, 3)), 2 * np.eye(3)),
            (np.full(500, 6), rng.random((500, 3)), 2 * np.eye(3)),
        ]
    )


@pytest.mark.parametrize("library", ["moyopy", "spglib"])
def test_textbook_crystals_have_the_groups_of_the_textbook(library):
    pytest.importorskip(library)
    found = find_space_groups(textbook(), runner=RUNNER, tolerances=(0.1, 0.01), library=library)
    assert found.tolist() == [[225, 225], [227, 227], [186, 186], [1, 1]]


def test_a_small_distortion_is_seen_at_the_small_tolerance_only():
    crystals = textbook()[ROCK_SALT]
    moved = crystals.frac_coords.clone()
    moved[0] += torch.tensor([0.04, 0.03, 0.02]) / 5.64
    found = find_space_groups(crystals.replace(frac_coords=moved), runner=RUNNER, tolerances=(0.1, 0.01))
    assert found[0, 0] == 225
    assert found[0, 1] == 1


def test_metrics_are_those_worked_out_by_hand():
    crystals = textbook()
    section = symmetry_section(
        generated=crystals[[ROCK_SALT, TRICLINIC]],
        reference=crystals[[ROCK_SALT, ROCK_SALT, ROCK_SALT]],
        runner=RUNNER,
        tolerances=(0.1,),
    )
    value = {name: metric.value for name, metric in section.metrics.items()}
    assert value["p1_0.1"] == 0.5
    assert value["p1_reference_0.1"] == 0.0
    assert value["no_space_group_0.1"] == 0.0
    assert value["distinct_space_groups_0.1"] == 2
    # p = (1/2, 1/2), q = (1, 0), m = (3/4, 1/4): (log2(2/3)/2 + log2(2)/2)/2 + log2(4/3)/2
    expected = (np.log2(2 / 3) / 2 + 1 / 2) / 2 + np.log2(4 / 3) / 2
    assert value["space_group_js_0.1"] == pytest.approx(expected)
    assert value["crystal_system_js_0.1"] == pytest.approx(expected)
    assert section.per_crystal["space_group_0.1"] == [225, 1]
    assert section.distributions["space_group_0.1"] == {"generated": {"1": 1, "225": 1}, "reference": {"225": 3}}
    assert section.distributions["crystal_system_0.1"]["generated"]["cubic"] == 1
    assert section.distributions["space_group_symbols"] == {"1": "P1", "225": "Fm-3m"}


def test_equal_distributions_are_0_apart_and_disjoint_ones_1():
    crystals = textbook()

    def divergences(generated, reference):
        section = symmetry_section(generated=generated, reference=reference, runner=RUNNER)
        return [section.metrics[f"{name}_js_0.01"].value for name in ("space_group", "crystal_system")]

    assert divergences(crystals, crystals[[2, 3, 0, 1, 0, 1, 2, 3]]) == pytest.approx([0.0, 0.0], abs=1e-12)
    assert divergences(crystals[[0, 1]], crystals[[2, 3]]) == pytest.approx([1.0, 1.0])
    assert divergences(crystals[[0]], crystals[[1]]) == pytest.approx([1.0, 0.0])  # both cubic


def test_bad_crystals_have_no_group_and_take_no_time():
    generated = CrystalBatch.cat([textbook(), bad_crystals()])
    section = symmetry_section(generated=generated, reference=textbook(), runner=RUNNER)
    assert section.per_crystal["space_group_0.1"] == [225, 227, 186, 1] + [None] * 6
    assert section.metrics["no_space_group_0.1"].value == 0.6
    assert section.metrics["p1_0.1"].value == 0.25
    assert section.metrics["space_group_js_0.1"].value == pytest.approx(0.0, abs=1e-12)


def test_unreadable_crystals_have_no_group():
    section = symmetry_section(generated=textbook(), reference=textbook(), runner=RUNNER, unreadable=4)
    assert section.metrics["no_space_group_0.1"].value == 0.5
    assert section.metrics["p1_0.1"].value == 0.25
    assert len(section.per_crystal["space_group_0.1"]) == 4


def test_nothing_but_bad_crystals_gives_no_numbers():
    section = symmetry_section(generated=bad_crystals(), reference=textbook(), runner=RUNNER)
    assert section.metrics["p1_0.1"].value is None
    assert section.metrics["space_group_js_0.1"].value is None


def test_impossible_settings_are_refused():
    for options in ({"tolerances": ()}, {"tolerances": (-0.1,)}, {"tolerances": (0.1, 0.1)}):
        with pytest.raises(ConfigError, match=r"symmetry\.tolerances"):
            find_space_groups(textbook(), runner=RUNNER, **options)


def test_unknown_library_is_refused(without_type_checks):
    with pytest.raises(ConfigError, match=r"symmetry\.library='findsym'"):
        find_space_groups(textbook(), runner=RUNNER, library="findsym")


def test_crystal_systems_and_symbols_are_those_of_the_tables():
    firsts = {1: "triclinic", 3: "monoclinic", 16: "orthorhombic", 75: "tetragonal", 143: "trigonal", 168: "hexagonal"}
    for number, system in {**firsts, 195: "cubic", 230: "cubic"}.items():
        assert crystal_system(number) == system
    for number in (1, 3, 16, 75, 143, 168):
        assert number == 1 or crystal_system(number - 1) != crystal_system(number)
    assert [space_group_symbol(number) for number in (2, 62, 166, 194)] == ["P-1", "Pnma", "R-3m", "P6_3/mmc"]


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")  # pymatgen, of 0.33333333
def test_symmetrized_cifs_have_exact_symmetry_and_the_same_composition(tmp_path: Path):
    from pymatgen.core import Structure
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    crystals = CrystalBatch.cat([textbook(), bad_crystals()[[0]]])
    noise = 0.002 * torch.randn(crystals.frac_coords.shape, generator=torch.Generator().manual_seed(0))
    ids = ["salt", "diamond", "wurtzite", "triclinic", "bad"]
    files = write_symmetrized(
        crystals.replace(frac_coords=crystals.frac_coords + noise * (crystals.batch != 4)[:, None]),
        tmp_path / "symmetrised", runner=RUNNER, tolerance=0.1, ids=ids,
    )  # fmt: skip
    assert [file.name for file in files] == [f"{name}.cif" for name in ids[:4]]
    for file, original, number in zip(files, rock_salt_and_friends(), (225, 227, 186, 1), strict=True):
        assert "_symmetry_equiv_pos_as_xyz" in file.read_text()
        written = Structure.from_file(file)
        assert written.composition.reduced_formula == original.composition.reduced_formula
        assert SpacegroupAnalyzer(written, symprec=1e-4).get_space_group_number() == number
        assert written.volume / len(written) == pytest.approx(original.volume / len(original), rel=1e-3)
    rows = list(csv.DictReader((tmp_path / "symmetrised" / "symmetry.csv").read_text().splitlines()))
    assert [row["space_group"] for row in rows] == ["225", "227", "186", "1", ""]
    assert "shortest distance" in rows[4]["failure"]


def test_symmetrized_cifs_keep_to_their_folder(tmp_path: Path):
    with pytest.raises(ConfigError, match="not a file name"):
        write_symmetrized(textbook(), tmp_path / "out", runner=RUNNER, ids=["a", "../b", "c", "d"])
    with pytest.raises(ConfigError, match="different ids"):
        write_symmetrized(textbook(), tmp_path / "out", runner=RUNNER, ids=["a", "a", "c", "d"])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="already holds"):
        write_symmetrized(textbook(), tmp_path, runner=RUNNER)


@pytest.mark.mp20
def test_real_crystals_are_rarely_in_p1_and_both_libraries_agree(mp20_dir: Path):
    pytest.importorskip("moyopy")
    crystals = MP20(data_dir=str(mp20_dir)).load("val").crystals[:150]
    moyo = find_space_groups(crystals, runner=RUNNER, library="moyopy")
    spg = find_space_groups(crystals, runner=RUNNER, library="spglib")
    assert (moyo == spg).mean(axis=0).min() >= 0.97
    assert ((moyo == 1).mean(axis=0) < 0.05).all()
    assert (moyo > 0).all()
