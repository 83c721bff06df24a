"""A dataset: crystals as flat tensors with their ids, kept on disk as one safetensors file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from src.data.batch import CrystalBatch
from src.data.cif import CrystalError, RawCrystal, check_crystal, niggli_reduce
from src.data.lattice import lattice_from_parameters, lattice_to_parameters, wrap
from src.data.output_dir import process_alive
from src.errors import DataError

log = logging.getLogger(__name__)

READER_VERSION = 2
"""Part of every cache key: raise it whenever the same file would be read differently."""
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


# ---- cache ----------------------------------------------------------------------------------------------------------


def save_dataset(dataset: CrystalDataset, path: Path) -> None:
    """Write a dataset under a temporary name and rename it, so that a reader sees all of it or nothing."""
    crystals = dataset.crystals
    tensors = {
        "atom_types": crystals.atom_types.to(torch.uint8),
        "frac_coords": crystals.frac_coords,
        "lattices": crystals.lattices,
        "num_atoms": crystals.num_atoms.to(torch.int32),
        "ids": _to_bytes(list(dataset.ids)),
        "skipped": _to_bytes([[entry.row, entry.crystal_id, entry.reason] for entry in dataset.skipped]),
        **{f"properties/{name}": value for name, value in crystals.properties.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_dataset(path: Path) -> CrystalDataset:
    """Read a dataset written by `save_dataset`, memory-mapped where its types allow; `DataError` if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        crystals = CrystalBatch(
            atom_types=tensors["atom_types"].long(),
            frac_coords=tensors["frac_coords"],
            lattices=tensors["lattices"],
            num_atoms=tensors["num_atoms"].long(),
            properties={k.removeprefix("properties/"): v for k, v in tensors.items() if k.startswith("properties/")},
        )
        skipped = [SkippedRow(*entry) for entry in _from_bytes(tensors["skipped"])]
        return CrystalDataset(crystals, _from_bytes(tensors["ids"]), skipped)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: damaged dataset cache ({reason}); delete the file and run again") from error


def cached(path: Path, build: Callable[[], CrystalDataset]) -> CrystalDataset:
    """Return the dataset at `path`, building and writing it first where it is missing or damaged."""
    if path.is_file():
        try:
            return load_dataset(path)
        except DataError as error:
            log.warning("%s; building it again", error)
    remove_stale_partials(path)
    dataset = build()
    try:
        save_dataset(dataset, path)
    except OSError as error:
        log.warning("could not keep the dataset cache at %s (%s); it will be built again next time", path, error)
    return dataset


def remove_stale_partials(path: Path) -> None:
    """Delete what killed runs left beside `path` under a temporary name."""
    for partial in path.parent.glob(f".{path.name}.*.tmp"):
        pid = partial.name.removesuffix(".tmp").rpartition(".")[2]
        if pid.isdigit() and not process_alive(int(pid)):
            partial.unlink(missing_ok=True)


def _to_bytes(value: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _from_bytes(tensor: Tensor) -> list:
    return json.loads(tensor.numpy().tobytes())
