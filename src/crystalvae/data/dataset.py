"""A dataset: crystals as flat tensors with their ids, put together from rows that may be bad."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from textwrap import shorten

import numpy as np
import torch
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.cif import CrystalError, RawCrystal, check_crystal, niggli_reduce
from crystalvae.data.lattice import lattice_from_parameters, lattice_to_parameters
from crystalvae.errors import DataError
from crystalvae.files import arrays_key

log = logging.getLogger(__name__)

READER_VERSION = 6
"""Part of every cache key: raise it whenever the same file would be read differently."""
FIELDS = ("atom_types", "frac_coords", "lattices", "num_atoms")
"""What a batch of crystals is made of, beside properties."""
_LISTED = 10
_CHUNK = 1024


MAX_WORDS = 64
"""A property of words is kept where there are so many different ones at most: labels, and no names or remarks."""
_FORMULAS = {"pretty_formula", "formula", "full_formula", "elements", "chemsys"}

Row = tuple[str, Callable[[], RawCrystal], Mapping[str, float | str]]
"""A crystal of a source that is not yet read: its id, what reads it or raises `CrystalError`, and its properties.

Those that are words become one property of numbers for each of their labels: see `label_columns`.
"""


@dataclass(frozen=True)
class SkippedRow:
    """A crystal that was left out: its place in the source (from 0), its id and why."""

    position: int
    id: str
    reason: str

    @property
    def row(self) -> int:
        """The row, from 1, as people count."""
        return self.position + 1


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
    tensors += [(f"condition {name}", values) for name, values in sorted(host.conditions.items())]
    return arrays_key(((name, values.numpy()) for name, values in tensors), settings=settings)


def assemble(
    rows: Iterable[Row],
    *,
    source: str,
    max_atoms: int | None,
    niggli: bool,
    unique_ids: bool,
    strict: bool,
    allow_empty: bool,
) -> CrystalDataset:
    """Turn the rows of a source into a dataset; rows that fail are reported and skipped.

    The options are those of `data.readers.read_crystals`, and so are the errors.
    """
    crystals: list[RawCrystal] = []
    ids: list[str] = []
    seen: set[str] = set()
    values: list[Mapping[str, float | str]] = []
    skipped: list[SkippedRow] = []
    remaining, position = iter(rows), 0
    while chunk := list(islice(remaining, _CHUNK)):
        results = [_read_checked(read, max_atoms) for _, read, _ in chunk]
        for (crystal_id, _, properties), found in zip(chunk, _reduced(results) if niggli else results, strict=True):
            result = CrystalError("duplicate id") if unique_ids and crystal_id in seen else found
            if isinstance(result, RawCrystal):
                crystals.append(result)
                seen.add(crystal_id)
                ids.append(crystal_id)
                values.append(properties)
            else:
                entry = SkippedRow(position, crystal_id, str(result))
                if strict:
                    raise DataError(
                        f"{source}, {_told(entry)}. Repair or remove it, or read with strict=false"
                    ) from result
                skipped.append(entry)
            position += 1
    report_skipped(skipped, source=source, kept=len(crystals))
    if not crystals and not allow_empty:
        reason = f"; the first was {_told(skipped[0])}" if skipped else ""
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


def label_of(column: str) -> str | None:
    """Return the property whose label a column of `label_columns` stands for; None for any other column."""
    name, equals, _ = column.partition("=")
    return name if equals else None


def label_columns(name: str, values: Sequence[float | str | None]) -> dict[str, Tensor]:
    """Return what is kept of a property that holds words: "name=label", 1 or 0, for each label; NaN for no word.

    Nothing where there are more than `MAX_WORDS`, and of formulas, which the crystals tell themselves.
    """
    labels = sorted({value for value in values if isinstance(value, str) and value})
    if name in _FORMULAS or len(labels) > MAX_WORDS:
        return {}
    known = torch.tensor([isinstance(value, str) and bool(value) for value in values])
    return {
        f"{name}={label}": torch.tensor([float(value == label) for value in values]).masked_fill(~known, torch.nan)
        for label in labels
    }


def _properties(values: Sequence[Mapping[str, float | str]]) -> dict[str, Tensor]:
    properties: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for entry in values for name in entry):
        column = [entry.get(name) for entry in values]
        numbers = [math.nan if value is None or isinstance(value, str) else value for value in column]
        if any(isinstance(value, (int, float)) for value in column):
            properties[name] = torch.tensor(numbers)
        else:
            properties |= label_columns(name, column)
    return properties


def _flatten(
    crystals: Sequence[RawCrystal], values: Sequence[Mapping[str, float | str]], *, rebuild: bool
) -> CrystalBatch:
    properties = _properties(values)
    lattices = torch.from_numpy(np.array([crystal.lattice for crystal in crystals]).reshape(-1, 3, 3))
    if rebuild:  # the canonical orientation, as in the published preprocessing (CDVAE, Xie et al. 2022)
        lattices = lattice_from_parameters(*lattice_to_parameters(lattices))
    arrays = [
        (entry.numbers, entry.frac_coords, lattice) for entry, lattice in zip(crystals, lattices.numpy(), strict=True)
    ]
    return CrystalBatch.from_arrays(arrays, properties)


def _told(entry: SkippedRow) -> str:
    return f"row {entry.row} ({shorten(entry.id, 60)}): {shorten(entry.reason, 300)}"


def report_skipped(skipped: Sequence[SkippedRow], *, source: str, kept: int) -> None:
    """Log how many rows were skipped, and the first few with row, id and reason."""
    if not skipped:
        return
    lines = [f"  {_told(entry)}" for entry in skipped[:_LISTED]]
    if len(skipped) > _LISTED:
        lines.append(f"  … and {len(skipped) - _LISTED} more")
    log.warning("%s: kept %d crystals, skipped %d:\n%s", source, kept, len(skipped), "\n".join(lines))
