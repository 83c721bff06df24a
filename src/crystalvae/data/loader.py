"""Batches by gather: loaders over flat tensors whose order depends on the seed and the epoch alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from crystalvae.checks import check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError

Batch = TypeVar("Batch")


class SeededLoader(ABC, Generic[Batch]):
    """Iterate over `rows` in batches of `batch_size`, for one of `world_size` ranks; `what` the rows are is for errors.

    The position within an epoch is part of the state, so training resumes in the middle of one.
    """

    def __init__(
        self,
        rows: int,
        what: str,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_count("data.batch_size", batch_size)
        if rows < world_size:
            raise ConfigError(f"{rows} {what} cannot be shared out among {world_size} processes")
        self.rows, self.batch_size, self.shuffle, self.seed = rows, batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._start = 0
        self._next = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _batch(self, number: int, order: Tensor) -> Batch: ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the epoch and the number of batches already taken from it."""
        return {"epoch": self.epoch, "next": self._next, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a saved loader stood."""
        self.epoch, self.seed = state["epoch"], state["seed"]
        self._start = self._next = state["next"] % len(self)

    def order(self) -> Tensor:
        """Return the row numbers in the order of this epoch."""
        if not self.shuffle:
            return torch.arange(self.rows)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        return torch.randperm(self.rows, generator=generator)

    def __iter__(self) -> Iterator[Batch]:
        order = self.order()
        start, self._start = self._start, 0
        for number in range(start, len(self)):
            self._next = number + 1
            yield self._batch(number, order)


class CrystalLoader(SeededLoader[TrainingBatch]):
    """Iterate over crystals, with the options of `SeededLoader`.

    Each rank takes a contiguous share of every global batch of `batch_size` × `world_size` crystals; the last, smaller
    batch is shared out evenly and left out where there is not a crystal for every rank. In validation
    (`shuffle=False`) each rank runs the same number of batches.
    """

    def __init__(self, crystals: CrystalBatch, **options: Any) -> None:
        super().__init__(crystals.num_graphs, "crystals", **options)
        self.crystals = crystals

    def __len__(self) -> int:
        full, rest = divmod(self.rows, self.batch_size * self.world_size)
        return full + (rest >= self.world_size)

    def _batch(self, number: int, order: Tensor) -> TrainingBatch:
        step = self.batch_size * self.world_size
        rows = order[number * step : (number + 1) * step]
        bounds = [len(rows) * rank // self.world_size for rank in range(self.world_size + 1)]
        counts = self.crystals.num_atoms[rows.to(self.crystals.device)]
        first, last = bounds[self.rank], bounds[self.rank + 1]
        atoms = counts.cumsum(0)
        return TrainingBatch(
            crystals=self.crystals[rows[first:last]],
            indices=rows[first:last],
            seed=(self.seed, self.epoch, number),
            world_size=self.world_size,
            total_crystals=len(rows),
            total_atoms=int(atoms[-1]),
            crystal_offset=first,
            atom_offset=int(atoms[first - 1]) if first else 0,
        )
