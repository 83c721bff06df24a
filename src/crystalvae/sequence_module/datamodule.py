"""The Lightning datamodule of sequences: trajectories, their division, and batches of windows by gather."""

from __future__ import annotations

import logging
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch

from crystalvae.checks import check_count
from crystalvae.data.sources import Split
from crystalvae.data.trajectories import Trajectory
from crystalvae.errors import ConfigError, DataError
from crystalvae.sequence_module.windows import Segment, SplitBy, WindowLoader, split_segments, window_starts

log = logging.getLogger(__name__)


@runtime_checkable
class TrajectorySource(Protocol):
    """Where trajectories come from: a `name`, and `load`."""

    name: str

    def load(self) -> list[Trajectory]:
        """Return all trajectories."""
        ...


class SequenceDataModule(L.LightningDataModule):
    """Give the trainer batches of windows of a source's trajectories.

    A window to train on has `window` frames and, with `future_decoder`, the `future_steps` that follow. `split`,
    `val_fraction`, `test_fraction`, `gap` and `seed` are those of `split_segments`; the gap counts the frames that
    follow as part of the window. `stride` takes every n-th window to train on. `batch_size` counts windows per process.
    Features are kept in `cache_dir` (None: nowhere), see `FrameFeatures.of`.
    """

    def __init__(
        self,
        *,
        source: TrajectorySource,
        window: int,
        future_decoder: bool,
        future_steps: int,
        split: SplitBy = "trajectory",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        gap: int | None = None,
        stride: int = 1,
        batch_size: int = 256,
        eval_batch_size: int = 1024,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        check_count("data.stride", stride)
        self.source, self.cache_dir = source, cache_dir
        self.length = window + (future_steps if future_decoder else 0)
        """Frames of a window to train on, those that follow included."""
        self.split: SplitBy = split
        self.gap, self.stride, self.seed = gap, stride, seed
        self.fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self._trajectories: list[Trajectory] | None = None
        self._segments: dict[Split, list[Segment]] = {}

    def prepare_data(self) -> None:
        """Load the trajectories, which may have to be made first."""
        self.segments("train")

    @property
    def trajectories(self) -> list[Trajectory]:
        """All trajectories, also those too short for a window."""
        if self._trajectories is None:
            self._trajectories = self.source.load()
            if not self._trajectories:
                raise DataError(f"{self.source.name}: no trajectories")
        return self._trajectories

    def segments(self, split: Split) -> list[Segment]:
        """Return the frames of a part; trajectories too short for a window are reported once."""
        if not self._segments:
            lengths = [len(trajectory) for trajectory in self.trajectories]
            short = [entry.id for entry in self.trajectories if len(entry) < self.length]
            if short:
                log.warning(
                    "%d of %d trajectories are shorter than a window of %d frames and are left out: %s",
                    len(short),
                    len(lengths),
                    self.length,
                    ", ".join(short[:10]) + (" …" if len(short) > 10 else ""),
                )
            self._segments = split_segments(
                lengths, window=self.length, by=self.split, gap=self.gap, seed=self.seed, **self.fractions
            )
            log.info(
                "%s: %s",
                self.source.name,
                ", ".join(
                    f"{name} {sum(map(len, part))} frames of {len({entry.trajectory for entry in part})} trajectories"
                    for name, part in self._segments.items()
                ),
            )
        return self._segments[split]

    def parts(self, split: Split) -> list[Trajectory]:
        """Return the segments of a part as trajectories; `ConfigError` where the part was given no share."""
        if not self.segments(split):
            raise ConfigError(f"data.{split}_fraction: got 0; this needs a {split} part")
        return [self.trajectories[entry.trajectory][entry.start : entry.stop] for entry in self.segments(split)]

    def statistics(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the training set; `step` is the time between frames in fs."""
        segments = self.segments("train")
        return {
            "dataset": self.source.name,
            "trajectories": len(segments),
            "frames": sum(map(len, segments)),
            "step": float(self.trajectories[segments[0].trajectory].times[:2].diff()[0]),
        }

    def train_dataloader(self) -> WindowLoader:
        """Return the shuffled training batches."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> WindowLoader:
        """Return the validation batches, in order."""
        return self._loader("val", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> WindowLoader:
        """Return the test batches, in order."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def _loader(self, split: Split, batch_size: int, *, shuffle: bool) -> WindowLoader:
        ptr = torch.tensor([0, *map(len, self.parts(split))]).cumsum(0)
        return WindowLoader(
            window_starts(ptr, self.length, stride=self.stride),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
