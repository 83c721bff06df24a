"""Processes that torchrun started to share one command's work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from crystalvae.errors import ConfigError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """Which of `world_size` processes this is; `local_rank` counts those on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def mine(self, number: int) -> bool:
        """Say whether a piece of work, by its number, is this process's: they are dealt out in turn."""
        return number % self.world_size == self.rank

    def collect(self, items: list[Item]) -> list[Item]:
        """Return the items of all processes to the main one, rank by rank, and none to the others."""
        if self.world_size == 1:
            return items
        gathered: list[list[Item]] = [[] for _ in range(self.world_size)]
        dist.gather_object(items, gathered if self.main else None)
        return [item for part in gathered for item in part]


ALONE = Ranks()


@contextmanager
def joined_processes() -> Iterator[Ranks]:
    """Join the processes that torchrun started, as long as the block runs; one process needs nothing of that.

    Raises `ConfigError` where torchrun's variables are only partly there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is set, but {', '.join(missing)} are not; start several processes with torchrun")
    dist.init_process_group("gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
    finally:
        dist.destroy_process_group()
