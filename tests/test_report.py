"""The HTML report: what it says, draws and refuses; test_report_browser.py opens it in a browser."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pymatgen.core import Structure
from rich.table import Table

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.view import assets
from crystalvae.data.view.scene import Scene, scene
from crystalvae.errors import OutputError
from crystalvae.evaluation.evaluation_report import EvaluationReport
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.metric import Metric
from crystalvae.evaluation.report import format_tables, write_html_report, write_report
from crystalvae.evaluation.report.archive import cif_texts, file_names, write_archive
from crystalvae.evaluation.report.cases import generation_order, reconstruction_groups
from crystalvae.evaluation.report.distributions import histogram
from crystalvae.evaluation.report.facts import crystal_facts
from crystalvae.evaluation.report.numbers import chemical_formula, label, space_group_symbol, write_number
from crystalvae.evaluation.report.periodic_table import position
from crystalvae.evaluation.report.published import beside, published_numbers
from crystalvae.evaluation.report.style import plotting
from tests.report_samples import HOSTILE, generation_report, reconstruction_report
from tests.samples import rock_salt_and_friends


class Links(HTMLParser):
    """Collects where a page's elements point to, and the elements it has."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        self.ids += [value or "" for name, value in attrs if name == "id"]


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> tuple[Path, EvaluationReport]:
    """A report of generation, with every kind of bad crystal, in a folder."""
    report = generation_report()
    return write_html_report(report, tmp_path_factory.mktemp("report")), report


@pytest.fixture(scope="module")
def reconstructed(tmp_path_factory) -> tuple[Path, EvaluationReport]:
    report = reconstruction_report()
    return write_html_report(report, tmp_path_factory.mktemp("report")), report


# ---- the page -------------------------------------------------------------------------------------------------------


def test_every_metric_and_its_definition_stands_on_the_page(generated):
    text = generated[0].read_text(encoding="utf-8")
    for name, metric in generated[1].metrics().items():
        assert f'id="metric-{name}"' in text
        assert metric.definition in text
    assert "66.67 %" in text
    assert "0.4660 g/cm³" in text


def test_a_simpler_method_stands_beside_the_model(tmp_path):
    report = generation_report()
    first, *others = report.sections
    simpler = {"structure_valid": Metric(0.125, "", unit="share"), "what_the_model_lacks": Metric(1, "")}
    report = replace(report, sections=[first.beside("substitution", replace(first, metrics=simpler)), *others])
    path, page_path = write_report(report, tmp_path)
    assert report.metrics()["structure_valid"].value == 4 / 6
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content["sections"][0]["references"]["substitution"]) == ["structure_valid"]
    assert "references" not in content["sections"][1]
    text = page_path.read_text(encoding="utf-8")
    assert '<th class="num">substitution</th>' in text
    assert re.search(r"66\.67 %<i>↑</i></td>\s*<td class=.num.>12\.50 %</td>", text)
    table = format_tables(report)[0]
    assert isinstance(table, Table)
    assert [str(column.header) for column in table.columns] == ["measure", "value", "substitution", "definition"]
    assert list(table.columns[2].cells) == ["12.50%", ""]


def test_a_skipped_part_says_what_to_install(generated):
    assert "Skipped: stability needs chgnet" in generated[0].read_text(encoding="utf-8")


def test_nothing_on_the_page_points_to_another_machine(generated, reconstructed):
    for path in (generated[0], reconstructed[0]):
        found = Links(path.read_text(encoding="utf-8"))
        assert found.links
        for link in found.links:
            assert link.startswith(("#", "data:")) or (path.parent / link).exists(), link
        targets = {link[1:] for link in found.links if link.startswith("#")}
        assert targets <= set(found.ids)


def test_ids_that_look_like_html_stay_text(generated):
    text = generated[0].read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert not [tag for tag in Links(text).tags if tag == "img" and "onerror" in text.split("<img")[1][:40]]
    stored = re.search(r'id="viewer-data">(.*?)</script>', text, re.DOTALL)
    assert stored
    cases = [case for group in json.loads(stored[1])["groups"] for case in group["cases"]]
    assert HOSTILE in {case["id"] for case in cases}


def test_unreadable_crystals_are_listed_with_their_reasons(generated):
    assert "no atom sites" in generated[0].read_text(encoding="utf-8")


def test_command_seed_versions_and_time_are_given(generated):
    text = generated[0].read_text(encoding="utf-8")
    for piece in ("evaluate.py generated=samples", "torch 2.13.0", "posterior mean", "12.5 s"):
        assert piece in text


