"""Reconstruction measures: against pymatgen's own matcher, hand-made errors, and whatever the number of processes."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.cif import parse_cif
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.matching import pairs as matching
from crystalvae.evaluation.matching.candidates import Candidates
from crystalvae.evaluation.matching.match_rate import Gates, match_metrics
from crystalvae.evaluation.matching.section import reconstruction_metrics
from crystalvae.evaluation.parallel.runner import Runner

ALONE = Runner(n_jobs=1, progress=False)

PEROVSKITE = (
    np.array([56, 22, 8, 8, 8]),
    np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]),
    4.0 * np.eye(3),
)
SILICON = (
    np.array([14, 14]),
    np.array([[0, 0, 0], [0.25, 0.25, 0.25]]),
    2.715 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]),
)


def real_crystals(mp20_dir: Path, count: int) -> CrystalBatch:
    """Crystals from the head of MP-20's validation split, in the cells of the file."""
    cifs = pd.read_csv(mp20_dir / "val.csv", nrows=count).cif
    return CrystalBatch.from_arrays((c.numbers, c.frac_coords, c.lattice) for c in map(parse_cif, cifs))


def batch(*crystals: tuple[np.ndarray, np.ndarray, np.ndarray]) -> CrystalBatch:
    return CrystalBatch.from_arrays(crystals)


def perturbed(crystals: CrystalBatch, size: float, seed: int = 0) -> CrystalBatch:
    generator = torch.Generator().manual_seed(seed)
    shift = size * torch.randn(crystals.frac_coords.shape, generator=generator)
    strain = torch.eye(3) + size * torch.randn(len(crystals), 3, 3, generator=generator)
    return crystals.replace(frac_coords=crystals.frac_coords + shift, lattices=crystals.lattices @ strain)


def test_a_crystal_matches_itself_exactly():
    report = reconstruction_metrics(batch(PEROVSKITE, SILICON), batch(PEROVSKITE, SILICON), runner=ALONE)
    assert (report.match_rate, report.match_rate_strict, report.element_accuracy) == (1.0, 1.0, 1.0)
    assert report.rmse == pytest.approx(0.0, abs=1e-6)
    assert (report.length_mae, report.angle_mae, report.coordinate_rms, report.failed) == (0.0, 0.0, 0.0, 0)


def test_results_are_those_of_pymatgen_called_pair_by_pair(mp20_dir: Path):
    targets = real_crystals(mp20_dir, 20)
    sizes = (0.003, 0.03, 0.08)
    expected = []
    for size in sizes:
        predictions = perturbed(targets, size)
        double = [
            c.replace(frac_coords=c.frac_coords.double(), lattices=c.lattices.double()) for c in (targets, predictions)
        ]
        answers = [
            [matcher.get_rms_dist(b, a) for a, b in zip(*(c.to_structure() for c in double), strict=True)]
            for matcher in (StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10), StructureMatcher())
        ]
        expected = [[None if answer is None else answer[0] for answer in column] for column in answers]
        report = reconstruction_metrics(targets, predictions, runner=ALONE)
        for got, want in zip(
            ([pair.rms for pair in report.pairs], [pair.rms_strict for pair in report.pairs]), expected, strict=True
        ):
            assert [value is None for value in got] == [value is None for value in want]
            np.testing.assert_allclose(
                [value for value in got if value is not None], [value for value in want if value is not None], atol=1e-9
            )
        matches = [value for value in expected[0] if value is not None]
        assert report.match_rate == len(matches) / len(targets)
        assert report.rmse == pytest.approx(np.mean(matches), abs=1e-9)
    assert report.match_rate_strict < report.match_rate or report.match_rate < 1.0


def test_results_do_not_depend_on_the_number_of_processes():
    targets = CrystalBatch.cat([batch(PEROVSKITE, SILICON)] * 20)
    predictions = perturbed(targets, 0.02)
    alone = reconstruction_metrics(targets, predictions, runner=ALONE)
    assert reconstruction_metrics(targets, predictions, runner=Runner(n_jobs=2, progress=False)) == alone
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = reconstruction_metrics(targets[order], predictions[order], runner=ALONE)
    assert list(shuffled.pairs) == [alone.pairs[i] for i in order.tolist()]


def test_another_composition_is_no_match_and_takes_no_time():
    swapped = (np.array([56, 22, 8, 8, 16]), *PEROVSKITE[1:])
    report = reconstruction_metrics(batch(PEROVSKITE), batch(swapped), runner=ALONE)
    assert report.match_rate == 0.0
    assert math.isnan(report.rmse)
    assert report.failed == 0
    assert report.element_accuracy == pytest.approx(4 / 5)
    targets, others = (CrystalBatch.cat([batch(entry)] * 1000) for entry in (PEROVSKITE, swapped))
    start = time.perf_counter()
    reconstruction_metrics(targets, others, runner=ALONE)
    assert time.perf_counter() - start < 2.0


def test_the_denominator_is_all_crystals_and_worst_come_first():
    broken = (SILICON[0], SILICON[1] * math.nan, SILICON[2])
    other = (np.array([14, 32]), *SILICON[1:])
    targets = batch(PEROVSKITE, SILICON, SILICON, SILICON)
    predictions = CrystalBatch.cat([batch(PEROVSKITE), batch(broken), batch(other), perturbed(batch(SILICON), 0.01)])
    report = reconstruction_metrics(targets, predictions, runner=ALONE)
    assert report.match_rate == 0.5
    assert (report.failed, report.finite, report.crystals) == (1, 3, 4)
    assert report.worst() == [1, 2, 3, 0]
    assert math.isfinite(report.length_mae)
    assert math.isfinite(report.coordinate_rms)


