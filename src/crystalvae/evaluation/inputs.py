"""Crystals to be judged: what cannot be read is kept too, with its reason, and counts as invalid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crystalvae.data import readers
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import CrystalDataset, SkippedRow


@dataclass(frozen=True, eq=False)
class CrystalSet:
    """Named crystals with one id each, their places in the source (from 0), and what could not be read there."""

    name: str
    crystals: CrystalBatch
    ids: Sequence[str]
    positions: Sequence[int]
    unreadable: Sequence[SkippedRow] = ()

    def __post_init__(self) -> None:
        if not len(self.crystals) == len(self.ids) == len(self.positions):
            raise ValueError(
                f"CrystalSet: expected one id and position for each of {len(self.crystals)} crystals, "
                f"got {len(self.ids)} and {len(self.positions)}"
            )

    @classmethod
    def of(cls, name: str, crystals: CrystalBatch, ids: Sequence[str] | None = None) -> CrystalSet:
        """Return a set that was all readable; ids are by default numbers from 0."""
        count = range(len(crystals))
        return cls(name, crystals, [str(i) for i in count] if ids is None else list(ids), list(count))

    @classmethod
    def of_dataset(cls, name: str, dataset: CrystalDataset) -> CrystalSet:
        """Return the crystals of a data set. What its reader skipped belongs to no model and is not counted."""
        return cls.of(name, dataset.crystals, dataset.ids)

    @property
    def total(self) -> int:
        """How many there are, unreadable ones included."""
        return len(self.crystals) + len(self.unreadable)

    def to_dict(self) -> dict[str, object]:
        """Return what the output says of it."""
        entries = [{"id": entry.id, "reason": entry.reason} for entry in self.unreadable]
        return {"name": self.name, "count": self.total, "unreadable": entries}


def read_crystals(path: Path | str, *, name: str | None = None) -> CrystalSet:
    """Read crystals as they are, as `data.readers.read_crystals` does, and count what cannot be read as invalid.

    Cells are not reduced and repeated ids stay. Raises `DataError` where there is nothing to read.
    """
    dataset = readers.read_crystals(path, allow_empty=True)
    gone = {entry.position for entry in dataset.skipped}
    positions = [position for position in range(len(dataset) + len(gone)) if position not in gone]
    label = str(Path(path).expanduser()) if name is None else name
    return CrystalSet(label, dataset.crystals, list(dataset.ids), positions, dataset.skipped)
