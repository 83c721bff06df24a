"""Crystals out of plain data that somebody else wrote, read by hand: lattice, species and coordinates, nothing else.

The decoders of pymatgen (monty) and ASE build whatever classes such data name; a file could so run code. Here nothing
is looked up by a name from the file, and what is not needed is not looked at.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import gemmi
import numpy as np
import torch

from crystalvae.data.cif import FULL_OCCUPANCY, CrystalError, RawCrystal, check_lattice
from crystalvae.data.lattice import lattice_from_parameters

_ULM_MAGIC = (b"- of Ulm", b"AFFormat")
_TRAJECTORY = "ASE-Trajectory"
_ARRAYS = {"float64", "float32", "int64", "int32", "uint8", "int8", "bool"}
_MAX_FRAMES = 10_000_000


@dataclass(frozen=True)
class Frame:
    """Atoms of a file: numbers (n,), Cartesian positions (n, 3) and cell rows (3, 3) in Å, and what is said of them."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    info: Mapping[str, Any] = field(default_factory=dict)

    def crystal(self) -> RawCrystal:
        """Return it as a crystal; `CrystalError` where it has no three-dimensional cell, or numbers do not fit."""
        if self.cell.shape != (3, 3) or self.positions.shape != (len(self.numbers), 3):
            raise CrystalError(
                f"positions of shape {self.positions.shape} for {len(self.numbers)} atoms in a cell of "
                f"{self.cell.shape}; expected one row of 3 for each atom, and 3 x 3"
            )
        if not bool(np.any(self.cell, axis=1).all()):
            raise CrystalError("no three-dimensional cell")
        check_lattice(self.cell)
        return RawCrystal(self.numbers, np.linalg.solve(self.cell.T, self.positions.T).T, self.cell)


def structure_crystal(structure: Mapping[str, object]) -> RawCrystal:
    """Return the crystal of pymatgen's dictionary of a `Structure`; `CrystalError` where it does not describe one.

    Site properties, charges, oxidation states and classes that it names are not looked at.
    """
    try:
        lattice = _lattice(cast("Any", structure["lattice"]))
        sites = list(cast("Any", structure["sites"]))
        numbers = np.array([_element(site["species"]) for site in sites], dtype=np.int64)
        fractional = [_triple(site["abc"]) if "abc" in site else None for site in sites]
        check_lattice(lattice)
        frac_coords = np.array(
            [
                np.linalg.solve(lattice.T, _triple(site["xyz"])) if frac is None else frac
                for site, frac in zip(sites, fractional, strict=True)
            ]
        ).reshape(-1, 3)
    except CrystalError:
        raise
    except KeyError as error:
        raise CrystalError(f"no pymatgen structure: {str(error)[:100]} is missing") from error
    except (TypeError, ValueError, AttributeError, OverflowError, np.linalg.LinAlgError) as error:
        raise CrystalError(f"no pymatgen structure: {' '.join(str(error).split())[:200]}") from error
    return RawCrystal(numbers, frac_coords, lattice)


def database_frames(path: Path) -> Iterator[Frame]:
    """Give the rows of an ASE database (SQLite), opened for reading alone; raises `sqlite3.Error` or `ValueError`."""
    query = "SELECT numbers, positions, cell, key_value_pairs, data FROM systems ORDER BY id"
    with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=20)) as connection:
        for numbers, positions, cell, pairs, data in connection.execute(query):
            info = {**_json_numbers(data), **_json_numbers(pairs)}
            yield Frame(
                np.frombuffer(numbers or b"", "<i4").astype(np.int64),
                np.frombuffer(positions or b"", "<f8").reshape(-1, 3),
                np.frombuffer(cell or b"", "<f8").reshape(3, 3),
                info,
            )


