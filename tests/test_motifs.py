"""Motifs: labels, transitions, dwell times and trees that are exact where the sequence is known."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch

from crystalvae.errors import CheckpointError, ConfigError, DataError
from crystalvae.sequence_module.motifs.agreement import adjusted_rand_index, raw_feature_motifs
from crystalvae.sequence_module.motifs.communities import motif_tree
from crystalvae.sequence_module.motifs.comparison import compare_groups
from crystalvae.sequence_module.motifs.fitting import choose_num_motifs, fit_motifs
from crystalvae.sequence_module.motifs.model import Method, MotifModel
from crystalvae.sequence_module.motifs.segmentation import (
    SegmentedTrajectory,
    fit_each,
    frame_values,
    segment_trajectories,
    window_values,
)
from crystalvae.sequence_module.motifs.statistics import motif_statistics, runs, stationary_distribution
from crystalvae.sequence_module.motifs.write import frame_table, motif_table, transition_table, write_motifs
from crystalvae.sequence_module.windows import FrameSet
from tests.sequences import swinging

METHODS = get_args(Method)
CENTRES = np.array([[4.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, -6.0]])


def path(*parts: tuple[int, int]) -> np.ndarray:
    """Labels given as (motif, frames)."""
    return np.concatenate([np.full(frames, motif) for motif, frames in parts])


PATHS = [path((0, 30), (1, 12), (0, 25), (2, 18)), path((2, 9), (0, 40), (1, 16)), path((1, 20), (0, 30))]
LENGTHS = [len(entry) for entry in PATHS]


def latents(paths: list[np.ndarray] = PATHS, *, spread: float = 0.3, seed: int = 0) -> np.ndarray:
    labels = np.concatenate(paths)
    return CENTRES[labels] + spread * np.random.default_rng(seed).normal(size=(len(labels), 3))


# ---- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_hand_made_sequences_are_labelled_exactly(method: Method, covariance: Any):
    values = latents()
    model = fit_motifs(values, LENGTHS, 3, method=method, covariance=covariance)
    labels, confidence = model.label(values, LENGTHS)
    # Numbered by use: 125 windows of motif 0, 48 of motif 1, 27 of motif 2.
    np.testing.assert_array_equal(labels, np.concatenate(PATHS))
    assert (confidence > 0.7).all()
    assert (confidence <= 1.0).all()
    np.testing.assert_allclose(model.centres, CENTRES, atol=0.25)


def test_a_window_between_two_centres_is_uncertain():
    model = fit_motifs(latents(), LENGTHS, 3, method="kmeans")
    between = 0.5 * (model.centres[0] + model.centres[1])
    _, confidence = model.label(np.stack((model.centres[0], between)), [2])
    np.testing.assert_allclose(confidence, [1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_labels_that_are_wrong_are_less_certain(method: Method):
    values, labels = latents(spread=1.8), np.concatenate(PATHS)
    found, confidence = fit_motifs(values, LENGTHS, 3, method=method).label(values, LENGTHS)
    wrong = found != labels
    assert 0 < wrong.mean() < 0.2
    assert confidence[wrong].mean() < confidence[~wrong].mean()


def test_motifs_that_remember_bridge_a_window_that_others_take_for_another():
    values = latents([path((0, 40), (1, 40))] * 3, spread=0.3)
    blurred = values.copy()
    blurred[20] = 0.45 * CENTRES[0] + 0.55 * CENTRES[1]  # one window, nearer to the other motif
    lengths = [80] * 3
    hidden, nearest = (fit_motifs(values, lengths, 2, method=method) for method in ("hmm", "kmeans"))
    one, other = hidden.label(blurred, lengths)[0], nearest.label(blurred, lengths)[0]
    assert one[19] == one[20] == one[21]
    assert other[19] != other[20]


def test_no_transition_is_invented_where_a_trajectory_ends():
    paths = [path((0, 30)), path((1, 30))] * 4
    model = fit_motifs(latents(paths), [30] * 8, 2, method="hmm")
    assert model.transitions is not None
    np.testing.assert_allclose(model.transitions, np.eye(2), atol=1e-6)
    joined = fit_motifs(latents(paths), [240], 2, method="hmm")
    assert joined.transitions is not None
    assert joined.transitions[0, 1] > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_trajectories_labelled_together_are_labelled_as_alone(method: Method):
    values = latents(spread=1.5)
    model = fit_motifs(values, LENGTHS, 3, method=method)
    together = model.label(values, LENGTHS)
    bounds = np.cumsum([0, *LENGTHS])
    for start, stop in pairwise(bounds):
        alone = model.label(values[start:stop], [int(stop - start)])
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one, other[start:stop], atol=1e-8)


def test_the_same_seed_gives_the_same_motifs_whatever_the_units():
    values = latents(spread=1.5)
    one, again = (fit_motifs(values, LENGTHS, 3, seed=4) for _ in range(2))
    assert one.to_dict() == again.to_dict()
    larger = fit_motifs(1000.0 * values + 7.0, LENGTHS, 3, seed=4)
    np.testing.assert_array_equal(larger.label(1000.0 * values + 7.0, LENGTHS)[0], one.label(values, LENGTHS)[0])


@pytest.mark.parametrize("method", METHODS)
def test_motifs_are_kept_as_plain_data(method: Method, tmp_path: Path):
    values = latents(spread=1.0)
    model = fit_motifs(values, LENGTHS, 3, method=method)
    model.save(tmp_path / "motifs.json")
    again = MotifModel.load(tmp_path / "motifs.json")
    for one, other in zip(again.label(values, LENGTHS), model.label(values, LENGTHS), strict=True):
        np.testing.assert_array_equal(one, other)


def test_files_that_hold_no_motifs_are_refused(tmp_path: Path):
    content = fit_motifs(latents(), LENGTHS, 2).to_dict()
    odd: list[Any] = [
        {**content, "format_version": 9},
        {**content, "method": "dbscan"},
        {**content, "means": [[0.0]]},
        {**content, "weights": None},
        {**content, "transitions": [[float("nan")] * 2] * 2},
        {key: value for key, value in content.items() if key != "scale"},
        [1, 2],
    ]
    for number, entry in enumerate(odd):
        place = tmp_path / f"{number}.json"
        place.write_text(json.dumps(entry), encoding="utf-8")
        with pytest.raises(CheckpointError, match="motifs"):
            MotifModel.load(place)
    with pytest.raises(CheckpointError, match="no motifs to read"):
        MotifModel.load(tmp_path / "nothing.json")


def test_latents_that_cannot_be_sorted_are_refused():
    values = latents()
    broken = values.copy()
    broken[3, 1] = np.nan
    with pytest.raises(DataError, match="window 3 is NaN"):
        fit_motifs(broken, LENGTHS, 2)
    with pytest.raises(DataError, match="there are only 5 different windows, of 5"):
        fit_motifs(values[:5], [5], 6)
    with pytest.raises(DataError, match="there are only 1 different windows, of 40"):
        fit_motifs(np.ones((40, 3)), [40], 2)
    with pytest.raises(DataError, match="all 40 windows are alike"):
        fit_motifs(np.ones((40, 3)), [40], 1)
    with pytest.raises(DataError, match="add up to 200 windows"):
        fit_motifs(values, [3], 2)
    with pytest.raises(DataError, match="got 2 dimensions; these motifs have 3"):
        fit_motifs(values, LENGTHS, 2).label(values[:, :2], LENGTHS)


@pytest.mark.usefixtures("without_type_checks")
def test_options_that_cannot_be_are_named():
    for options, told in (
        ({"method": "dbscan"}, "method: got 'dbscan'"),
        ({"covariance": "tied"}, "covariance: got 'tied'"),
        ({"restarts": 0}, "restarts: got 0"),
    ):
        with pytest.raises(ConfigError, match=told):
            fit_motifs(latents(), LENGTHS, 2, **options)
    with pytest.raises(ConfigError, match="k-means has no likelihood"):
        choose_num_motifs(latents(), LENGTHS, [2], method="kmeans", criterion="bic")
    with pytest.raises(ConfigError, match="criterion: got 'aic'"):
        choose_num_motifs(latents(), LENGTHS, [2], criterion="aic")
    with pytest.raises(ConfigError, match="expected numbers from 2 to 4, as there are 5 different"):
        choose_num_motifs(latents()[:5], [5], [1, 5, 9], criterion="silhouette")


# ---- how many --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "criterion"), [("hmm", "bic"), ("gmm", "bic"), ("hmm", "silhouette"), ("kmeans", "silhouette")]
)
def test_the_number_of_motifs_is_found(method: Method, criterion: Any):
    best, scores = choose_num_motifs(latents(), LENGTHS, range(1, 6), method=method, criterion=criterion)
    assert best == 3
    assert list(scores) == ([1, 2, 3, 4, 5] if criterion == "bic" else [2, 3, 4, 5])


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_the_criterion_is_that_of_the_libraries(covariance: Any):
    from hmmlearn.hmm import GaussianHMM
    from sklearn.mixture import GaussianMixture

    values = latents(spread=1.0)
    mixture = fit_motifs(values, LENGTHS, 2, method="gmm", covariance=covariance)
    scaled = (values - mixture.origin) / mixture.scale
    theirs = GaussianMixture(2, covariance_type=covariance, reg_covar=1e-3, random_state=0).fit(scaled)
    assert mixture.bic(values, LENGTHS, covariance=covariance) == pytest.approx(theirs.bic(scaled), rel=1e-6)
    markov = fit_motifs(values, LENGTHS, 2, method="hmm", covariance=covariance)
    model = GaussianHMM(2, covariance_type=covariance)
    assert markov.covariances is not None
    model.n_features, model.means_ = 3, markov.means
    model.startprob_, model.transmat_ = markov.weights, markov.transitions
    model.covars_ = markov.covariances if covariance == "full" else np.stack([np.diag(c) for c in markov.covariances])
    assert markov.bic(values, LENGTHS, covariance=covariance) == pytest.approx(model.bic(scaled, LENGTHS), rel=1e-9)


# ---- windows and frames ----------------------------------------------------------------------------------------------


def test_the_label_of_a_window_belongs_to_the_frame_in_its_middle():
    assert frame_values(np.array([5, 6, 7]), 4).tolist() == [5, 5, 5, 6, 7, 7]
    assert frame_values(np.array([5, 6, 7]), 5).tolist() == [5, 5, 5, 6, 7, 7, 7]
    assert frame_values(np.array([5, 6, 7]), 1).tolist() == [5, 6, 7]
    for window in (1, 2, 5, 8):
        labels = np.arange(20)
        assert window_values(frame_values(labels, window), window).tolist() == labels.tolist()
    for frames, window in (([1, 2], 3), ([], 1)):
        with pytest.raises(DataError, match="shorter than"):
            window_values(np.array(frames), window)
    with pytest.raises(DataError, match="no windows"):
        frame_values(np.zeros(0, dtype=int), 3)


def test_a_change_is_put_where_it_is():
    """Windows told apart by most of their frames: the change is found at the frame where it happens."""
    regime = path((0, 40), (1, 40))
    for window in (5, 8):
        share = np.convolve(regime, np.ones(window) / window, mode="valid")
        labels = frame_values((share > 0.5).astype(int), window)
        assert np.flatnonzero(np.diff(labels)).tolist() in ([39], [40])


def test_trajectories_are_segmented_one_by_one(caplog: pytest.LogCaptureFixture):
    values, counts = latents(), [LENGTHS[0], 0, *LENGTHS[1:]]
    ids = ["a", "brief", "b", "c"]
    model = fit_motifs(values, counts, 3)
    with caplog.at_level(logging.WARNING):
        segmented = segment_trajectories(model, values, counts, ids, window=4)
    assert "not segmented: brief" in caplog.text
    assert [entry.id for entry in segmented] == ["a", "b", "c"]
    for entry, labels in zip(segmented, PATHS, strict=True):
        np.testing.assert_array_equal(entry.window_motifs, labels)
        assert len(entry.frame_motifs) == len(entry.frame_confidence) == len(labels) + 3
    models = fit_each(values, counts, ids, 2, method="kmeans")
    assert sorted(models) == ["a", "b", "c"]
    each = segment_trajectories(models, values, counts, ids, window=4)
    np.testing.assert_array_equal(each[2].window_motifs, models["c"].label(values[-LENGTHS[2] :], [LENGTHS[2]])[0])
    with pytest.raises(DataError, match="trajectory b: num_motifs: got 3"):
        fit_each(values[:8], [6, 2], ["a", "b"], 3, method="kmeans")


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_usage_transitions_and_dwell_times_are_exact():
    found = motif_statistics([path((0, 3), (1, 2), (0, 4)), path((2, 5)), path((1, 1), (0, 1))], 4)
    assert found.frames == 16
    assert found.usage.tolist() == [8 / 16, 3 / 16, 5 / 16, 0.0]
    assert found.counts.tolist() == [[5, 1, 0, 0], [2, 1, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(found.transitions, [[5 / 6, 1 / 6, 0, 0], [2 / 3, 1 / 3, 0, 0], [0, 0, 1, 0], [0] * 4])
    np.testing.assert_allclose(found.switches, [[0, 1, 0, 0], [1, 0, 0, 0], [0] * 4, [0] * 4])
    first, second, third, unused = found.dwell
    assert (first.runs, first.complete, first.mean, first.median, first.longest) == (3, 0, 8 / 3, 3.0, 4)
    assert first.mean_complete is None
    assert (second.runs, second.complete, second.mean, second.mean_complete) == (2, 1, 1.5, 2.0)
    assert (third.runs, third.complete, third.mean, third.longest) == (1, 0, 5.0, 5)
    assert vars(unused) == dict.fromkeys(vars(unused), None) | {"runs": 0, "complete": 0}


def test_runs_of_one_sequence():
    labels, starts, lengths = runs(path((2, 3), (0, 1), (2, 2)))
    assert (labels.tolist(), starts.tolist(), lengths.tolist()) == ([2, 0, 2], [0, 3, 4], [3, 1, 2])
    assert [len(part) for part in runs(np.zeros(0, dtype=int))] == [0, 0, 0]


def test_the_stationary_distribution_is_the_left_eigenvector():
    chances = np.random.default_rng(0).dirichlet(np.ones(5), size=5)
    found = stationary_distribution(chances, np.full(5, 0.2))
    np.testing.assert_allclose(found @ chances, found, atol=1e-12)
    assert found.sum() == pytest.approx(1.0)


def test_the_stationary_distribution_of_chains_that_are_no_good_ones():
    turn = np.roll(np.eye(3), 1, axis=1)
    np.testing.assert_allclose(stationary_distribution(turn, np.array([1.0, 0.0, 0.0])), np.full(3, 1 / 3), atol=1e-12)
    apart = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(stationary_distribution(apart, np.array([0.6, 0.2, 0.2])), [0.4, 0.4, 0.2], atol=1e-12)
    drained = np.array([[0.9, 0.1], [0.0, 1.0]])
    np.testing.assert_allclose(stationary_distribution(drained, np.array([0.5, 0.5])), [0.0, 1.0], atol=1e-12)


def test_labels_that_are_no_motifs_are_refused():
    with pytest.raises(DataError, match="got labels from 0 to 3; expected 0 to 2"):
        motif_statistics([np.array([0, 3])], 3)
    with pytest.raises(DataError, match="no frames"):
        motif_statistics([np.zeros(0, dtype=int)], 3)


# ---- tree ------------------------------------------------------------------------------------------------------------


def test_the_tree_of_three_motifs_by_hand():
    usage = np.array([0.5, 0.3, 0.2])
    counts = np.array([[50, 8, 2], [7, 20, 3], [3, 2, 10]])
    tree = motif_tree(usage, counts)
    # Switches: 0 → 1 0.8, 0 → 2 0.2; 1 → 0 0.7, 1 → 2 0.3; 2 → 0 0.6, 2 → 1 0.4.
    # Costs: (0, 1) 0.8 / 1.5, (0, 2) 0.7 / 0.8, (1, 2) 0.5 / 0.7: (0, 1) is the least.
    first, second = tree.merges
    assert (first.first, first.second, first.usage) == (0, 1, pytest.approx(0.8))
    assert first.cost == pytest.approx(0.8 / 1.5)
    # Of the two nodes left each leads to nothing but the other.
    assert (second.first, second.second, second.cost, second.usage) == (3, 2, pytest.approx(0.5), pytest.approx(1.0))
    assert tree.communities(1).tolist() == [0, 0, 0]
    assert tree.communities(2).tolist() == [0, 0, 1]
    assert tree.communities(3).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="communities: got 4; there are only 3 motifs"):
        tree.communities(4)


def test_motifs_that_turn_in_circles_are_communities():
    rng = np.random.default_rng(0)
    sequence = [0]
    for _ in range(4000):
        stay = (sequence[-1] // 2) * 2
        other = stay + 1 - sequence[-1] % 2
        sequence.append(int(rng.integers(6)) if rng.random() < 0.02 else other)
    found = motif_statistics([np.array(sequence)], 6)
    communities = motif_tree(found.usage, found.counts).communities(3)
    assert [communities[i] == communities[i + 1] for i in (0, 2, 4)] == [True] * 3
    assert sorted(set(communities.tolist())) == [0, 1, 2]


def test_what_never_meets_stays_apart():
    found = motif_statistics([path((0, 5), (1, 5), (0, 5)), path((2, 9), (3, 2), (2, 9))], 5)
    tree = motif_tree(found.usage, found.counts)
    assert [merge.cost is None for merge in tree.merges] == [False, False, True, True]
    assert tree.communities().tolist() == [1, 1, 0, 0, 2]
    one = motif_tree(np.ones(1), np.zeros((1, 1), dtype=int))
    assert (one.merges, one.communities().tolist()) == ((), [0])


# ---- groups ----------------------------------------------------------------------------------------------------------


def test_groups_that_differ_are_told_apart():
    rng = np.random.default_rng(0)

    def recording(share: float) -> np.ndarray:
        return np.repeat((rng.random(60) < share).astype(int), 5)

    motifs = {f"{name}{i}": recording(share) for name, share in (("a", 0.2), ("b", 0.8), ("c", 0.2)) for i in range(8)}
    groups = {name: [f"{name}{i}" for i in range(8)] for name in "abc"}
    found = compare_groups(motifs, {"a": groups["a"], "b": groups["b"]}, 3)
    first, _, unused = found.contrasts
    assert first.p_value is not None
    assert first.p_value < 1e-3
    assert first.q_value == pytest.approx(first.p_value)  # both motifs differ alike
    assert (unused.p_value, unused.q_value, unused.mean) == (None, None, {"a": 0.0, "b": 0.0})
    expected = np.mean([(motifs[f"a{i}"] == 0).mean() for i in range(8)])
    assert first.mean["a"] == pytest.approx(expected)
    three = compare_groups(motifs, groups, 2)
    distances = {tuple(entry["groups"]): entry for entry in three.distances}
    assert distances["a", "b"]["usage"] > 0.5 > 0.15 > distances["a", "c"]["usage"]
    assert three.contrasts[0].p_value is not None
    assert three.contrasts[0].p_value < 1e-3
    assert json.loads(json.dumps(three.to_dict(), allow_nan=False))["groups"] == groups


def test_a_group_of_one_has_no_test():
    motifs = {"a": path((0, 5), (1, 5)), "b": path((0, 9), (1, 1))}
    found = compare_groups(motifs, {"one": ["a"], "other": ["b"]}, 2)
    assert [entry.p_value for entry in found.contrasts] == [None, None]
    assert found.contrasts[0].std == {"one": None, "other": None}
    assert found.distances[0]["usage"] == pytest.approx(0.4)


def test_groups_that_cannot_be_are_refused():
    motifs = {"a": path((0, 5)), "b": path((0, 9))}
    for groups, told in (
        ({"one": ["a"]}, "at least two"),
        ({"one": ["a"], "other": []}, "at least two"),
        ({"one": ["a"], "other": ["x"]}, "no trajectory x; there are a, b"),
        ({"one": ["a"], "other": ["a", "b"]}, "a stands in them more than once"),
    ):
        with pytest.raises(ConfigError, match=told):
            compare_groups(motifs, groups, 1)


def test_motifs_that_differ_only_in_how_much_they_move_are_found():
    # Two motifs around the same place, one with three times the spread of the other: k-means sees no two clusters.
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 0, 1, 0, 1], 200)
    values = rng.normal(size=(1200, 3)) * np.where(truth, 1.0, 3.0)[:, None]
    found = fit_motifs(values, [600, 600], 2).label(values, [600, 600])[0]
    assert adjusted_rand_index([found], [truth]) > 0.95
    reference = fit_motifs(values, [600, 600], 2, method="kmeans").label(values, [600, 600])[0]
    assert adjusted_rand_index([reference], [truth]) < 0.2


def test_latents_that_fill_fewer_dimensions_than_they_have_are_no_error():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=(300, 1)) + np.repeat([0.0, 8.0], 150)[:, None], 4, axis=1)
    found = fit_motifs(values, [300], 2).label(values, [300])[0]
    assert adjusted_rand_index([found], [np.repeat([0, 1], 150)]) == 1.0


# ---- agreement -------------------------------------------------------------------------------------------------------


def test_agreement_knows_no_names_and_is_none_by_chance():
    renamed = [2 - entry for entry in PATHS]
    assert adjusted_rand_index(renamed, PATHS) == 1.0
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(entry) for entry in PATHS]
    assert abs(adjusted_rand_index(shuffled, PATHS)) < 0.1
    with pytest.raises(DataError, match="expected the same of both"):
        adjusted_rand_index(PATHS, PATHS[:2])


def test_the_reference_sorts_single_frames():
    frames = FrameSet.of(list(torch.from_numpy(latents()).split(list(LENGTHS))))
    found = raw_feature_motifs(frames, frames, 3)
    assert adjusted_rand_index(found, PATHS) == 1.0


# ---- files -----------------------------------------------------------------------------------------------------------


def test_all_of_it_is_written(tmp_path: Path):
    import networkx as nx

    trajectories = {name: swinging(name, frames=23) for name in ("a", "b")}
    labels = path((0, 8), (1, 6), (0, 6))
    segmented = [SegmentedTrajectory(name, 4, labels, np.full(20, 0.75)) for name in trajectories]
    frames = [entry.frame_motifs for entry in segmented]
    found, each = motif_statistics(frames, 2), {e.id: motif_statistics([e.frame_motifs], 2) for e in segmented}
    tree = motif_tree(found.usage, found.counts)
    communities = tree.communities(2)
    paths = write_motifs(tmp_path, segmented, trajectories, found, each, tree, communities, step=2.0)
    assert sorted(entry.name for entry in paths) == sorted(entry.name for entry in tmp_path.iterdir())
    table = pd.read_csv(tmp_path / "frames.csv")
    assert list(table.columns[:6]) == ["trajectory", "frame", "time", "motif", "confidence", "community"]
    assert table["motif"].tolist() == [*frames[0], *frames[1]]
    assert table["regime"].tolist() == trajectories["a"].properties["regime"].tolist() * 2
    assert table["time"].tolist() == [2.0 * i for i in range(23)] * 2
    content = json.loads((tmp_path / "motifs.json").read_text(encoding="utf-8"))
    assert content["overall"]["counts"] == found.counts.tolist()
    assert content["trajectories"]["a"]["usage"] == each["a"].usage.tolist()
    graph = nx.read_graphml(tmp_path / "motifs.graphml", node_type=int)
    assert graph.nodes[1]["usage"] == pytest.approx(found.usage[1])
    assert graph.edges[0, 1]["count"] == found.counts[0, 1] == 2
    assert motif_table(found, step=2.0)["mean_dwell_fs"][1] == 12.0
    assert transition_table(found)["count"].sum() == 44
    with pytest.raises(DataError, match="trajectory a: has 10 frames; its motifs are of 23"):
        frame_table(segmented, {**trajectories, "a": swinging("a", frames=10)})
