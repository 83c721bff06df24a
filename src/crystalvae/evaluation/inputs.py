"""Crystals from anywhere, to be judged: what cannot be read is kept too, with its reason, and counts as invalid."""

from __future__ import annotations

import gzip
import json
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.cif import CrystalError, RawCrystal, check_crystal, parse_cif
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.dataset_file import load_dataset
from crystalvae.data.readers import TABLE_SUFFIXES, Row, ase_rows, cif_rows, table_rows
from crystalvae.errors import DataError

log = logging.getLogger(__name__)

JSON_SUFFIXES = (".json", ".json.gz")
_LISTED = 10


@dataclass(frozen=True)
class Unreadable:
    """A crystal that could not be read: its place in the source (from 0), its id and why."""

    position: int
    id: str
    reason: str


@dataclass(frozen=True, eq=False)
class CrystalSet:
    """Named crystals with one id each, their places in the source (from 0), and what could not be read there."""

    name: str
    crystals: CrystalBatch
    ids: Sequence[str]
    positions: Sequence[int]
    unreadable: Sequence[Unreadable] = ()

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
    """Read crystals as they are, without reducing cells or dropping duplicates.

    Reads a folder of CIFs or a zip of them, a table with a `cif` column (CSV, feather, parquet), pymatgen's JSON (one
    structure, a list, or a mapping of ids; entries with a structure too; plain or .gz), a data set of this package, and
    any file that ASE reads (extxyz, db, POSCAR, …).

    Raises `DataError` where there is nothing to read: no such file, an empty folder, a file of no known kind.
    """
    path = Path(path).expanduser()
    label = name or str(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected CIFs, a table with a cif column, JSON, extxyz or db")
    if path.suffix == ".safetensors":
        return CrystalSet.of_dataset(label, load_dataset(path))
    kept: list[RawCrystal] = []
    ids: list[str] = []
    positions: list[int] = []
    unreadable: list[Unreadable] = []
    for position, (_, crystal_id, read, _) in enumerate(_rows(path)):
        try:
            crystal = read()
            check_crystal(crystal, max_atoms=None)
        except CrystalError as error:
            unreadable.append(Unreadable(position, crystal_id, str(error)))
        else:
            kept.append(crystal)
            ids.append(crystal_id)
            positions.append(position)
    _report(label, len(kept), unreadable)
    crystals = CrystalBatch.from_arrays((entry.numbers, entry.frac_coords, entry.lattice) for entry in kept)
    return CrystalSet(label, crystals, ids, positions, unreadable)


def _rows(path: Path) -> Iterator[Row]:
    if path.is_dir():
        return cif_rows(path)
    if path.name.endswith(TABLE_SUFFIXES):
        return table_rows(path)
    if path.suffix == ".zip":
        return _zip_rows(path)
    if path.name.endswith(JSON_SUFFIXES):
        return _json_rows(path)
    return ase_rows(path)


def _report(name: str, kept: int, unreadable: Sequence[Unreadable]) -> None:
    if not unreadable:
        return
    lines = [f"  {entry.id}: {entry.reason}" for entry in unreadable[:_LISTED]]
    if len(unreadable) > _LISTED:
        lines.append(f"  … and {len(unreadable) - _LISTED} more")
    text = "%s: read %d crystals; %d cannot be read and count as invalid:\n%s"
    log.warning(text, name, kept, len(unreadable), "\n".join(lines))


def _zip_rows(path: Path) -> Iterator[Row]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".cif"))
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: not a readable zip ({error})") from error
    if not names:
        raise DataError(f"{path}: expected a zip with *.cif files, found none")

    def read(name: str) -> RawCrystal:
        try:
            with zipfile.ZipFile(path) as archive:
                return parse_cif(archive.read(name).decode("utf-8", errors="replace"))
        except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError) as error:
            raise CrystalError(f"cannot be read: {error}") from error

    return ((name, PurePosixPath(name).stem, partial(read, name), {}) for name in names)


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        data = path.read_bytes()
        content = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable JSON ({' '.join(str(error).split())[:200]})") from error
    if isinstance(content, Mapping) and _structure_of(content) is None:
        wrapped = next((content[key] for key in ("structures", "entries", "crystals") if key in content), None)
        content = content if wrapped is None else wrapped
    if isinstance(content, Mapping) and _structure_of(content) is not None:
        content = [content]
    entries = list(content.items()) if isinstance(content, Mapping) else None
    if entries is None and isinstance(content, list):
        entries = [(_id_of(entry, position), entry) for position, entry in enumerate(content)]
    if not entries:
        raise DataError(
            f"{path}: expected pymatgen structures in JSON, one, a list or a mapping of ids; got {str(content)[:60]!r}"
        )

    def rows() -> Iterator[Row]:
        for position, (crystal_id, entry) in enumerate(entries):
            # A list under an id holds the candidates of that one target.
            for candidate in entry if isinstance(entry, list) else [entry]:
                read: Callable[[], RawCrystal] = partial(_from_dict, candidate)
                yield str(position + 1), str(crystal_id), read, {}

    return rows()


def _id_of(entry: object, position: int) -> str:
    if isinstance(entry, Mapping):
        properties = entry.get("properties")
        for place in (entry, properties if isinstance(properties, Mapping) else {}):
            for key in ("material_id", "entry_id", "id"):
                if isinstance(place.get(key), (str, int)):
                    return str(place[key])
    return f"row-{position + 1}"


def _structure_of(entry: object) -> Mapping[str, object] | None:
    if not isinstance(entry, Mapping):
        return None
    if "lattice" in entry and "sites" in entry:
        return entry
    return _structure_of(entry.get("structure"))


def _from_dict(entry: object) -> RawCrystal:
    from pymatgen.core import Structure

    found = _structure_of(entry)
    if found is None:
        raise CrystalError(f"no pymatgen structure: {str(entry)[:60]!r}")
    try:
        structure = Structure.from_dict(dict(found))
        if not structure.is_ordered:
            return _refuse("partial occupancies")
        numbers = np.array([site.specie.Z for site in structure], dtype=np.int64)
        return RawCrystal(numbers, np.array(structure.frac_coords), np.array(structure.lattice.matrix))
    except CrystalError:
        raise
    except Exception as error:  # damaged dictionaries raise nearly anything
        raise CrystalError(f"no pymatgen structure: {' '.join(str(error).split())[:200]}") from error


def _refuse(reason: str) -> RawCrystal:
    raise CrystalError(reason)
