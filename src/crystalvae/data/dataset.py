"""A dataset: crystals as flat tensors with their ids, put together from rows that may be bad."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.cif import CrystalError, RawCrystal, check_crystal, niggli_reduce
from crystalvae.data.lattice import lattice_from_parameters, lattice_to_parameters, wrap
from crystalvae.errors import DataError
from crystalvae.files import arrays_key

log = logging.getLogger(__name__)

READER_VERSION = 3
"""Part of every cache key: raise it whenever the same file would be read differently."""
FIELDS = ("atom_types", "frac_coords", "lattices", "num_atoms")
"""What a batch of crystals is made of, beside properties."""
_LISTED = 10
_CHUNK = 1024


@dataclass(frozen=True)
class SkippedRow:
    """A crystal that was left out: its row (from 1, or the file's name), its id and why."""

    row: str
    crystal_id: str
    reason: str


@dataclass(frozen=True, eq=False)
class CrystalDataset:
    """Crystals with one id each, and what was skipped on the way in."""

    crystals: CrystalBatch
    ids: Sequence[str]
    skipped: Sequence[SkippedRow] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if len(self.ids) != self.crystals.num_graphs:
            raise ValueError(f"CrystalDataset.ids: expected {self.crystals.num_graphs}, got {len(self.ids)}")

    def __len__(self) -> int:
        return self.crystals.num_graphs

    def subset(self, indices: Sequence[int] | Tensor) -> CrystalDataset:
        """Return some crystals, in the order given."""
        chosen = torch.as_tensor(indices)
        positions: list[int] = chosen.tolist()
        return CrystalDataset(self.crystals[chosen], [self.ids[i] for i in positions])

    def in_memory(self) -> CrystalDataset:
        """Return a copy that no file is needed for any more."""
        crystals = self.crystals
        properties = {name: values.clone() for name, values in crystals.properties.items()}
        copies = {name: getattr(crystals, name).clone() for name in FIELDS}
        return replace(self, crystals=CrystalBatch(**copies, properties=properties), ids=list(self.ids))


def crystals_key(crystals: CrystalBatch, settings: str) -> str:
    """Return a short key for crystals with their properties, and the settings of what is made of them."""
    host = crystals.detach().to("cpu")
    tensors = [(name, getattr(host, name)) for name in FIELDS] + sorted(host.properties.items())
    return arrays_key(((name, values.numpy()) for name, values in tensors), settings=settings)


def assemble(
    rows: Iterable[tuple[str, str, Callable[[], RawCrystal], dict[str, float]]],
    *,
    source: str,
    max_atoms: int | None,
    niggli: bool,
    strict: bool,
) -> CrystalDataset:
    """Turn (row, id, reader, properties) into a dataset; rows that fail are reported and skipped.

    With `strict` the first bad row raises `DataError`; so does a source in which no crystal is usable.
    """
    crystals: list[RawCrystal] = []
    ids: list[str] = []
    seen: set[str] = set()
    values: list[dict[str, float]] = []
    skipped: list[SkippedRow] = []
    remaining = iter(rows)
    while chunk := list(islice(remaining, _CHUNK)):
        results = [_read_checked(read, max_atoms) for _, _, read, _ in chunk]
        for (row, crystal_id, _, properties), found in zip(
            chunk, _reduced(results) if niggli else results, strict=True
        ):
            result = CrystalError("duplicate id") if crystal_id in seen else found
            if isinstance(result, RawCrystal):
                crystals.append(result)
                seen.add(crystal_id)
                ids.append(crystal_id)
                values.append(properties)
                continue
            if strict:
                message = (
                    f"{source}, row {row} ({crystal_id}): {result}. Repair or remove it, or read with strict=false"
                )
                raise DataError(message) from result
            skipped.append(SkippedRow(row, crystal_id, str(result)))
    report_skipped(skipped, source=source, kept=len(crystals))
    if not crystals:
        reason = f"; the first was row {skipped[0].row} ({skipped[0].reason})" if skipped else ""
        raise DataError(f"{source}: no usable crystal, {len(skipped)} rows skipped{reason}")
    return CrystalDataset(_flatten(crystals, values, rebuild=niggli), ids, skipped)


def _read_checked(read: Callable[[], RawCrystal], max_atoms: int | None) -> RawCrystal | CrystalError:
    try:
        crystal = read()
        check_crystal(crystal, max_atoms=max_atoms)
    except CrystalError as error:
        return error
    return crystal


def _reduced(results: Sequence[RawCrystal | CrystalError]) -> list[RawCrystal | CrystalError]:
    reduced = iter(niggli_reduce([result for result in results if isinstance(result, RawCrystal)]))
    return [next(reduced) if isinstance(result, RawCrystal) else result for result in results]


def _flatten(crystals: Sequence[RawCrystal], values: Sequence[dict[str, float]], *, rebuild: bool) -> CrystalBatch:
    names = list(dict.fromkeys(name for entry in values for name in entry))
    lattices = torch.from_numpy(np.stack([crystal.lattice for crystal in crystals]))
    if rebuild:  # the canonical orientation, as in the published preprocessing (CDVAE, Xie et al. 2022)
        lattices = lattice_from_parameters(*lattice_to_parameters(lattices))
    return CrystalBatch(
        atom_types=torch.from_numpy(np.concatenate([crystal.numbers for crystal in crystals])).long(),
        frac_coords=wrap(wrap(torch.from_numpy(np.concatenate([crystal.frac_coords for crystal in crystals]))).float()),
        lattices=lattices.float(),
        num_atoms=torch.tensor([len(crystal.numbers) for crystal in crystals]),
        properties={name: torch.tensor([entry.get(name, float("nan")) for entry in values]) for name in names},
    )


def report_skipped(skipped: Sequence[SkippedRow], *, source: str, kept: int) -> None:
    """Log how many rows were skipped, and the first few with row, id and reason."""
    if not skipped:
        return
    lines = [f"  row {entry.row} ({entry.crystal_id}): {entry.reason}" for entry in skipped[:_LISTED]]
    if len(skipped) > _LISTED:
        lines.append(f"  … and {len(skipped) - _LISTED} more")
    log.warning("%s: kept %d crystals, skipped %d:\n%s", source, kept, len(skipped), "\n".join(lines))
