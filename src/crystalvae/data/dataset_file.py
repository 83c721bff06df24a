"""Datasets on disk: one safetensors file each, memory-mapped when read, so that none needs to fit into memory."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import overload

import numpy as np
import torch
from jaxtyping import Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import FIELDS, CrystalDataset, SkippedRow
from crystalvae.errors import DataError
from crystalvae.files import partial_file, remove_stale_partials, whole_file

log = logging.getLogger(__name__)


CHECKSUM = "blake2b"
"""Where in the header of a file the checksum of its tensors stands."""
_BLOCK = 2**24


class StoredIds(Sequence[str]):
    """Ids as one text in UTF-8 and the place where each ends, decoded one by one: no Python object an id."""

    def __init__(self, text: UInt8[Tensor, "T"], ends: Int[Tensor, "B"]) -> None:
        if len(ends) and int(ends[-1]) != len(text):
            raise ValueError(f"ids end at {int(ends[-1])}, but their text has {len(text)} bytes")
        if len(ends) and (int(ends[0]) < 0 or bool((ends[1:] < ends[:-1]).any())):
            raise ValueError("ids that end before they begin")
        self.text, self.ends = text, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"id {index} of {len(self)}")
        place = index % len(self)
        start = int(self.ends[place - 1]) if place else 0
        return self.text[start : int(self.ends[place])].numpy().tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (list, StoredIds)):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]  as lists have none


def save_dataset(dataset: CrystalDataset, path: Path) -> None:
    """Write a dataset under a temporary name and rename it, so that a reader sees all of it or nothing."""
    _save(_tensors(dataset) | {"skipped": _to_bytes(dataset.skipped)}, path)


def write_parts(parts: Iterable[CrystalDataset], path: Path) -> int:
    """Write a dataset that comes in parts, one of them in memory at a time; returns the number of crystals.

    The parts have the same properties. As `save_dataset`, it leaves all of the file or nothing.
    """
    columns: dict[str, _Column] = {}
    skipped: list[SkippedRow] = []
    with ExitStack() as stack:
        for part in parts:
            tensors = _tensors(part)
            if not columns:
                files = {name: stack.enter_context(partial_file(path)) for name in tensors}
                columns = {name: _Column(files[name], value) for name, value in tensors.items()}
            if set(tensors) != set(columns):
                raise ValueError(
                    f"write_parts: expected the fields {sorted(columns)} in each part, got {sorted(tensors)}"
                )
            tensors["id_ends"] = tensors["id_ends"] + columns["id_text"].rows
            for name, value in tensors.items():
                columns[name].add(value)
            skipped += part.skipped
        if not columns:
            raise ValueError("write_parts: expected at least one part, got none")
        whole = {name: column.mapped() for name, column in columns.items()}
        _save(whole | {"skipped": _to_bytes(skipped)}, path)
        return columns["num_atoms"].rows


def load_dataset(path: Path) -> CrystalDataset:
    """Read a dataset, memory-mapped; `DataError` where the file is damaged, which its checksum tells.

    The checksum is read through once; after that nothing is read until it is used.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            _check_sum(tensors, (file.metadata() or {}).get(CHECKSUM))
        crystals = CrystalBatch(
            atom_types=tensors["atom_types"].long(),
            frac_coords=tensors["frac_coords"],
            lattices=tensors["lattices"],
            num_atoms=tensors["num_atoms"].long(),
            properties={k.removeprefix("properties/"): v for k, v in tensors.items() if k.startswith("properties/")},
        )
        _check_numbers(crystals)
        skipped = [SkippedRow(*entry) for entry in _from_bytes(tensors["skipped"])]
        if "ids" in tensors:  # written by version 0.1 before ids were mapped too
            return CrystalDataset(crystals, _from_bytes(tensors["ids"]), skipped)
        ids = StoredIds(tensors["id_text"], tensors["id_ends"])
        return CrystalDataset(crystals, ids, skipped)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: damaged dataset cache ({reason}); delete the file and run again") from error


def cached(path: Path, build: Callable[[], CrystalDataset]) -> CrystalDataset:
    """Return the dataset at `path`, building and writing it first where it is missing or damaged."""
    if _is_there(path):
        try:
            return load_dataset(path)
        except DataError as error:
            log.warning("%s; building it again", error)
    dataset = build()
    try:
        remove_stale_partials(path)
        save_dataset(dataset, path)
    except OSError as error:
        log.warning("could not keep the dataset cache at %s (%s); it will be built again next time", path, error)
    return dataset


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be looked into
        return False


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata={CHECKSUM: _sum(tensors)})
    except SafetensorError as error:  # which is how it tells of a full disk
        raise OSError(str(error)) from error


def _sum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, len(flat), _BLOCK):
            digest.update(flat[start : start + _BLOCK].data)
    return digest.hexdigest()


def _check_sum(tensors: Mapping[str, Tensor], expected: str | None) -> None:
    if expected is not None and _sum(tensors) != expected:
        raise ValueError("its checksum is another than that of its content")


def _check_numbers(crystals: CrystalBatch) -> None:
    """Raise `ValueError` for what no reader of ours lets into a dataset, as files without a checksum may hold it."""
    if not bool(torch.isfinite(crystals.lattices).all() and torch.isfinite(crystals.frac_coords).all()):
        raise ValueError("cells or coordinates that are not finite")
    if len(crystals) and not bool((crystals.num_atoms >= 1).all()):
        raise ValueError("crystals without atoms")
    if len(crystals.atom_types) and not 0 <= int(crystals.atom_types.min()) <= int(crystals.atom_types.max()) <= 118:
        raise ValueError("elements beyond 118")


class _Column:
    """A tensor that grows in a file."""

    def __init__(self, path: Path, like: Tensor) -> None:
        self.path, self.dtype, self.shape, self.rows = path, like.dtype, like.shape[1:], 0

    def add(self, rows: Tensor) -> None:
        with self.path.open("ab") as file:
            file.write(rows.contiguous().numpy().tobytes())
        self.rows += len(rows)

    def mapped(self) -> Tensor:
        """Return the whole tensor, read from the file where it is used."""
        size = self.rows * self.shape.numel()
        if size == 0:  # there is nothing to map
            return torch.empty(self.rows, *self.shape, dtype=self.dtype)
        flat = torch.from_file(str(self.path), size=size, dtype=self.dtype)
        return flat.reshape(self.rows, *self.shape)


def _tensors(dataset: CrystalDataset) -> dict[str, Tensor]:
    # Elements and counts as the 64-bit numbers they are in memory, so that a file can be used without a copy.
    crystals, texts = dataset.crystals, [entry.encode() for entry in dataset.ids]
    text = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8) if any(texts) else torch.empty(0).byte()
    return {
        **{name: getattr(crystals, name).contiguous() for name in FIELDS},
        "id_text": text,
        "id_ends": torch.from_numpy(np.cumsum([len(entry) for entry in texts], dtype=np.int64)),
        **{f"properties/{name}": value.contiguous() for name, value in crystals.properties.items()},
    }


def _to_bytes(skipped: Sequence[SkippedRow]) -> Tensor:
    rows = [[entry.position, entry.id, entry.reason] for entry in skipped]
    return torch.frombuffer(bytearray(json.dumps(rows).encode()), dtype=torch.uint8)


def _from_bytes(tensor: Tensor) -> list:
    return json.loads(tensor.numpy().tobytes())
