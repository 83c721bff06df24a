"""Structures by analogy: which known crystal stands for a composition, and what becomes of its cell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ase.data import covalent_radii

from crystalvae.data.analogy import AnalogyLibrary, element_distances
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.wyckoff_genes import Arrays, GeneFinder, StoredGenes
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.evaluate import EvaluationSettings, Known, evaluate_csp, evaluate_generation
from crystalvae.evaluation.evaluation_report import EvaluationReport
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.matching.candidates import assign
from crystalvae.evaluation.metric import Metric, Section
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.report.comparison import comparisons
from crystalvae.evaluation.report.numbers import label
from crystalvae.evaluation.substitution.section import (
    TITLE_LEARNED,
    substitutes_for_samples,
    substitutes_for_targets,
)

ALONE = Runner(n_jobs=1, progress=False)
FACES = np.ones((3, 3)) - np.eye(3)
"""Primitive cell of the face-centred cubic lattice, in units of half the cube's edge."""
F, NA, MG, SI, CL, K, CA, TI, NI, BR, SN, CS, I = 9, 11, 12, 14, 17, 19, 20, 22, 28, 35, 50, 55, 53  # noqa: E741


def rock_salt(first: int, second: int, edge: float) -> Arrays:
    return np.array([first, second]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), edge / 2 * FACES


def caesium_chloride(first: int, second: int, edge: float) -> Arrays:
    return np.array([first, second]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), edge * np.eye(3)


def half_heusler(centre: int, corner: int, other: int) -> Arrays:
    """The element `centre` sits on 4c between the two others, at 4a and 4b."""
    coords = np.array([[0.25, 0.25, 0.25], [0, 0, 0], [0.5, 0.5, 0.5]])
    return np.array([centre, corner, other]), coords, 5.9 / 2 * FACES


def library(**crystals: Arrays) -> AnalogyLibrary:
    return AnalogyLibrary(crystals=list(crystals.values()), ids=list(crystals))


def volume(lattice: np.ndarray) -> float:
    return float(abs(np.linalg.det(lattice)))


SALTS = library(salt=rock_salt(NA, CL, 5.64), sylvine=rock_salt(K, CL, 6.29), caesium=caesium_chloride(CS, CL, 4.12))


def test_a_salt_with_exchanged_elements_is_the_other_salt():
    (first, *_) = SALTS.search([K, BR])
    assert first.source == "sylvine"
    assert first.to_structure().composition.reduced_formula == "KBr"
    assert first.space_group == 225
    # the arrangement is exact: each K has six Br at half the edge, the edge scaled with the radii
    edge = 6.29 * ((covalent_radii[K] ** 3 + covalent_radii[BR] ** 3) / (covalent_radii[K] ** 3 + covalent_radii[CL] ** 3)) ** (1 / 3)  # fmt: skip  # noqa: E501
    bonds = first.to_structure().get_all_neighbors(edge / 2 + 0.01)
    assert [len(entry) for entry in bonds] == [6, 6]
    assert bonds[0][0].nn_distance == pytest.approx(edge / 2)
    assert {site.specie.symbol for site in bonds[0]} | {"K", "Br"} == {"K", "Br"}


def test_a_composition_in_the_library_is_its_own_analogue_unless_excluded():
    own = SALTS.search([CL, NA])[0]  # in any order of atoms
    assert (own.source, own.distance) == ("salt", 0.0)
    assert volume(own.lattice) == pytest.approx(5.64**3 / 4)
    other = SALTS.search([NA, CL], exclude={"salt"})
    assert [entry.source for entry in other] == ["sylvine", "caesium"]


