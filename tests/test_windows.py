"""Windows never span two trajectories; parts of the data share no window; gathering equals slicing."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crystalvae.errors import ConfigError, DataError
from crystalvae.sequence_module.windows import FrameSet, Segment, WindowLoader, split_segments, window_starts

LENGTHS = [40, 9, 55, 12, 70, 33, 12]


def numbered(lengths: list[int]) -> FrameSet:
    """Frames of which each holds its trajectory's number, and its own."""
    parts = [(torch.full((n,), float(i)), torch.arange(float(n))) for i, n in enumerate(lengths)]
    return FrameSet.of([torch.stack(part, 1) for part in parts])


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(1, 6), st.integers(1, 4))
def test_windows_are_all_slices_of_single_trajectories(lengths: list[int], length: int, stride: int):
    frames = numbered(lengths)
    starts = frames.starts(length, stride=stride)
    found = frames.gather(starts, length)
    expected = [
        torch.stack((torch.full((length,), float(i)), torch.arange(float(s), s + length)), 1)
        for i, n in enumerate(lengths)
        for s in range(0, n - length + 1, stride)
    ]
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert sum(frames.window_counts(length, stride=stride)) == len(expected)


def test_the_frames_of_a_set_must_fit_its_bounds():
    for ptr in ([0, 3], [1, 4], [0, 3, 2, 4], []):
        with pytest.raises(DataError, match="ptr"):
            FrameSet(frames=torch.zeros(4, 1), ptr=torch.tensor(ptr, dtype=torch.long))
    with pytest.raises(DataError, match="no frames"):
        FrameSet.of([])


def frames_of(segments: list[Segment]) -> set[tuple[int, int]]:
    return {(entry.trajectory, frame) for entry in segments for frame in range(entry.start, entry.stop)}


@given(st.integers(0, 5))
def test_whole_trajectories_are_shared_out(seed: int):
    parts = split_segments(LENGTHS, window=12, val_fraction=0.3, test_fraction=0.2, seed=seed)
    whole = [(entry.trajectory, entry.start, entry.stop) for part in parts.values() for entry in part]
    assert sorted(whole) == [(i, 0, n) for i, n in enumerate(LENGTHS) if n >= 12]  # that of 9 frames has no window
    assert {name: len(part) for name, part in parts.items()} == {"train": 3, "val": 2, "test": 1}


def test_the_seed_decides_which():
    drawn = {tuple(e.trajectory for e in split_segments(LENGTHS, window=12, seed=seed)["test"]) for seed in range(60)}
    assert len(drawn) == 6


@pytest.mark.parametrize("gap", [None, 0, 3])
def test_contiguous_parts_have_a_gap_between_them(gap: int | None):
    parts = split_segments([200, 150], window=10, by="contiguous", val_fraction=0.2, test_fraction=0.1, gap=gap)
    distance = 10 if gap is None else gap
    for number, frames in enumerate([200, 150]):
        train, val, test = (next(e for e in parts[name] if e.trajectory == number) for name in ("train", "val", "test"))
        assert (train.start, test.stop) == (0, frames)
        assert (val.start - train.stop, test.start - val.stop) == (distance, distance)
        free = frames - 2 * distance
        assert (len(val), len(test)) == (round(0.2 * free), round(0.1 * free))


def test_a_frame_of_one_part_is_in_no_window_of_another():
    parts = split_segments([90, 60, 45], window=10, by="contiguous", val_fraction=0.3, test_fraction=0.2)
    seen = Counter(frame for part in parts.values() for frame in frames_of(part))
    assert set(seen.values()) == {1}
    held_out = frames_of(parts["val"]) | frames_of(parts["test"])
    for trajectory, frame in frames_of(parts["train"]):
        assert not {(trajectory, frame + ahead) for ahead in range(10)} & held_out


def test_contiguous_parts_too_short_for_a_window_are_left_out():
    parts = split_segments([200, 35], window=10, by="contiguous", val_fraction=0.2, test_fraction=0.2)
    assert [[entry.trajectory for entry in parts[name]] for name in ("train", "val", "test")] == [[0], [0], [0]]


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"val_fraction": 1.0}, ConfigError, r"data\.val_fraction: got 1\.0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, ConfigError, "nothing is left to train"),
        ({"by": "frames"}, ConfigError, r"data\.split: got 'frames'"),
        ({"gap": -1}, ConfigError, r"data\.gap: got -1"),
        ({"window": 60}, DataError, "no window of 60 frames: there are 7 trajectories of 9 to 70"),
        ({"window": 80}, DataError, "no window of 80 frames"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_splits_that_cannot_be_are_refused(options: dict, error: type[Exception], told: str):
    with pytest.raises(error, match=told):
        split_segments(LENGTHS, **{"window": 12, **options})


# ---- loader ----------------------------------------------------------------------------------------------------------


def loader(count: int = 23, **options) -> WindowLoader:
    return WindowLoader(window_starts(torch.tensor([0, count + 4]), 5), **{"batch_size": 4, "shuffle": True, **options})


def every(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def rows(loader: WindowLoader) -> list[list[int]]:
    return [batch.starts.tolist() for batch in loader]


def test_every_window_comes_once_an_epoch_in_another_order():
    one = loader()
    first = rows(one)
    one.set_epoch(1)
    second = rows(one)
    assert [len(batch) for batch in first] == [4] * 5 + [3]
    assert len(one) == 6
    assert sorted(every(first)) == sorted(every(second)) == list(range(23))
    assert first != second
    assert rows(loader()) == first
    assert rows(loader(seed=1)) != first
    assert every(rows(loader(shuffle=False))) == list(range(23))


def test_training_goes_on_in_the_middle_of_an_epoch():
    whole, stopped, again = loader(), loader(), loader()
    whole.set_epoch(3)
    stopped.set_epoch(3)
    batches = iter(stopped)
    first = [next(batches).starts.tolist() for _ in range(2)]
    again.load_state_dict(stopped.state_dict())
    assert first + rows(again) == rows(whole)
    assert len(rows(again)) == 6  # the next epoch is whole


def test_ranks_share_the_windows_out():
    parts = [rows(loader(rank=rank, world_size=3)) for rank in range(3)]
    assert [len(part) for part in parts] == [len(loader(rank=0, world_size=3))] * 3
    shares = [set(every(part)) for part in parts]
    assert [len(share) for share in shares] == [7, 7, 7]
    assert len(set.union(*shares)) == 21
    with pytest.raises(ConfigError, match="cannot be shared out among 30"):
        loader(world_size=30)


def test_noise_is_a_function_of_seed_epoch_batch_and_rank():
    one = loader()
    drawn = [float(torch.rand(1, generator=batch.generator())) for batch in one]
    one.set_epoch(1)
    other = [float(torch.rand(1, generator=batch.generator())) for batch in one]
    ranks = [float(torch.rand(1, generator=next(iter(loader(rank=r, world_size=2))).generator())) for r in range(2)]
    assert len({*drawn, *other, ranks[1]}) == 13
    assert drawn[0] == ranks[0]
