"""The whole evaluation: golden numbers for copies, duplicates and rubbish; what is written; what is skipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import SkippedRow
from crystalvae.errors import ConfigError, DataError, OutputError
from crystalvae.evaluation.evaluate import (
    SECTIONS,
    EvaluationSettings,
    Known,
    evaluate_csp,
    evaluate_generation,
    evaluate_reconstruction,
)
from crystalvae.evaluation.evaluation_report import EvaluationReport, plain_data
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.metric import Metric
from crystalvae.evaluation.parallel.cache import ResultCache
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.report import format_tables, write_report
from crystalvae.evaluation.report.tables import format_value
from tests.test_csp import MOVED, SALT, SILICON, assign
from tests.test_csp import crystals as named

ALONE = Runner(n_jobs=1, progress=False)
OVERLAP = (SALT[0], np.array([[0, 0, 0], [0.05, 0, 0]]), SALT[2])
FLAT = (SALT[0], SALT[1], np.zeros((3, 3)))
BROKEN = (SALT[0], SALT[1] * np.nan, SALT[2])
UNKNOWN = (np.array([0, 118]), SALT[1], SALT[2])
KNOWN = Known(reference=named("reference", {"a": SALT, "b": SILICON}), train=named("train", {"t-1": SALT}))
CHECKS = EvaluationSettings(sections=["validity", "wasserstein", "uniqueness", "symmetry"])


def values(report: EvaluationReport) -> dict[str, object]:
    return {name: metric.value for name, metric in report.metrics().items()}


def large() -> tuple:
    """A rock salt cell of 512 atoms."""
    corners = np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij"), -1).reshape(-1, 3)
    return np.where(corners.sum(1) % 2, 17, 11), corners / 8, 8 * 2.82 * np.eye(3)


def test_copies_duplicates_and_rubbish_give_the_numbers_worked_out_by_hand():
    pytest.importorskip("smact")
    entries = {"0": SALT, "1": SALT, "2": SILICON, "3": OVERLAP, "4": FLAT, "5": BROKEN, "6": UNKNOWN, "7": large()}
    generated = named("generated", entries, {8: "no CIF", 9: "empty"})
    found = values(evaluate_generation(generated=generated, known=KNOWN, runner=ALONE, settings=CHECKS))
    # Of ten: the two salts, silicon and the large rock salt cell are sound in structure and composition.
    assert found["structure_valid"] == 0.4
    assert found["valid"] == 0.4
    # The second salt repeats the first; only silicon and the large cell (another structure) are not in training.
    report = evaluate_generation(generated=generated, known=KNOWN, runner=ALONE, settings=CHECKS)
    columns = report.section("uniqueness").per_crystal
    assert list(columns["unique"])[:3] == [True, False, True]
    assert list(columns["novel"])[:3] == [False, False, True]
    assert columns["train_match"][0] == "t-1"
    assert found["vun"] == 0.2
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["inputs"]["generated"]["count"] == 10
    assert [entry["reason"] for entry in content["inputs"]["generated"]["unreadable"]] == ["broken", "broken"]
    reasons = content["per_crystal"]["validity.structure_reason"]
    assert all(reasons[3:7])
    assert not any([*reasons[:3], reasons[7]])


def test_nothing_readable_is_a_report_of_zeros():
    generated = CrystalSet("rubbish", CrystalBatch.from_arrays([]), [], [], [SkippedRow(0, "a", "no CIF")])
    report = evaluate_generation(generated=generated, known=KNOWN, runner=ALONE, settings=CHECKS)
    assert values(report)["structure_valid"] == 0.0
    assert plain_data(report.to_dict())
    nothing = CrystalSet.of("nothing", CrystalBatch.from_arrays([]))
    with pytest.raises(DataError, match="at least one"):
        evaluate_generation(generated=nothing, known=KNOWN, runner=ALONE, settings=CHECKS)


def test_the_same_seed_gives_the_same_numbers_with_and_without_a_cache(tmp_path: Path):
    generated = named("generated", {"0": SALT, "1": SILICON, "2": MOVED})
    reports = [
        evaluate_generation(generated=generated, known=KNOWN, runner=runner, settings=CHECKS)
        for runner in (ALONE, *[Runner(n_jobs=2, progress=False, cache=ResultCache(tmp_path))] * 2)
    ]
    contents = [{**report.to_dict(), "seconds": None} for report in reports]
    assert contents[0] == contents[1] == contents[2]


def test_a_reconstruction_is_matched_and_judged_and_written(tmp_path: Path):
    targets = named("targets", {"mp-1": SALT, "mp-2": SILICON})
    predictions = CrystalBatch.from_arrays([SALT, MOVED])
    report = evaluate_reconstruction(
        targets=targets, predictions=predictions, runner=ALONE, settings=EvaluationSettings(seed=3)
    )
    assert [section.name for section in report.sections] == ["reconstruction", "validity"]
    found = values(report)
    assert (found["match_rate"], found["structure_valid"]) == (1.0, 1.0)
    paths = write_report(report, tmp_path / "deep" / "here", html=False)
    content = json.loads(paths[0].read_text(encoding="utf-8"))
    assert (content["format_version"], content["kind"], content["seed"]) == (1, "reconstruction", 3)
    assert content["per_crystal"]["id"] == ["mp-1", "mp-2"]
    assert len(content["per_crystal"]["reconstruction.rms"]) == 2
    assert set(content["metrics"]) == set(content["definitions"])
    assert content["versions"]["pymatgen"]
    for section in content["sections"]:
        for metric in section["metrics"].values():
            assert set(metric) == {"value", "definition", "source", "unit", "better", "count"}
    assert [path.name for path in paths[0].parent.iterdir()] == ["evaluation.json"]
    with pytest.raises(DataError, match="targets only"):
        replace(report, predictions=None)
    with pytest.raises(DataError, match=r"one for each of 2 targets.* got 1"):
        replace(report, predictions=predictions[:1])
    with pytest.raises(OutputError, match="output_dir"):
        write_report(report, paths[0] / "below-a-file", html=False)


def test_candidates_are_matched_and_judged():
    targets = named("targets", {"mp-1": SALT, "mp-2": SILICON})
    generated, candidates = assign(named("offers", {"mp-1_0": SALT, "mp-2_0": SALT, "mp-2_1": SILICON}), targets)
    report = evaluate_csp(
        targets=targets, generated=generated, candidates=candidates, runner=ALONE, settings=EvaluationSettings()
    )
    found = values(report)
    assert (found["match_rate@1"], found["match_rate@2"], found["structure_valid"]) == (0.5, 1.0, 1.0)
    assert report.targets is not None
    assert torch.equal(report.targets.atom_types, targets.crystals[[0, 1, 1]].atom_types)


def test_sections_are_chosen_by_name_and_what_cannot_be_done_is_said():
    generated = named("generated", {"0": SALT})
    settings = EvaluationSettings(sections=["speed", "stability", "coverage"], cutoffs=None)
    report = evaluate_generation(generated=generated, known=KNOWN, runner=ALONE, settings=settings)
    assert [section.name for section in report.sections] == [n for n in SECTIONS if n in settings.sections]
    assert all(section.skipped for section in report.sections)
    assert len(format_tables(report)) == 3
    with pytest.raises(ConfigError, match="sections: got 'beauty'"):
        EvaluationSettings(sections=["beauty"]).chosen("generation")


def test_numbers_are_shown_with_their_units():
    shown = {
        format_value(Metric(0.5, "", "", unit="share")): "50.00%",
        format_value(Metric(0.5, "", "", unit="Å")): "0.5000 Å",
        format_value(Metric(2.25, "", "", unit="°")): "2.2500°",
        format_value(Metric(7, "", "")): "7",
        format_value(Metric(None, "", "", unit="share")): "none",
    }
    assert all(got == expected for got, expected in shown.items())
    assert plain_data({"a": np.float32("nan"), 1: (np.int64(2), np.array([1.5]))}) == {"a": None, "1": [2, [1.5]]}