def test_one_candidate_per_gene_ordered_by_the_summed_similarity():
    found = SALTS.search([K, BR])
    assert [entry.source for entry in found] == ["sylvine", "caesium"]  # two rock salts are one gene
    near, far = element_distances()[K, NA], element_distances()[K, CS]
    shift = element_distances()[BR, CL]
    assert near == pytest.approx(0.7)  # potassium is one row below sodium
    # the other order of the elements, K on the anion's site, means the same two genes
    swapped = [element_distances()[K, CL] + element_distances()[BR, z] for z in (NA, K, CS)]
    expected = np.exp(-1.5 * np.array([near + shift, shift, *([swapped[0], swapped[1]])])).sum()
    assert found[0].similarity == pytest.approx(expected)
    assert found[1].similarity == pytest.approx(np.exp(-1.5 * (far + shift)) + np.exp(-1.5 * swapped[2]))
    assert found[0].distance == pytest.approx(shift)
    assert len(SALTS.search([K, BR], count=1)) == 1


def test_many_less_similar_crystals_outvote_a_single_nearer_one():
    votes = {f"salt{i}": rock_salt(NA, CL, 5.6) for i in range(30)}
    found = library(near=caesium_chloride(K, CL, 4.1), **votes).search([K, BR])
    assert [entry.space_group for entry in found] == [225, 221]
    assert found[0].distance > found[1].distance


def test_elements_with_equally_many_atoms_take_the_places_of_the_most_similar_ones():
    known = library(NiTiSn=half_heusler(NI, TI, SN))
    palladium, zirconium, silicon = 46, 40, 14
    best, *others = known.search([silicon, zirconium, palladium])
    (centre,) = np.flatnonzero((best.frac_coords == 0.25).all(axis=1))
    assert best.numbers[centre] == palladium  # nickel's group
    assert len(others) == 2  # any of the three elements may be the centre, and the other two are alike
    assert {int(entry.numbers[(entry.frac_coords == 0.25).all(axis=1)][0]) for entry in (best, *others)} == {
        palladium, zirconium, silicon,
    }  # fmt: skip
    assert best.similarity > others[0].similarity > others[1].similarity


def test_elements_keep_their_numbers_of_atoms():
    fluorite = (np.array([CA, F, F]), np.array([[0, 0, 0], [0.25] * 3, [0.75] * 3]), 5.46 / 2 * FACES)
    known = library(fluorite=fluorite, salt=rock_salt(NA, CL, 5.64))
    (found,) = known.search([CL, MG, CL])
    assert found.numbers.tolist() == [MG, CL, CL]
    assert found.to_structure().composition.reduced_formula == "MgCl2"
    assert known.search([MG, CL, CL, CL]) == []
    (antifluorite,) = known.search([NA, NA, SI])
    assert antifluorite.to_structure().composition.reduced_formula == "Na2Si"


def test_the_volume_follows_the_cubes_of_the_covalent_radii():
    (found, *_) = SALTS.search([CS, I], exclude={"caesium", "sylvine"})
    before = covalent_radii[NA] ** 3 + covalent_radii[CL] ** 3
    after = covalent_radii[CS] ** 3 + covalent_radii[I] ** 3
    assert volume(found.lattice) / (5.64**3 / 4) == pytest.approx(after / before)
    heavy = SALTS.search([98, 99])[0]  # no radius is known beyond curium, whose radius stands for them
    assert 10 < volume(heavy.lattice) < 200


def test_a_formula_is_looked_for_in_cells_of_all_sizes_without_repeating_a_gene():
    cube = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    conventional = (np.array([NA] * 4 + [CL] * 4), np.concatenate((cube, (cube + 0.5) % 1)), 5.64 * np.eye(3))
    known = library(primitive=rock_salt(NA, CL, 5.64), conventional=conventional, caesium=caesium_chloride(CS, CL, 4.1))
    assert known.sizes([K, BR]) == [1, 4]
    assert known.sizes([K, BR, BR]) == []
    assert [entry.space_group for entry in known.search_formula([K, BR])] == [225, 221]
    assert [len(entry.numbers) for entry in known.search_formula([K, BR], sizes=[4])] == [8]


