"""Windows of trajectories: one flat tensor of frames, and the rows at which windows start.

Letters: M frames of all segments one after another, S segments, F features, W windows, B windows of a batch, T frames
of a window. A segment is part of one trajectory; no window spans two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystalvae.checks import check_count
from crystalvae.data.loader import SeededLoader
from crystalvae.data.sources import Split
from crystalvae.errors import ConfigError, DataError

SplitBy = Literal["trajectory", "contiguous"]


@dataclass(frozen=True)
class Segment:
    """Frames `start` to `stop` (not included) of the trajectory of a number."""

    trajectory: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class FrameSet:
    """Frames of S segments one after another, `frames` (M, F), and where each begins and the last ends, `ptr` (S + 1,).

    Raises `DataError` where the bounds do not fit the frames.
    """

    frames: Float[Tensor, "M F"]
    ptr: Int[Tensor, "Splus1"]

    def __post_init__(self) -> None:
        bounds = self.ptr.tolist()
        if not bounds or bounds[0] != 0 or bounds[-1] != len(self.frames) or sorted(bounds) != bounds:
            raise DataError(f"FrameSet.ptr: expected rising bounds from 0 to {len(self.frames)} frames, got {bounds}")

    @classmethod
    def of(cls, segments: Sequence[Float[Tensor, "_ F"]]) -> FrameSet:
        """Join segments' frames; `DataError` where there is none."""
        if not segments:
            raise DataError("no frames: expected at least one segment")
        lengths = torch.tensor([0, *map(len, segments)])
        return cls(frames=torch.cat(list(segments)), ptr=lengths.cumsum(0).to(segments[0].device))

    @property
    def lengths(self) -> list[int]:
        """Frames of each segment."""
        return self.ptr.diff().tolist()

    def to(self, device: torch.device | str) -> FrameSet:
        """Return the frames on another device."""
        return FrameSet(frames=self.frames.to(device), ptr=self.ptr.to(device))

    def starts(self, length: int, *, stride: int = 1) -> Int[Tensor, "W"]:
        """Return the rows at which windows of `length` frames start, every `stride`-th of each segment, in order."""
        return window_starts(self.ptr, length, stride=stride)

    def gather(self, starts: Int[Tensor, "B"], length: int) -> Float[Tensor, "B T F"]:
        """Return the windows that start at the given rows."""
        return self.frames[starts[:, None] + torch.arange(length, device=starts.device)]

    def window_counts(self, length: int, *, stride: int = 1) -> list[int]:
        """Return how many windows each segment has, as `starts` lists them."""
        return [max(0, (frames - length) // stride + 1) for frames in self.lengths]


def window_starts(ptr: Int[Tensor, "Splus1"], length: int, *, stride: int = 1) -> Int[Tensor, "W"]:
    """Return the first rows of all windows of `length` frames within the segments that `ptr` bounds."""
    check_count("window", length)
    check_count("stride", stride)
    sizes = ptr.diff()
    rows = torch.arange(int(ptr[-1]), device=ptr.device)
    first = torch.repeat_interleave(ptr[:-1], sizes)
    last = torch.repeat_interleave(ptr[1:], sizes)
    return rows[(rows + length <= last) & ((rows - first) % stride == 0)]


def split_segments(
    lengths: Sequence[int],
    *,
    window: int,
    by: SplitBy = "trajectory",
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    gap: int | None = None,
    seed: int = 0,
) -> dict[Split, list[Segment]]:
    """Divide trajectories of `lengths` frames into training, validation and test segments.

    trajectory: whole ones, chosen by the seed, at least one for each part of a fraction above 0. contiguous: of each
    trajectory the first frames train, the next validate, the last test, with `gap` frames left out between them (None:
    one window, so that no frame of one part is within a window of another's). Segments shorter than a window are left
    out. Raises `ConfigError` for fractions that cannot be, and `DataError` where a part has no window.
    """
    check_count("data.window", window)
    for key, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0.0 <= value < 1.0:
            raise ConfigError(f"data.{key}: got {value}; expected a share in [0, 1)")
    if val_fraction + test_fraction >= 1.0:
        raise ConfigError(
            f"data.val_fraction, data.test_fraction: got {val_fraction} and {test_fraction}; nothing is left to train"
        )
    if by not in get_args(SplitBy):
        raise ConfigError(f"data.split: got {by!r}; expected trajectory or contiguous")
    if gap is not None:
        check_count("data.gap", gap, at_least=0)
    shares: dict[Split, float] = {"val": val_fraction, "test": test_fraction}
    if by == "trajectory":
        parts = _whole(lengths, window, shares, seed)
    else:
        parts = _contiguous(lengths, window, shares, window if gap is None else gap)
    for split, segments in parts.items():
        if not segments and (split == "train" or shares[split] > 0):
            raise DataError(
                f"the {split} part has no window of {window} frames: there are {len(lengths)} trajectories of "
                f"{min(lengths, default=0)} to {max(lengths, default=0)} frames, split by {by}; give more or longer "
                "trajectories, a shorter window, or other fractions"
            )
    return parts


def _whole(lengths: Sequence[int], window: int, shares: Mapping[Split, float], seed: int) -> dict[Split, list[Segment]]:
    usable = [number for number, frames in enumerate(lengths) if frames >= window]
    generator = torch.Generator().manual_seed(seed)
    order = [usable[row] for row in torch.randperm(len(usable), generator=generator).tolist()]
    parts: dict[Split, list[Segment]] = {}
    for split, share in shares.items():
        count = max(1, round(share * len(usable))) if share > 0 else 0
        chosen, order = order[:count], order[count:]
        parts[split] = [Segment(number, 0, lengths[number]) for number in sorted(chosen)]
    return {"train": [Segment(number, 0, lengths[number]) for number in sorted(order)], **parts}


def _contiguous(
    lengths: Sequence[int], window: int, shares: Mapping[Split, float], gap: int
) -> dict[Split, list[Segment]]:
    parts: dict[Split, list[Segment]] = {"train": [], "val": [], "test": []}
    used: list[Split] = [split for split, share in shares.items() if share > 0]
    for number, frames in enumerate(lengths):
        free = frames - gap * len(used)
        sizes = {split: round(shares[split] * free) for split in used}
        start = free - sum(sizes.values())
        if start >= window:
            parts["train"].append(Segment(number, 0, start))
        for split in used:
            start += gap
            if sizes[split] >= window:
                parts[split].append(Segment(number, start, start + sizes[split]))
            start += sizes[split]
    return parts


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Rows at which a batch's windows start, (B,), and what its noise is a function of: run seed, epoch, number."""

    starts: Int[Tensor, "B"]
    seed: tuple[int, int, int] = (0, 0, 0)
    rank: int = 0

    def __len__(self) -> int:
        return len(self.starts)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> WindowBatch:
        """Return the batch on another device."""
        return WindowBatch(self.starts.to(device, non_blocking=non_blocking), self.seed, self.rank)

    def generator(self) -> torch.Generator:
        """Return a generator seeded by this batch alone, on its device."""
        run, epoch, number = self.seed
        mixed = ((run * 1_000_003 + epoch) * 1_000_003 + number) * 1_009 + self.rank
        return torch.Generator(device=self.starts.device).manual_seed(mixed % 2**63)


class WindowLoader(SeededLoader[WindowBatch]):
    """Iterate over windows that begin at `starts`, with the options of `SeededLoader`.

    Of several ranks each takes every `world_size`-th window of the order; the windows that would make one rank's share
    longer are left out in training.
    """

    def __init__(self, starts: Int[Tensor, "W"], **options: Any) -> None:
        super().__init__(len(starts), "windows", **options)
        self.starts = starts

    def __len__(self) -> int:
        return math.ceil(self.rows // self.world_size / self.batch_size)

    def order(self) -> Int[Tensor, "W"]:
        """Return this rank's starts in the order of this epoch."""
        return self.starts[super().order()][self.rank :: self.world_size][: self.rows // self.world_size]

    def _batch(self, number: int, order: Tensor) -> WindowBatch:
        rows = order[number * self.batch_size : (number + 1) * self.batch_size]
        return WindowBatch(rows, (self.seed, self.epoch, number), self.rank)
