"""Crystals from anywhere: tables, CIFs, pymatgen's JSON, data sets of this package, and anything ASE reads."""

from __future__ import annotations

import gzip
import json
import math
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from crystalvae.data.cif import CrystalError, RawCrystal
from crystalvae.data.cif_files import folder_rows, zip_rows
from crystalvae.data.dataset import CrystalDataset, Row, assemble
from crystalvae.data.dataset_file import load_dataset
from crystalvae.data.extxyz import extxyz_frames
from crystalvae.data.plain_crystals import Frame, database_frames, structure_crystal, trajectory_frames
from crystalvae.data.tables import TABLE_SUFFIXES, table_rows
from crystalvae.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

JSON_SUFFIXES = (".json", ".json.gz")
MAX_JSON_BYTES = 512 * 2**20
"""Packed JSON that unpacks to more is refused: about 200,000 structures, which take some ten times as much memory."""
_IDS = {"material_id", "id"}
ASE_FORMATS = {
    "extxyz", "xyz", "cif", "vasp", "vasp-out", "vasp-xdatcar", "vasp-xml", "xsf", "xsd", "xtd", "res", "aims",
    "aims-output", "abinit-in", "abinit-out", "castep-castep", "castep-cell", "castep-geom", "castep-md",
    "cp2k-restart", "crystal", "cube", "cfg", "dftb", "gen", "dmol-arc", "dmol-car", "dmol-incoor", "elk",
    "espresso-in", "espresso-out", "exciting", "gpaw-out", "gpumd", "gromacs", "gromos", "lammps-data",
    "lammps-dump-text", "magres", "mustem", "nwchem-in", "nwchem-out", "prismatic", "proteindatabank", "qbox",
    "rmc6f", "siesta-xv", "struct", "struct_out", "sys", "v-sim",
}  # fmt: skip
"""Formats that ASE reads without building or running what a file names; databases and trajectories are read here."""


def read_crystals(
    path: Path | str,
    *,
    max_atoms: int | None = None,
    niggli: bool = False,
    unique_ids: bool = False,
    strict: bool = False,
    allow_empty: bool = False,
) -> CrystalDataset:
    """Read crystals from a file or folder, by default as they are; what cannot be used is reported and in `skipped`.

    Reads a folder of CIFs or a zip of them, a table with a `cif` column (CSV, feather, parquet), pymatgen's JSON (one
    structure, a list, or a mapping of ids; entries with a structure too; plain or .gz), a data set of this package, and
    any file that ASE reads (extxyz, db, POSCAR, …), all its frames. Ids are material ids where there are such, else
    names of files or numbers; numeric columns of tables and numbers in ASE's `info` become properties.

    Args:
        path: File or folder.
        max_atoms: Skip crystals with more atoms than this.
        niggli: Reduce cells (Niggli) and bring them into the standard orientation, as training data are; else cells
            stay those of the file.
        unique_ids: Skip crystals whose id was seen before.
        strict: Raise `DataError` for the first crystal that cannot be used, instead of skipping it.
        allow_empty: Return an empty set where no crystal can be used, instead of raising `DataError`.

    Raises `DataError` where there is nothing to read: no such file, an empty folder, a file of no known kind.
    """
    path = Path(path).expanduser()
    check_readable(path)
    if path.suffix == ".safetensors" and not (niggli or unique_ids or max_atoms is not None):
        return replace(load_dataset(path), skipped=())  # what was skipped on the way into it is not in this file
    return assemble(
        _rows(path),
        source=str(path),
        max_atoms=max_atoms,
        niggli=niggli,
        unique_ids=unique_ids,
        strict=strict,
        allow_empty=allow_empty,
    )


