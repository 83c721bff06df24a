"""The Lightning datamodule: one source, flat tensors, batches by gather."""

from __future__ import annotations

import logging
import os
from typing import Any

import lightning as L
import torch

from crystalvae.checks import check_count
from crystalvae.data.canonical import CanonicalSource
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.loader import CrystalLoader
from crystalvae.data.sources import Source, Split, atom_count_distribution
from crystalvae.data.symmetric.source import SymmetricSource
from crystalvae.errors import ConfigError

log = logging.getLogger(__name__)

MAPPED_SHARE = 0.1
"""Share of the machine's memory from which on a data set stays in its file."""


class CrystalDataModule(L.LightningDataModule):
    """Give the trainer batches of a source's crystals.

    `batch_size` counts crystals per process. `seed` decides order and noise (see `CrystalLoader`). `subset` takes only
    that many crystals of the training split, chosen by the seed, for trials. `canonical` gives every crystal its
    canonical description (`data.canonical`), which priors are trained on; "symmetric" the one that shows its symmetry
    (`data.symmetric`). `memory_map` leaves crystals in their file and reads what a batch asks for; "auto" does so from
    a tenth of the machine's memory on, else copies them.
    """

    def __init__(
        self,
        *,
        source: Source,
        batch_size: int,
        eval_batch_size: int = 1024,
        seed: int = 0,
        subset: int | None = None,
        canonical: bool | str = False,
        memory_map: bool | str = "auto",
    ) -> None:
        super().__init__()
        if memory_map != "auto" and not isinstance(memory_map, bool):
            raise ConfigError(f"data.memory_map: got {memory_map!r}; expected auto, true or false")
        if subset is not None:
            check_count("data.subset", subset)
        check_count("data.batch_size", batch_size)
        check_count("data.eval_batch_size", eval_batch_size)
        self.source = _described(source, canonical)
        self.seed, self.subset = seed, subset
        self.batch_size, self.eval_batch_size, self.memory_map = batch_size, eval_batch_size, memory_map
        self._splits: dict[Split, CrystalDataset] = {}

    def prepare_data(self) -> None:
        """Build caches once, before other processes look for them."""
        for split in ("train", "val"):
            self.dataset(split)

    def setup(self, stage: str) -> None:
        """Load the splits that a stage needs."""
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            self.dataset(split)

    def dataset(self, split: Split) -> CrystalDataset:
        """Return a split, loaded on first use."""
        if split not in self._splits:
            dataset = self._placed(self.source.load(split))
            if split == "train" and self.subset is not None and self.subset < len(dataset):
                generator = torch.Generator().manual_seed(self.seed)
                dataset = dataset.subset(torch.randperm(len(dataset), generator=generator)[: self.subset])
            log.info(
                "%s, split %s: %d crystals, %d atoms", self.source.name, split, len(dataset), dataset.crystals.num_nodes
            )
            self._splits[split] = dataset
        return self._splits[split]

    def _placed(self, dataset: CrystalDataset) -> CrystalDataset:
        if self.memory_map == "auto":
            memory = physical_memory()
            mapped = memory is not None and dataset.crystals.num_bytes > MAPPED_SHARE * memory
        else:
            mapped = bool(self.memory_map)
        return dataset if mapped else dataset.in_memory()

    def statistics(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the training set."""
        train = self.dataset("train")
        return {
            "dataset": self.source.name,
            "num_crystals": len(train),
            "num_atoms": atom_count_distribution(train.crystals.num_atoms.tolist()),
        }

    def train_ids(self, rows: list[int]) -> list[str]:
        """Return the ids of rows of the training split."""
        return [self.dataset("train").ids[row] for row in rows]

    def train_dataloader(self) -> CrystalLoader:
        """Return the shuffled training batches."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> CrystalLoader:
        """Return the validation batches, in order."""
        return self._loader("val", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> CrystalLoader:
        """Return the test batches, in order."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def _loader(self, split: Split, batch_size: int, *, shuffle: bool) -> CrystalLoader:
        trainer = self.trainer
        return CrystalLoader(
            self.dataset(split).crystals,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )


def _described(source: Source, canonical: bool | str) -> Source:
    if not isinstance(canonical, bool) and canonical != "symmetric":
        raise ConfigError(f"data.canonical: got {canonical!r}; expected true, false or symmetric")
    if not canonical:
        return source
    kind = SymmetricSource if canonical == "symmetric" else CanonicalSource
    return kind(source=source, cache_dir=_cache_dir(source))


def physical_memory() -> int | None:
    """Return the machine's memory in bytes, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _cache_dir(source: Source) -> str | None:
    cache = getattr(source, "cache", None)
    return None if cache is None else str(cache)