def test_published_numbers_stand_beside_the_runs_own(generated, reconstructed):
    text = generated[0].read_text(encoding="utf-8")
    assert "MatterGen" in text
    assert "99.78" in text
    assert "This run was evaluated on other crystals" in text  # the reference is not MP-20
    assert "This run was evaluated on other crystals" not in reconstructed[0].read_text(encoding="utf-8")


def test_what_was_not_looked_up_is_marked(reconstructed):
    text = reconstructed[0].read_text(encoding="utf-8")
    assert "†" in text
    assert "quoted from memory" in text


def test_plots_are_pngs_beside_the_page(generated, reconstructed):
    expected = {"density", "volume_per_atom", "num_atoms", "num_elements", "elements"}
    plots = {path.stem for path in (generated[0].parent / "plots").glob("*.png")}
    assert plots == expected | {"space_groups", "crystal_systems", "energy_above_hull"}
    plots = {path.stem for path in (reconstructed[0].parent / "plots").glob("*.png")}
    assert plots == expected | {"lattice_parity", "rms"}
    with Image.open(generated[0].parent / "plots" / "density.png") as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(maxcolors=10**6) or []) > 50


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot write the report"):
        write_html_report(reconstruction_report(), file / "sub")


def test_the_json_file_holds_what_the_page_shows(tmp_path):
    report = generation_report()
    path, page_path = write_report(report, tmp_path)
    assert [path.name, page_path.name] == ["evaluation.json", "report.html"]
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["latent"] == "posterior mean"
    assert content["metrics"]["wasserstein_energy"] is None
    assert content["sections"][0]["settings"]["range"] == [1.0, None]
    assert content["per_crystal"]["uniqueness.novel"] == report.columns()["novel"]
    assert content["inputs"]["train"] is None


# ---- crystals -------------------------------------------------------------------------------------------------------


def test_every_crystal_that_a_cif_can_hold_is_in_the_archive(generated):
    with zipfile.ZipFile(generated[0].parent / "generated.zip") as archive:
        names = archive.namelist()
        first = Structure.from_str(archive.read("0000.cif").decode(), fmt="cif")
        index = archive.read("index.csv").decode().splitlines()
    # Ids that cannot be file names are numbered; the crystal without volume and that of nan have no CIF.
    assert names == ["0000.cif", "0001.cif", "0002.cif", "0005.cif", "index.csv"]
    assert first.composition.reduced_formula == "NaCl"
    assert index[0] == "file,id"
    assert index[1] == '0000.cif,"salt"'
    assert index[4].startswith(',"')


def test_safe_ids_name_the_files():
    assert file_names(["mp-1", "mp-2"]) == ["mp-1", "mp-2"]
    assert file_names(["a", "A"]) == ["0000", "0001"]
    assert file_names(["../a", "b"]) == ["0000", "0001"]


def test_cifs_give_the_crystals_back(tmp_path):
    structures = rock_salt_and_friends()
    crystals = CrystalBatch.from_structures(structures)
    texts = cif_texts(crystals, ["a", "b", "c", "d"])
    for text, structure in zip(texts, structures, strict=True):
        again = Structure.from_str(text, fmt="cif", frac_tolerance=0)
        assert again.composition == structure.composition
        assert again.volume == pytest.approx(structure.volume, rel=1e-5)
    assert write_archive(tmp_path / "a.zip", texts, list("abcd"), list("abcd")) == 4


def test_facts_of_rock_salt():
    crystals = CrystalBatch.from_structures(rock_salt_and_friends()[:1])
    facts = crystal_facts(crystals)
    assert facts.density[0] == pytest.approx(4 * (22.98977 + 35.45) * 1.66053907 / 5.64**3, rel=1e-4)
    assert facts.volume_per_atom[0] == pytest.approx(5.64**3 / 8)
    assert facts.num_elements.tolist() == [2]
    assert facts.num_atoms.tolist() == [8]
    assert facts.element_share[[11, 17]].tolist() == [1.0, 1.0]
    assert facts.element_share.sum() == 2.0


def test_facts_of_bad_crystals_are_nan():
    facts = crystal_facts(generation_report().generated.crystals)
    assert np.isnan(facts.density).tolist() == [False, False, False, True, False, False]
    assert np.isnan(facts.volume_per_atom).tolist() == [False, False, False, True, False, False]
    assert facts.num_atoms.tolist() == [8, 8, 4, 2, 3, 450]