def test_more_orders_than_can_be_tried_leave_the_best_one(monkeypatch):
    known = library(NiTiSn=half_heusler(NI, TI, SN))
    monkeypatch.setattr("crystalvae.data.analogy.MOST_ORDERS", 5)
    few = library(NiTiSn=half_heusler(NI, TI, SN))
    wanted = [40, 46, 14]
    (only,) = few.search(wanted)
    best = known.search(wanted)[0]
    assert (only.distance, only.numbers.tolist()) == (pytest.approx(best.distance), best.numbers.tolist())
    assert only.frac_coords == pytest.approx(best.frac_coords)


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match="count=0"):
        SALTS.search([NA, CL], count=0)
    with pytest.raises(ConfigError, match="0 atoms"):
        SALTS.search([])
    assert SALTS.search([0, CL]) == []
    with pytest.raises(ValueError, match="one per crystal"):
        AnalogyLibrary(crystals=[rock_salt(NA, CL, 5.6)], ids=[])


# ---- genes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_gene_does_not_depend_on_origin_and_axes(seed: int):
    rng = np.random.default_rng(seed)
    numbers, coords, lattice = half_heusler(NI, TI, SN)
    axes = np.array([[1, rng.integers(-1, 2), 0], [0, 1, rng.integers(-1, 2)], [0, 0, 1]])[rng.permutation(3)]
    moved = (numbers, (coords + rng.random(3)) @ np.linalg.inv(axes), axes @ lattice)
    find = GeneFinder()
    assert find(moved).of_elements([0, 1, 2]) == find((numbers, coords, lattice)).of_elements([0, 1, 2])


def test_genes_tell_which_element_is_where():
    find = GeneFinder()
    gene = find(half_heusler(NI, TI, SN))  # by atomic number: Ti, Ni, Sn
    assert gene.space_group == 216
    assert gene.of_elements([0, 1, 2]) == gene.of_elements([2, 1, 0])  # the corners are alike
    assert gene.of_elements([0, 1, 2]) != gene.of_elements([1, 0, 2])  # the centre is another place
    assert find(rock_salt(NA, CL, 5.6)).of_elements([0, 1]) == find(rock_salt(CL, NA, 5.6)).of_elements([0, 1])


def test_genes_are_kept_and_belong_to_their_crystals(tmp_path: Path, caplog):
    crystals = [rock_salt(NA, CL, 5.64), half_heusler(NI, TI, SN)]
    genes = StoredGenes(crystals, path=tmp_path / "genes")
    first = genes[1]
    genes.save()
    (file,) = tmp_path.iterdir()
    again = StoredGenes(crystals, path=tmp_path / "genes")
    again._find = None  # pyright: ignore[reportAttributeAccessIssue]  what is kept is not looked for
    assert again[1] == first
    with pytest.raises(TypeError):
        again[0]
    other = StoredGenes(crystals[::-1], path=tmp_path / "genes")
    assert other.path != genes.path
    assert other[0] == first
    file.write_text("[")
    assert StoredGenes(crystals, path=tmp_path / "genes")[1] == first
    assert "found anew" in caplog.text


# ---- the reference in evaluations -----------------------------------------------------------------------------------


def named(name: str, **crystals: Arrays) -> CrystalSet:
    return CrystalSet.of(name, CrystalBatch.from_arrays(crystals.values()), list(crystals))


TARGETS = named(
    "targets", bromide=rock_salt(K, BR, 6.6), chloride=caesium_chloride(CS, CL, 4.12), three=half_heusler(NI, TI, SN)
)
TRAIN = named(
    "train", salt=rock_salt(NA, CL, 5.64), sylvine=rock_salt(K, CL, 6.29), chloride=caesium_chloride(CS, CL, 4.12)
)


