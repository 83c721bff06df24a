"""What a training step sees: one rank's share of a global batch, and where its random numbers come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crystalvae.data.batch import CrystalBatch


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """One rank's share of a global batch, with what it takes to draw the same noise whatever the number of ranks.

    Noise is a function of `seed` (run seed, epoch, batch number) alone: it is drawn for the whole global batch and this
    rank's rows are cut out, so runs on 1 and on k processes see the same, and a resumed run sees what it would have.
    """

    crystals: CrystalBatch
    indices: Tensor
    """Row of each crystal in the data set, (B,)."""
    seed: tuple[int, int, int] = (0, 0, 0)
    world_size: int = 1
    total_crystals: int = 0
    total_atoms: int = 0
    crystal_offset: int = 0
    atom_offset: int = 0

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TrainingBatch:
        """Return the batch on another device."""
        moved = {"crystals": self.crystals.to(device, non_blocking=non_blocking), "indices": self.indices.to(device)}
        return TrainingBatch(**{**self.__dict__, **moved})

    @classmethod
    def whole(cls, crystals: CrystalBatch, seed: tuple[int, int, int] = (0, 0, 0)) -> TrainingBatch:
        """Wrap a batch that is not divided among ranks."""
        return cls(
            crystals=crystals,
            indices=torch.arange(crystals.num_graphs),
            seed=seed,
            total_crystals=crystals.num_graphs,
            total_atoms=crystals.num_nodes,
        )

    @property
    def mean_crystals(self) -> float:
        """Crystals in the global batch divided by ranks: sums over this are averaged by DDP to the global mean."""
        return self.total_crystals / self.world_size

    @property
    def mean_atoms(self) -> float:
        """Atoms in the global batch divided by ranks."""
        return self.total_atoms / self.world_size

    def generator(self) -> torch.Generator:
        """Return a generator seeded by this batch alone, on the batch's device."""
        run, epoch, number = self.seed
        mixed = (run * 1_000_003 + epoch) * 1_000_003 + number
        return torch.Generator(self.crystals.device).manual_seed(mixed % 2**63)

    def per_crystal(self, draws: Tensor) -> Tensor:
        """Cut this rank's rows out of draws with one row per crystal of the global batch."""
        return draws[self.crystal_offset : self.crystal_offset + self.crystals.num_graphs]

    def per_atom(self, draws: Tensor) -> Tensor:
        """Cut this rank's rows out of draws with one row per atom of the global batch."""
        return draws[self.atom_offset : self.atom_offset + self.crystals.num_nodes]
