"""Structure prediction: which candidate is for which target, and numbers @k worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import SkippedRow
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.matching.candidates import assign
from crystalvae.evaluation.matching.section import csp_section
from crystalvae.evaluation.parallel.runner import Runner

ALONE = Runner(n_jobs=1, progress=False)
SALT = (np.array([11, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), 3.4 * np.eye(3))
SILICON = (
    np.array([14, 14]),
    np.array([[0, 0, 0], [0.25, 0.25, 0.25]]),
    2.715 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]),
)
MOVED = (SILICON[0], np.array([[0, 0, 0], [0.27, 0.25, 0.25]]), SILICON[2])
WRONG = (np.array([14, 14]), np.array([[0, 0, 0], [0.5, 0.5, 0.0]]), np.diag([2.2, 2.2, 9.0]))


def crystals(name: str, entries: dict[str, tuple], unreadable: dict[int, str] | None = None) -> CrystalSet:
    bad = unreadable or {}
    free = [place for place in range(len(entries) + len(bad)) if place not in bad]
    broken = [SkippedRow(place, crystal_id, "broken") for place, crystal_id in bad.items()]
    return CrystalSet(name, CrystalBatch.from_arrays(entries.values()), list(entries), free, broken)


TARGETS = crystals("targets", {"mp-1": SALT, "mp-2": SILICON, "mp-3": SILICON})


def test_more_candidates_find_more_and_the_best_of_them_counts():
    offered = crystals(
        "candidates",
        {"mp-1_0": SALT, "mp-1_1": SALT, "mp-2_0": WRONG, "mp-2_1": MOVED, "mp-2_2": SILICON, "mp-9_0": SALT},
        {4: "mp-2_7", 7: "other"},
    )
    kept, candidates = assign(offered, TARGETS)
    assert kept.ids == ["mp-1_0", "mp-1_1", "mp-2_0", "mp-2_1", "mp-2_2"]
    assert candidates.owner.tolist() == [0, 0, 1, 1, 1]
    assert candidates.rank.tolist() == [0, 1, 0, 1, 2]
    assert [entry.id for entry in kept.unreadable] == ["mp-2_7"]
    section = csp_section(
        targets=TARGETS.crystals, generated=kept.crystals, candidates=candidates, runner=ALONE, ks=[1, 2, 3],
        unreadable=len(kept.unreadable), target_ids=TARGETS.ids,
    )  # fmt: skip
    values = {name: metric.value for name, metric in section.metrics.items()}
    assert [values[f"match_rate@{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    moved = section.per_crystal["rms"][3]
    assert isinstance(moved, float)
    assert moved > 1e-3
    assert values["rmse@1"] == pytest.approx(0.0, abs=1e-6)
    assert values["rmse@2"] == pytest.approx(moved / 2, abs=1e-6)
    assert values["rmse@3"] == pytest.approx(0.0, abs=1e-6)
    assert (values["targets_without_candidates"], values["candidates"], values["failed"]) == (1, 6, 1)
    assert section.per_crystal["target"] == ["mp-1", "mp-1", "mp-2", "mp-2", "mp-2"]
    assert section.distributions["target_best_rms"] == [pytest.approx(0, abs=1e-6)] * 2 + [None]


def test_candidates_of_one_id_come_in_order_and_beyond_the_limit_they_are_left_out():
    offered = CrystalSet(
        "same ids", CrystalBatch.from_arrays([WRONG, SILICON, SALT]), ["mp-2", "mp-2", "mp-1"], [0, 1, 2]
    )
    kept, candidates = assign(offered, TARGETS, num_candidates=1)
    assert kept.ids == ["mp-2", "mp-1"]
    assert candidates.owner.tolist() == [1, 0]
    assert candidates.rank.tolist() == [0, 0]
    # An unreadable first candidate keeps its rank: the second does not move up.
    late = CrystalSet("late", CrystalBatch.from_arrays([SILICON]), ["mp-2_1"], [1], [SkippedRow(0, "mp-2_0", "broken")])
    kept, candidates = assign(late, TARGETS)
    assert candidates.rank.tolist() == [1]
    section = csp_section(targets=TARGETS.crystals, generated=kept.crystals, candidates=candidates, runner=ALONE)
    assert section.metrics["match_rate@1"].value == 0.0
    assert section.metrics["match_rate@2"].value == pytest.approx(1 / 3)


def test_candidates_by_order():
    entries = {"a": SALT, "b": SALT, "c": SILICON, "d": SILICON, "e": MOVED}
    offered = crystals("ordered", entries, {3: "x"})
    kept, candidates = assign(offered, TARGETS, match_by="order", num_candidates=2)
    assert kept.ids == list("abcde")
    assert candidates.owner.tolist() == [0, 0, 1, 2, 2]
    assert candidates.rank.tolist() == [0, 1, 0, 0, 1]
    with pytest.raises(DataError, match="expected 3 targets x 4 = 12"):
        assign(offered, TARGETS, match_by="order", num_candidates=4)


def test_impossible_requests_are_refused():
    with pytest.raises(DataError, match="no id names a target; got row-1"):
        assign(crystals("strangers", {"row-1": SALT}), TARGETS)
    with pytest.raises(ConfigError, match="match_by"):
        assign(TARGETS, TARGETS, match_by="luck")
    kept, candidates = assign(TARGETS, TARGETS)
    with pytest.raises(ConfigError, match="ks="):
        csp_section(targets=TARGETS.crystals, generated=kept.crystals, candidates=candidates, runner=ALONE, ks=[0])


def test_targets_without_a_single_candidate_are_no_match():
    empty = CrystalSet("all broken", CrystalBatch.from_arrays([]), [], [], [SkippedRow(0, "mp-1", "broken")])
    kept, candidates = assign(empty, TARGETS)
    section = csp_section(
        targets=TARGETS.crystals, generated=kept.crystals, candidates=candidates, runner=ALONE, unreadable=1
    )
    assert section.metrics["match_rate@1"].value == 0.0
    assert section.metrics["rmse@1"].value is None
    assert section.metrics["failed"].value == 1