def test_the_reference_is_matched_with_the_same_targets():
    known = AnalogyLibrary.of(TRAIN.crystals, TRAIN.ids)
    substitutes = substitutes_for_targets(known, TARGETS, count=2, progress=False)
    # the target itself is in the library, and does not count: rock salt is all that is left for CsCl
    assert substitutes.candidates.owner.tolist() == [0, 0, 1]
    assert list(substitutes.sources) == ["sylvine", "chloride", "sylvine"]
    predicted = named("model", bromide=caesium_chloride(K, BR, 4.0))
    generated, candidates = assign(predicted, TARGETS)
    report = evaluate_csp(
        targets=TARGETS, generated=generated, candidates=candidates, runner=ALONE,
        settings=EvaluationSettings(sections=[]), ks=[1, 2], substitutes=substitutes,
    )  # fmt: skip
    values = {name: metric.value for name, metric in report.metrics().items()}
    assert values["match_rate@1"] == 0.0
    assert values["substitution_match_rate@1"] == pytest.approx(1 / 3)
    assert values["substitution_rmse@1"] == pytest.approx(0.0, abs=1e-6)
    assert values["substitution_contacts_valid@1"] == pytest.approx(2 / 3)
    assert values["substitution_targets_without_candidates"] == 1
    assert [section.name for section in report.sections] == ["csp", "substitution"]
    assert report.section("substitution").distributions["source"] == ["sylvine", "chloride", "sylvine"]


def test_the_reference_generates_for_the_models_compositions():
    generated = named(
        "model", a=caesium_chloride(K, BR, 4.0), b=caesium_chloride(K, BR, 4.0), c=half_heusler(NI, TI, SN)
    )
    known = AnalogyLibrary.of(TRAIN.crystals, TRAIN.ids)
    substitutes = substitutes_for_samples(known, generated, seed=0, progress=False)
    assert [entry.id for entry in substitutes.crystals.unreadable] == ["c"]
    settings = EvaluationSettings(sections=["validity", "uniqueness", "symmetry"])
    report = evaluate_generation(
        generated=generated, known=Known(reference=TRAIN, train=TRAIN), runner=ALONE, settings=settings,
        substitutes=substitutes,
    )  # fmt: skip
    values = {name: metric.value for name, metric in report.metrics().items()}
    assert (values["substitution_crystals"], values["substitution_without_analogue"]) == (3, 1)
    assert values["substitution_structure_valid"] == pytest.approx(2 / 3)  # what has no analogue is not valid
    assert values["substitution_unique"] == pytest.approx(1 / 3)
    assert values["substitution_vun"] == pytest.approx(1 / 3)
    assert values["substitution_p1_0.1"] == 0.0
    empty = CrystalSet("none", CrystalBatch.empty([]), [], [])
    with pytest.raises(DataError, match="no readable crystal"):
        substitutes_for_samples(known, empty, seed=0)


def test_targets_without_any_analogue_are_a_report_of_zeros():
    targets = named("targets", three=half_heusler(NI, TI, SN))
    substitutes = substitutes_for_targets(
        AnalogyLibrary.of(TRAIN.crystals, TRAIN.ids), targets, count=3, progress=False
    )
    generated, candidates = assign(targets, targets)
    report = evaluate_csp(
        targets=targets, generated=generated, candidates=candidates, runner=ALONE,
        settings=EvaluationSettings(sections=[]), substitutes=substitutes,
    )  # fmt: skip
    assert report.metrics()["substitution_match_rate@1"].value == 0.0
    assert report.metrics()["match_rate@1"].value == 1.0


def test_the_report_shows_the_reference_in_the_published_tables():
    metrics = {
        "match_rate@1": Metric.share(6, 10, "targets that are met"),
        "substitution_match_rate@1": Metric.share(71, 100, "targets that are met"),
    }
    model = CrystalSet.of("model", CrystalBatch.from_arrays([]))
    sections = [Section(name="csp", title="", metrics=metrics)]
    report = EvaluationReport(
        kind="csp", generated=model, reference=model, train=None, sections=sections, seconds={}, seed=0
    )
    rows = {row.model: row.cells for table in comparisons(report) for row in table.rows if row.ours}
    assert "71.00" in rows["substitution, no model"]
    assert "60.00" in rows["model"]
    learned = replace(report, sections=[*sections, Section(name="substitution", title=TITLE_LEARNED)])
    names = {row.model for table in comparisons(learned) for row in table.rows if row.ours}
    assert "substitution, distances learned" in names
    assert "substitution, no model" not in names
    assert label("substitution_match_rate_gated@20") == "Substitution: Match rate, gated by validity, @20"


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tables"
    folder.mkdir()
    crystals = {"salt": rock_salt(NA, CL, 5.64), "sylvine": rock_salt(K, CL, 6.29), "three": half_heusler(NI, TI, SN)}
    cifs = [structure.to(fmt="cif") for structure in CrystalBatch.from_arrays(crystals.values()).to_structure()]
    for split in ("train", "val"):
        pd.DataFrame({"material_id": list(crystals), "cif": cifs}).to_csv(folder / f"{split}.csv")
    return folder