def check_readable(path: Path) -> None:
    """Raise `DataError` unless there is a file or folder of that name: what else there may be is not opened.

    A named pipe would make its reader wait for somebody who writes.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file or folder; expected CIFs, a table with a cif column, JSON, extxyz or db"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a folder that may not be entered
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path}: neither a file nor a folder, but a pipe or device; expected a file or folder")


def _rows(path: Path) -> Iterator[Row]:
    if path.is_dir():
        return folder_rows(path)
    if path.name.endswith(TABLE_SUFFIXES):
        return table_rows(path)
    if path.suffix == ".safetensors":
        return _dataset_rows(load_dataset(path))
    if path.suffix == ".zip":
        return zip_rows(path)
    if path.name.endswith(JSON_SUFFIXES):
        return _json_rows(path)
    if path.suffix in {".extxyz", ".xyz"}:
        return _extxyz_rows(path)
    return _ase_rows(path)


def _dataset_rows(dataset: CrystalDataset) -> Iterator[Row]:
    properties = {name: values.tolist() for name, values in dataset.crystals.properties.items()}
    for position, (crystal_id, arrays) in enumerate(zip(dataset.ids, dataset.crystals.to_arrays(), strict=True)):
        yield crystal_id, partial(RawCrystal, *arrays), {name: values[position] for name, values in properties.items()}


def _extxyz_rows(path: Path) -> Iterator[Row]:
    for number, found in enumerate(extxyz_frames(path), start=1):
        if isinstance(found, CrystalError):
            yield f"{path.stem}-{number}", partial(_refused, found), {}
        else:
            yield _frame_row(path, number, found)


def _refused(reason: CrystalError) -> RawCrystal:
    raise reason


def _ase_rows(path: Path) -> Iterator[Row]:
    try:
        frames = _frames(path)
    except Exception as error:  # ASE's readers raise nearly anything on damaged files
        raise DataError(f"{path}: ASE cannot read it ({' '.join(str(error).split())[:200]})") from error
    return (_frame_row(path, number, frame) for number, frame in enumerate(frames, start=1))


def _frames(path: Path) -> list[Frame]:
    import ase.io
    from ase.io.formats import filetype

    if path.suffix == ".db":
        return list(database_frames(path))
    kind = filetype(str(path.absolute()))
    if kind == "traj":
        return list(trajectory_frames(path))
    if kind not in ASE_FORMATS:
        raise ValueError(
            f"its format is {kind}, which is not read here, as its reader builds what a file asks for; convert it to "
            "extxyz"
        )
    atoms = cast("list[Atoms]", ase.io.read(path.absolute(), index=":", format=kind, do_not_split_by_at_sign=True))
    return [Frame(entry.numbers, entry.positions, np.asarray(entry.cell), entry.info) for entry in atoms]


def _frame_row(path: Path, number: int, frame: Frame) -> Row:
    info = frame.info
    crystal_id = str(info.get("material_id", info.get("id", f"{path.stem}-{number}")))
    properties: dict[str, float | str] = {
        str(name): float(value)
        for name, value in info.items()
        if isinstance(value, Real)  # NumPy's numbers too, of which ASE reads whole ones as integers
        and not isinstance(value, (bool, np.bool_))
        and math.isfinite(value)
        and name not in _IDS
    }
    properties |= {str(name): value for name, value in info.items() if isinstance(value, str) and name not in _IDS}
    return crystal_id, frame.crystal, properties


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        content = json.loads(_unpacked(path) if path.suffix == ".gz" else path.read_bytes())
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
        for crystal_id, entry in entries:
            # A list under an id holds the candidates of that one target.
            for candidate in entry if isinstance(entry, list) else [entry]:
                read: Callable[[], RawCrystal] = partial(_from_dict, candidate)
                yield str(crystal_id), read, {}

    return rows()


def _unpacked(path: Path) -> bytes:
    with gzip.open(path) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_JSON_BYTES // 2**20} MiB; divide it")
    return data


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
    found = _structure_of(entry)
    if found is None:
        raise CrystalError(f"no pymatgen structure: {str(entry)[:60]!r}")
    return structure_crystal(found)