def test_atoms_on_faces_are_drawn_on_both_sides():
    cesium_chloride = scene(np.array([55, 17]), np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]), np.eye(3) * 4.12)
    assert isinstance(cesium_chloride, Scene)
    assert sorted(cesium_chloride.elements) == ["Cl"] + ["Cs"] * 8
    # Eight bonds from the centre to the corners; neighbouring Cs are nearer than their radii, but metals among anions.
    assert len(cesium_chloride.bonds) == 8
    centre = cesium_chloride.elements.index("Cl")
    assert all(centre in bond for bond in cesium_chloride.bonds)


def test_metals_are_bonded_where_there_is_nothing_else():
    iron = scene(np.array([26, 26]), np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]), np.eye(3) * 2.87)
    assert isinstance(iron, Scene)
    assert len(iron.elements) == 9
    assert len(iron.bonds) == 8 + 12  # to the corners (2.49 Å), and along the edges (2.87 Å; 1.15 x 2 x 1.32 = 3.04)


@pytest.mark.parametrize(
    ("numbers", "frac_coords", "lattice", "reason"),
    [
        (np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), "no volume"),
        (np.array([1]), np.full((1, 3), np.nan), np.eye(3), "not finite"),
        (np.array([], dtype=int), np.zeros((0, 3)), np.eye(3), "no atoms"),
        (np.ones(500, dtype=int), np.random.default_rng(0).random((500, 3)), np.eye(3) * 20, "500 atoms"),
    ],
)
def test_what_cannot_be_drawn_says_why(numbers, frac_coords, lattice, reason):
    found = scene(numbers, frac_coords, lattice)
    assert isinstance(found, str)
    assert reason in found


def test_a_collapsed_crystal_is_drawn_without_a_thicket_of_bonds():
    rng = np.random.default_rng(0)
    found = scene(np.full(60, 14), rng.random((60, 3)) * 0.5 + 0.2, np.eye(3) * 4)
    assert isinstance(found, Scene)
    assert len(found.elements) == 60
    assert len(found.bonds) == 0


# ---- the choice of crystals -----------------------------------------------------------------------------------------


def test_generated_crystals_are_ranked_by_what_they_pass():
    columns = {
        "structure_valid": [True, True, True, True, False],
        "composition_valid": [True, True, True, False, False],
        "unique": [True, True, True, True, True],
        "novel": [True, True, False, True, True],
        "vun": [True, True, False, False, False],
        "energy_above_hull": [0.2, 0.05, 0.0, None, None],
    }
    assert generation_order(columns, 5) == [1, 0, 2, 3, 4]
    columns["structure_valid"] = [True, True, False, True, True]
    assert generation_order(columns, 5) == [1, 0, 3, 4, 2]


def test_crystals_without_columns_keep_their_order():
    assert generation_order({}, 2) == [0, 1]


def test_best_and_worst_reconstructions(reconstructed):
    report = reconstructed[1]
    texts = dict.fromkeys(("targets", "predictions"), [""] * 3)
    groups = reconstruction_groups(
        report.targets, report.predictions, report.columns(), report.generated.ids, texts, most=2
    )
    assert [group.title for group in groups] == ["Best", "Worst"]
    # The second matches best but has fewer atoms than the median; the third has no match.
    assert [case.id for case in groups[0].cases] == ["first"]
    assert [case.id for case in groups[1].cases] == ["third", "second"]
    assert [panel.title for panel in groups[0].cases[0].panels] == ["target", "prediction"]
    assert groups[1].cases[0].verdict == "no match"
    assert groups[0].cases[0].verdict == "RMS displacement 0.0500"


# ---- words and numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.9834, "share", "98.34 %"),
        (0.0571234, "", "0.0571"),
        (12.3456, "Å", "12.35 Å"),
        (3.2, "°", "3.200°"),
        (27136, "crystals", "27,136 crystals"),
        (0, "crystals", "0 crystals"),
        (0.0000123, "eV/atom", "1.23e-05 eV/atom"),
        (None, "share", "–"),
        (math.nan, "", "–"),
        (math.inf, "Å", "–"),
    ],
)
def test_numbers_are_written_with_their_units(value, unit, expected):
    assert write_number(value, unit) == expected