def run_sample(tables: Path, *arguments: str) -> str:
    from crystalvae.commands.sample import sample
    from tests.test_docs import compose

    data = ["data=table", f"data.source.data_dir={tables}"]
    return sample(compose("sample", "method=analogy", "output_dir=out", *data, *arguments))


def test_sample_by_analogy_says_where_each_candidate_comes_from(tables: Path):
    message = run_sample(tables, "composition=KBr", "num_samples=5", "formats=[cif,extxyz]")
    found = pd.read_csv("out/samples.csv")
    assert found["formula"].tolist() == ["KBr"]
    assert found["analogue_of"].tolist() == ["sylvine"]
    assert found["element_distance"].tolist() == [0.7]
    assert found["space_group"].tolist() == [225]
    assert found["valid"].tolist() == [True]
    assert Path("out/0000.cif").is_file()
    assert "sylvine" in message
    assert list(Path("cache").rglob("genes-*.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say for which composition"),
        (["composition=NaCl3"], "no training crystal"),
        (["composition=NaCl", "formula_units=3"], "so many formula units"),
        (["composition=NaCl", "conditions.band_gap=1", "temperature=2"], "temperature, conditions.band_gap"),
        (["composition=NaCl", "method=magic"], "method: got 'magic'"),
        (["composition=NaCl", "method=model"], "data: a model is sampled without data"),
    ],
)
def test_sample_by_analogy_refuses_what_only_a_model_can_do(tables: Path, arguments: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        run_sample(tables, *arguments)
    assert not Path("out").exists()


def test_evaluate_prints_the_reference_unless_told_not_to(tables: Path):
    from crystalvae.commands.evaluate import evaluate
    from tests.test_docs import compose

    CrystalBatch.from_arrays([rock_salt(NA, CL, 5.64)]).to_structure()[0].to(filename="salt.cif")
    Path("given").mkdir()
    Path("salt.cif").rename("given/salt.cif")
    options = ["generated=given", "data=table", f"data.source.data_dir={tables}", "n_jobs=1", "report=false"]

    def written() -> dict[str, Any]:
        return json.loads(Path("given-evaluation/evaluation.json").read_text())

    def how() -> dict[str, str]:
        return next(entry["settings"] for entry in written()["sections"] if entry["name"] == "substitution")

    def metrics(*arguments: str) -> dict[str, object]:
        evaluate(compose("evaluate", *options, *arguments))
        return written()["metrics"]

    found = metrics("task=csp", "sections=[]")
    assert found["match_rate@1"] == pytest.approx(1 / 3)
    assert found["substitution_match_rate@1"] == pytest.approx(2 / 3)  # each salt by the other
    assert how()["distances"] == "of the periodic table"
    assert metrics("task=csp", "sections=[]", "reference=ranked") == found  # two salts are one gene in any order
    assert how()["distances"] == "learned from the training set"
    assert how()["order"].startswith("sum of exp(-1·distance)")
    assert metrics("sections=[validity]")["substitution_structure_valid"] == 1.0
    for switch in ("reference=null", "train_split=null"):
        assert not any(name.startswith("substitution") for name in metrics("sections=[validity]", switch))
    with pytest.raises(ConfigError, match="got 'prayer'; expected substitution or ranked"):
        metrics("reference=prayer")