def test_what_raises_inside_the_matcher_counts_as_no_match(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("no such\ncell")

    monkeypatch.setattr(StructureMatcher, "get_rms_dist", broken)
    report = reconstruction_metrics(batch(PEROVSKITE), batch(PEROVSKITE), runner=ALONE)
    assert (report.match_rate, report.failed) == (0.0, 1)
    assert report.pairs[0].failure == "RuntimeError: no such cell"


def test_a_pair_that_takes_too_long_counts_as_failed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(StructureMatcher, "get_rms_dist", lambda *_: time.sleep(30))
    report = reconstruction_metrics(batch(SILICON, PEROVSKITE), batch(SILICON, PEROVSKITE), runner=ALONE, timeout_s=0.1)
    assert report.failed == 2
    assert report.pairs[0].failure == "no answer within 0.1 s"


def test_lattice_and_coordinate_errors_are_in_their_units():
    longer = (PEROVSKITE[0], PEROVSKITE[1] + [0.01, 0, 0], 4.3 * np.eye(3))
    report = reconstruction_metrics(batch(PEROVSKITE), batch(longer), runner=ALONE)
    assert report.length_mae == pytest.approx(0.3, abs=1e-6)
    assert report.angle_mae == pytest.approx(0.0, abs=1e-6)
    assert report.coordinate_rms == pytest.approx(0.04, abs=1e-6)
    assert report.rmse == pytest.approx(0.0, abs=1e-5)  # the matcher takes out shift and scale
    tilted = np.array([[4.0, 0, 0], [4 * math.sin(math.radians(3)), 4 * math.cos(math.radians(3)), 0], [0, 0, 4.0]])
    report = reconstruction_metrics(batch(PEROVSKITE), batch((*PEROVSKITE[:2], tilted)), runner=ALONE)
    assert report.angle_mae == pytest.approx(1.0, abs=1e-5)


def test_neighbouring_images_count_as_near():
    near = (SILICON[0], SILICON[1] + [[-0.001, 0, 0], [0, 0, 0]], SILICON[2])
    report = reconstruction_metrics(batch(SILICON), batch(near), runner=ALONE)
    assert report.coordinate_rms < 0.01


def test_impossible_arguments_are_refused():
    with pytest.raises(DataError, match="atom counts"):
        reconstruction_metrics(batch(PEROVSKITE), batch(SILICON), runner=ALONE)
    with pytest.raises(DataError, match="at least one"):
        reconstruction_metrics(batch(), batch(), runner=ALONE)
    with pytest.raises(ConfigError, match="n_jobs=0"):
        Runner(n_jobs=0)
    with pytest.raises(ConfigError, match="timeout_s=-1"):
        reconstruction_metrics(batch(SILICON), batch(SILICON), runner=ALONE, timeout_s=-1)


def test_gates_ask_for_validity_as_the_published_codes_do():
    """NaCl is charge neutral, Na2Cl (here) is not: SMACT calls it invalid, though it comes back as it was."""
    salt = (np.array([11, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), 3.4 * np.eye(3))
    odd = (np.array([11, 11, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0.5]]), 4.4 * np.eye(3))
    crushed = (salt[0], np.array([[0, 0, 0], [0.02, 0.02, 0.02]]), salt[2])
    report = reconstruction_metrics(batch(salt, odd, salt), batch(salt, odd, salt), runner=ALONE)
    assert (report.match_rate, report.match_rate_gated, report.match_rate_gated_prediction) == (1.0, 2 / 3, 2 / 3)
    # A target that is invalid only counts against the gate that asks for both.
    gates = Gates(target=np.array([False, True]), prediction=np.array([True, False]))
    pairs = [matching.PairMatch(rms=0.1, rms_strict=0.1), matching.PairMatch(rms=0.3)]
    numbers = match_metrics(pairs, Candidates(np.arange(2), np.zeros(2, int), 2), gates, k=1)
    values = {name: metric.value for name, metric in numbers.items()}
    assert values["match_rate"] == 1.0
    assert values["match_rate_strict"] == values["match_rate_gated_prediction"] == 0.5
    assert (values["match_rate_gated"], values["rmse_gated"]) == (0.0, None)
    assert values["rmse"] == pytest.approx(0.2)
    report = reconstruction_metrics(batch(salt), batch(crushed), runner=ALONE)
    assert report.match_rate_gated == 0.0


def test_a_section_holds_the_report_and_one_value_a_crystal():
    other = (np.array([14, 32]), *SILICON[1:])
    report = reconstruction_metrics(batch(SILICON, SILICON), batch(other, SILICON), runner=ALONE)
    section = report.section()
    assert section.metrics is report.metrics
    assert section.settings["tolerances"] == {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}
    assert section.per_crystal["rms"] == [None, pytest.approx(0.0, abs=1e-6)]
    assert {len(column) for column in section.per_crystal.values()} == {2}
    assert np.array(section.distributions["target_lengths"]).shape == (2, 3)
    assert all(metric.definition and metric.source for metric in section.metrics.values())
    with pytest.raises(AttributeError, match="match_rate"):
        report.accuracy  # noqa: B018