def test_names_of_metrics():
    assert label("match_rate_gated@20") == "Match rate, gated by validity, @20"
    assert label("vun") == "Valid, unique and novel (V.U.N.)"
    assert label("p1_0.1") == "P1, 0.1 Å"
    assert label("element_accuracy") == "Element accuracy"
    assert chemical_formula("Nd(Al2Cu)4") == "Nd(Al₂Cu)₄"
    assert space_group_symbol("P6_3/mmc") == "P6₃/mmc"


def test_elements_stand_where_they_belong():
    assert position(1) == (1, 1.0)
    assert position(2) == (18, 1.0)
    assert position(26) == (8, 4.0)
    assert position(57) == (3, 8.5)
    assert position(92) == (6, 9.5)
    assert len({position(z) for z in range(1, 104)}) == 103


def test_a_histogram_counts_what_its_axis_leaves_out():
    with plotting():
        plot = histogram(
            np.array([1.0, 2.0, 500.0, np.nan]), np.linspace(1, 3, 100), ("generated", "reference"),
            name="x", title="X", label="x",
        )  # fmt: skip
    assert "1 of 3 generated ones lie beyond the axis" in plot.caption
    assert "1 generated ones have no value" in plot.caption
    with Image.open(io.BytesIO(plot.png)) as image:
        assert image.format == "PNG"
    assert plot.svg.startswith(b"<?xml")


# ---- what comes from elsewhere --------------------------------------------------------------------------------------


def test_published_tables_are_sound():
    published = published_numbers()
    for table in published.tables:
        assert set(table.kinds) <= {"reconstruction", "csp", "generation"}
        assert table.measured
        assert table.source
        assert table.url.startswith("https://")
        for model, values in table.rows.items():
            assert model in published.models
            assert len(values) == len(table.columns)
            for value, column in zip(values, table.columns, strict=True):
                assert value is None or 0 <= value <= (100 if column.unit == "%" else 1e4)
    assert {"CDVAE", "DiffCSP", "FlowMM", "MatterGen", "ADiT", "OMatG", "Crystalite"} <= set(published.models)


def test_gated_published_numbers_stand_beside_the_gated_metric():
    tables = published_numbers().for_kind("csp")
    assert beside(tables, "match_rate@1", {"match_rate@1"}) is not None
    known = {"match_rate@1", "match_rate_gated@1"}
    assert beside(tables, "match_rate@1", known) is None
    assert beside(tables, "match_rate_gated@1", known) is not None
    assert beside(tables, "shoe_size", known) is None


def test_vendored_files_are_those_that_were_published():
    record = assets.vendored()
    others = {path.name for path in assets.ASSETS.iterdir()} - {
        "vendored.json", "crystal.js", "notebook.css", "notebook.js",
    }  # fmt: skip
    assert set(record) == others
    for name, entry in record.items():
        content = (assets.ASSETS / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert entry["version"]
    viewer = (assets.ASSETS / "3Dmol-min.js").read_text(encoding="utf-8")
    notice = (assets.ASSETS / "3Dmol-min.js.LICENSE.txt").read_text(encoding="utf-8")
    assert f"3dmol v{record['3Dmol-min.js']['version']}" in notice
    assert "</script" not in viewer.lower()  # it stands inside a script element
    assert "BSD-3-Clause" in (assets.ASSETS / "3Dmol-LICENSE.txt").read_text(encoding="utf-8")


def test_embedded_data_cannot_end_its_script():
    data = {"id": "</script><b>&\u2028"}
    text = assets.embeddable(data)
    assert "<" not in text
    assert json.loads(text) == data


def test_one_crystal_alone_makes_a_report_and_a_second_one_replaces_it(tmp_path):
    crystals = CrystalBatch(
        atom_types=torch.tensor([6]),
        frac_coords=torch.zeros(1, 3),
        lattices=3 * torch.eye(3)[None],
        num_atoms=torch.tensor([1]),
    )
    one = CrystalSet.of("one", crystals)
    report = EvaluationReport(kind="generation", generated=one, reference=one, sections=[], seconds={}, seed=0)
    folder = tmp_path / "new" / "folder"
    path = write_html_report(report, folder)
    assert "De novo generation: one" in path.read_text(encoding="utf-8")
    before = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    path.write_text("old", encoding="utf-8")
    (folder / "mine.txt").write_text("kept", encoding="utf-8")
    write_html_report(report, folder)
    after = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert after.pop(Path("mine.txt")) == b"kept"
    assert after == before  # the same input gives the same bytes, and no other files
