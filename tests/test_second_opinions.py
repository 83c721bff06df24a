"""Stability under two potentials, above a hull from a file, and what is written of relaxed crystals."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import ase.io
import numpy as np
import pytest
from omegaconf import OmegaConf

from crystalvae.commands.relaxing import potential_named
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.evaluate import EvaluationSettings, Known, evaluate_generation
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.report import format_summary, write_report
from crystalvae.evaluation.stability.hull_file import HullFile, read_hull
from crystalvae.evaluation.stability.potentials import Potential
from crystalvae.evaluation.stability.relaxation import Relaxation, relax
from crystalvae.evaluation.stability.section import StabilitySettings, stability_section
from tests.conftest import REPOSITORY
from tests.test_commands import in_process, table  # noqa: F401  table is a fixture
from tests.test_stability import AG, AU, CL, CU, EMT, FCC, NA, RUNNER, fcc, generated, known

OTHER = Potential.from_config(
    {"name": "other EMT", "calculator": {"_target_": "ase.calculators.emt.EMT", "asap_cutoff": True}}
)
"""EMT with another cut-off, as a second potential: nearly, and not exactly, the same energies."""
needs_sevennet = pytest.mark.skipif(find_spec("sevenn") is None, reason='pip install "crystalvae[sevennet]"')


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# ---- a second potential ---------------------------------------------------------------------------------------------


def test_two_potentials_stand_side_by_side_and_agree_where_both_say_so(tmp_path: Path):
    crystals, hull = CrystalSet.of("mine", generated()[:4]), CrystalSet.of("four crystals", known())
    quick = StabilitySettings(complete_elements=False, relaxation=Relaxation(optimizer="LBFGS"))
    report = evaluate_generation(
        generated=crystals,
        known=Known(reference=hull, hull=hull),
        runner=RUNNER,
        settings=EvaluationSettings(sections=["stability"], potential=EMT, second_potential=OTHER, stability=quick),
    )
    section = report.section("stability")
    first, second = (section.per_crystal[f"energy{ending}"] for ending in ("", "_second"))
    assert first[:3] != second[:3]
    above = [section.per_crystal[f"energy_above_hull{ending}"] for ending in ("", "_second")]
    pairs = np.array([[entry for entry in column if entry is not None] for column in above])
    assert section.distributions["energy_above_hull_pairs"] == pytest.approx(pairs)
    difference = section.metrics["energy_above_hull_difference"].value
    assert difference == pytest.approx(np.abs(pairs[0] - pairs[1]).mean())
    assert 0 < difference < 0.05
    assert section.metrics["metastable_both"].value == pytest.approx(((pairs <= 0.1 + 1e-6).all(axis=0)).sum() / 4)
    assert section.references["other EMT"]["relaxed"].value == 1.0
    assert "other EMT" in "\n".join(format_summary(report))
    page = write_report(report, tmp_path)[1].read_text(encoding="utf-8")
    assert "other EMT" in page


def test_a_second_potential_that_is_not_installed_is_left_out_and_said():
    absent = potential_named("mattersim")
    assert absent.missing() == "the potential MatterSim v1.0.0 1M needs the package mattersim: pip install mattersim"
    crystals = CrystalSet.of("four crystals", known())
    settings = EvaluationSettings(sections=["stability"], potential=EMT, second_potential=absent)
    report = evaluate_generation(
        generated=crystals, known=Known(reference=crystals, hull=crystals), runner=RUNNER, settings=settings
    )
    section = report.section("stability")
    assert section.settings["second_potential"] == f"left out: {absent.missing()}"
    assert "stable_both" not in section.metrics


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "potential").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_potential_says_what_it_needs_and_knows_its_weights_by_name(path: Path):
    config = OmegaConf.to_container(OmegaConf.load(path))
    potential = Potential.from_config(config)
    assert potential.name
    if path.stem != "emt":
        assert "pip install" in path.read_text(encoding="utf-8")
        wrong = {**config, "calculator": {**config["calculator"], "model": "/tmp/weights.pt"}}
        with pytest.raises(ConfigError, match=r"model='/tmp/weights\.pt': expected one of"):
            Potential.from_config(wrong).calculator()


@needs_sevennet
def test_sevennet_knows_rock_salt(capsys):
    salt = (np.array([NA] * 4 + [CL] * 4), np.vstack([FCC, FCC + np.array([0.5, 0, 0])]), 5.75 * np.eye(3))
    result = relax(salt, potential=potential_named("sevennet"), relaxation=Relaxation())
    assert result["failure"] == ""
    assert result["converged"]
    assert abs(np.linalg.det(np.array(result["lattice"]))) ** (1 / 3) == pytest.approx(5.69, abs=0.06)  # PBE: 5.69 Å
    assert result["energy"] / 8 == pytest.approx(-3.38, abs=0.05)  # VASP's, before the corrections of 2020
    assert capsys.readouterr().out == ""


# ---- a hull from a file ---------------------------------------------------------------------------------------------


def test_a_hull_from_a_file_is_taken_as_it_is(tmp_path: Path):
    file = write(
        tmp_path / "entries.json",
        [
            {"composition": "Cu2", "energy": -0.4},
            {"composition": {"Au": 1.0}, "energy": -0.1, "correction": -0.1, "parameters": {}},
            {"composition": "AuCu3", "energy": -2.0},
        ],
    )
    hull = read_hull(file)
    assert hull.name == "entries.json"
    assert [(entry.composition, entry.energy) for entry in hull.entries] == [
        ({CU: 2}, -0.4),
        ({AU: 1}, pytest.approx(-0.2)),
        ({AU: 1, CU: 3}, -2.0),
    ]
    crystals = CrystalBatch.from_arrays([fcc([CU] * 4, 3.6), fcc([AU, CU, CU, CU], 3.75), fcc([AG] * 4, 4.1)])
    section = stability_section(
        generated=crystals, reference=known(), hull=hull.entries, hull_name=hull.name, runner=RUNNER, potential=EMT,
        settings=StabilitySettings(relaxation=Relaxation(max_steps=0), lowest=-10.0),
    )  # fmt: skip
    energy, above = section.per_crystal["energy"], section.per_crystal["energy_above_hull"]
    assert above[:2] == pytest.approx([energy[0] + 0.2, energy[1] + 0.5])
    assert (
        section.per_crystal["failure"][2] == "no reference crystal of pure Ag"
    )  # elements of the potential are no part
    assert section.settings["hull_elements_added"] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "expected a list of entries, at least one"),
        ([{"composition": "Cu"}], "entry 0: got {'composition': 'Cu'}; expected"),
        ([{"composition": "Cu", "energy": -1.0}, {"composition": "Xx2", "energy": 1.0}], "entry 1: composition=Xx2"),
        ([{"composition": "Cu", "energy": True}], "entry 0: energy: got True; expected a finite number"),
        ([{"composition": {"Cu": 0.5}, "energy": 1.0}], "entry 0: composition=Cu0.5"),
        ([{"composition": 3, "energy": 1.0}], "entry 0: composition is 3"),
    ],
)
def test_a_file_that_is_no_hull_is_refused_by_its_entry(content: object, words: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"stability.hull=.*entries.json") as found:
        read_hull(write(tmp_path / "entries.json", content))
    assert words in str(found.value)


def test_energies_of_one_potential_do_not_judge_another():
    crystals = CrystalSet.of("four crystals", known())
    settings = EvaluationSettings(sections=["stability"], potential=EMT, second_potential=OTHER)
    with pytest.raises(ConfigError, match="exclude each other"):
        evaluate_generation(
            generated=crystals, known=Known(reference=crystals, hull=HullFile("x", [])), runner=RUNNER,
            settings=settings,
        )  # fmt: skip


# ---- as a user asks for it ------------------------------------------------------------------------------------------


def test_the_command_writes_relaxed_crystals_with_their_energies(table: Path, tmp_path: Path):  # noqa: F811
    ase.io.write(
        tmp_path / "mine.extxyz",
        [*known()[[0, 2]].to_atoms(), *CrystalBatch.from_arrays([fcc([26] * 4, 3.6)]).to_atoms()],
    )
    hull = [{"composition": "Cu", "energy": 0.0}, {"composition": "Au", "energy": 0.0}]
    write(tmp_path / "entries.json", hull)
    in_process(
        "evaluate", "generated=mine.extxyz", "data=table", f"data.source.data_dir={table}", "sections=[stability]",
        "potential=emt", "stability.hull=entries.json", "reference=null", "stability.sample=0", "n_jobs=1",
        "output_dir=out", cwd=tmp_path,
    )  # fmt: skip
    relaxed = ase.io.read(tmp_path / "out" / "relaxed" / "samples.extxyz", index=":")
    assert [atoms.get_chemical_formula() for atoms in relaxed] == ["Cu4", "AuCu3"]
    assert relaxed[0].cell.volume ** (1 / 3) == pytest.approx(3.589, abs=0.01)  # EMT's copper
    rows = (tmp_path / "out" / "relaxed" / "samples.csv").read_text(encoding="utf-8").splitlines()
    assert "energy_above_hull" in rows[0]
    assert [row.partition(",")[0] for row in rows[1:]] == [atoms.info["id"] for atoms in relaxed]
    settings = json.loads((tmp_path / "out" / "relaxed" / "samples.json").read_text(encoding="utf-8"))["info"]
    assert settings["potential"] == "EMT"
    assert settings["relaxation"]["fmax"] == 0.05