def trajectory_frames(path: Path) -> Iterator[Frame]:
    """Give the images of an ASE trajectory (`.traj`); raises `ValueError` or `OSError` where it is none."""
    content = np.memmap(path, dtype=np.uint8, mode="r")
    if len(content) < 48 or content[:8].tobytes() not in _ULM_MAGIC:
        raise ValueError("not an ASE trajectory of today's format (ulm)")
    tag = content[8:24].tobytes().decode("ascii", errors="replace").rstrip()
    count, start = (int(value) for value in np.frombuffer(content[32:48].tobytes(), "<i8"))
    if tag != _TRAJECTORY or not 0 <= count <= min(_MAX_FRAMES, len(content) // 8) or not 0 <= start <= len(content):
        raise ValueError(f"not an ASE trajectory, or a damaged one: {tag!r} with {count} images")
    offsets = np.frombuffer(_slice(content, start, 8 * count), "<i8").tolist()
    header: dict[str, Any] = {}
    for offset in offsets:
        size = int(np.frombuffer(_slice(content, offset, 8), "<i8")[0])
        image = json.loads(_slice(content, offset + 8, size))
        if not isinstance(image, dict):
            raise ValueError("an image that is no JSON object")  # noqa: TRY004  of the file, not of an argument
        order = "<" if image.get("_little_endian", True) is True else ">"
        header = header or image
        numbers = image if "numbers" in image or "numbers." in image else header
        info = image.get("info", image.get("info."))
        yield Frame(
            _array(numbers, "numbers", content, order).astype(np.int64),
            _array(image, "positions", content, order).astype(np.float64),
            _array(image, "cell", content, order).astype(np.float64),
            _numbers_of(info) if isinstance(info, dict) else {},
        )


def _lattice(lattice: Mapping[str, Any]) -> np.ndarray:
    if "matrix" in lattice:
        matrix = np.array(lattice["matrix"], dtype=np.float64)
        if matrix.shape != (3, 3):
            raise CrystalError(f"no pymatgen structure: a lattice of shape {matrix.shape}, expected 3 x 3")
        return matrix
    lengths = torch.tensor([[float(lattice[name]) for name in "abc"]], dtype=torch.float64)
    degrees = torch.tensor([[float(lattice[name]) for name in ("alpha", "beta", "gamma")]], dtype=torch.float64)
    return lattice_from_parameters(lengths, torch.deg2rad(degrees))[0].numpy()


def _element(species: Any) -> int:
    """Return the atomic number of a site's only species."""
    entries = species if isinstance(species, list) else [species]
    if len(entries) != 1:
        raise CrystalError("partial occupancies")
    entry = entries[0] if isinstance(entries[0], Mapping) else {"element": entries[0]}
    occupancy = float(entry.get("occu", 1))
    if not abs(occupancy - 1) <= FULL_OCCUPANCY:
        raise CrystalError("partial occupancies")
    symbol = entry["element"]
    number = gemmi.Element(symbol).atomic_number if isinstance(symbol, str) and len(symbol) <= 3 else 0
    if number < 1 or (gemmi.Element(number).name != symbol and symbol not in {"D", "T"}):
        raise CrystalError(f"no pymatgen structure: {str(symbol)[:20]!r} is no element")
    return number


def _triple(values: Any) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    if array.shape != (3,):
        raise CrystalError(f"no pymatgen structure: coordinates of shape {array.shape}, expected 3 numbers")
    return array


def _json_numbers(content: Any) -> dict[str, Any]:
    """Return numbers and texts of what a database row says beside its atoms; anything else there is left."""
    try:
        if isinstance(content, bytes):  # since version 9: where the JSON begins, arrays, the JSON
            content = content[int.from_bytes(content[:8], "little") :]
        found = json.loads(content or "{}")
    except (ValueError, RecursionError):
        return {}
    return _numbers_of(found) if isinstance(found, dict) else {}


def _numbers_of(found: Mapping[str, Any]) -> dict[str, Any]:
    def small(value: Any) -> bool:
        return isinstance(value, str) or (isinstance(value, (int, float)) and abs(value) < 1e300)

    return {str(name): value for name, value in found.items() if small(value)}


def _slice(content: np.ndarray, start: int, size: int) -> bytes:
    if not 0 <= start <= start + size <= len(content):
        raise ValueError(f"{size} bytes at {start}, beyond the file's {len(content)}")
    return content[start : start + size].tobytes()


def _array(image: Mapping[str, Any], name: str, content: np.ndarray, order: str) -> np.ndarray:
    if name in image:
        return np.array(image[name], dtype=np.float64)
    shape, kind, start = image[f"{name}."]["ndarray"]
    if kind not in _ARRAYS or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"{name}: an array of {kind} and shape {shape}")
    data_type = np.dtype(kind).newbyteorder(order)  # pyright: ignore[reportArgumentType]
    return np.frombuffer(_slice(content, start, math.prod(shape) * data_type.itemsize), data_type).reshape(shape)
