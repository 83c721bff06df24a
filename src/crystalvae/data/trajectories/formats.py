"""Frames from files: what each format says of a frame, as plain arrays, in the order of the file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from crystalvae.data.cif import CrystalError, check_lattice
from crystalvae.data.trajectories.unwrap import FrameError
from crystalvae.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

LAMMPS_NAMES = (".lammpstrj", ".dump")
TRAJECTORY_PATTERNS = (
    "*.extxyz", "*.xyz", "*.traj", *(f"*{name}" for name in LAMMPS_NAMES), "*XDATCAR*", "*OUTCAR*", "*vasprun*.xml",
)  # fmt: skip
"""Files that are looked for in folders; with `.gz`, `.bz2` or `.xz` at the end as well."""
COMPRESSED = ("", ".gz", ".bz2", ".xz")
SERVERS = {"mysql", "postgresql"}
"""What ASE would connect to where a name looks like the address of a database."""
_NO_PROPERTIES = {"time", "timestep", "energy"}


@dataclass(frozen=True)
class Frame:
    """One frame as a file has it: coordinates not unwrapped, and None for what it does not say.

    `step` is the number of the time step where the format gives that instead of a time. `values` are single numbers.
    """

    numbers: np.ndarray
    frac_coords: np.ndarray
    lattice: np.ndarray
    energy: float | None = None
    forces: np.ndarray | None = None
    time: float | None = None
    step: int | None = None
    values: Mapping[str, float | int] = field(default_factory=dict)


def read_frames(path: Path, *, elements: Sequence[str] | None = None) -> Iterator[Frame]:
    """Return the frames of a file one by one: extxyz, ASE `.traj`, XDATCAR, LAMMPS dumps, and what else ASE reads.

    `elements` names those of the atom types 1, 2, … in a LAMMPS dump that has no column `element`.

    Raises `DataError` where the file is missing or cannot be read as a whole, and, while going through it,
    `FrameError` for the frame that cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    kind = _kind(path)
    if kind == "traj":
        return _checked(_traj_frames(path))
    if kind == "lammps-dump-text":
        return _checked(_lammps_frames(path, elements))
    if kind == "vasp-xdatcar":
        return _checked(_xdatcar_frames(path))
    if kind == "extxyz":
        try:
            _check_xyz(path)
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({_first_line(error)})") from error
        return _checked(_ase_frames(path, kind))
    return _checked(_ase_frames(path, kind), whole=path)


def _kind(path: Path) -> str:
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    name = path.name
    for ending in COMPRESSED[1:]:
        name = name.removesuffix(ending)
    if "XDATCAR" in name:
        return "vasp-xdatcar"
    if name.endswith(LAMMPS_NAMES):
        return "lammps-dump-text"
    if name.endswith((".extxyz", ".xyz")):
        return "extxyz"
    try:
        kind = filetype(str(path.resolve()))
        known = kind in ioformats and ioformats[kind].can_read
    except (UnknownFileTypeError, OSError, EOFError) as error:
        raise DataError(f"{path}: ASE does not know what kind of file it is ({_first_line(error)})") from error
    if not known or kind in SERVERS:
        raise DataError(f"{path}: ASE reads no files of this kind ({kind}); expected extxyz, traj, XDATCAR, …")
    return kind


def _checked(frames: Iterator[Frame], *, whole: Path | None = None) -> Iterator[Frame]:
    """Pass frames on, and turn whatever a reader raises on a damaged one into `FrameError`.

    With `whole`, the file of a reader that may go through all of it at first, no frame is named where nothing came.
    """
    number = 0
    while True:
        number += 1
        try:
            frame = next(frames)
        except StopIteration:
            return
        except (FrameError, DataError):
            raise
        except Exception as error:  # readers of damaged bytes raise nearly anything; all of it means this
            if whole is not None and number == 1:
                raise DataError(f"{whole}: ASE cannot read it ({_first_line(error)})") from error
            raise FrameError(number, f"cannot be read ({_first_line(error)})") from error
        problem = _problem(frame)
        if problem:
            raise FrameError(number, problem)
        yield frame


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _problem(frame: Frame) -> str:
    if not len(frame.numbers):
        return "no atoms"
    try:
        check_lattice(frame.lattice)
    except CrystalError as error:
        return str(error)
    if frame.forces is not None and np.shape(frame.forces) != frame.frac_coords.shape:
        return f"forces of shape {np.shape(frame.forces)}, expected {frame.frac_coords.shape}"
    for name, values in (("coordinates", frame.frac_coords), ("forces", frame.forces), ("an energy", frame.energy)):
        if values is not None and not np.isfinite(values).all():
            return f"{name} not finite"
    return ""


# ---- ASE's readers --------------------------------------------------------------------------------------------------


def _ase_frames(path: Path, kind: str) -> Iterator[Frame]:
    import ase.io

    # A resolved path, since ASE takes some relative ones for addresses, and @ for the number of a frame.
    found = ase.io.iread(str(path.resolve()), index=":", format=kind, do_not_split_by_at_sign=True)
    return map(_from_atoms, found)


def _from_atoms(atoms: Atoms) -> Frame:
    if atoms.cell.rank < 3:
        raise ValueError("no three-dimensional cell")
    check_lattice(np.asarray(atoms.cell))
    results = getattr(atoms.calc, "results", {})
    energy = results.get("energy")
    values = _numbers(atoms.info)
    if "momenta" in atoms.arrays:
        values.setdefault("temperature", float(atoms.get_temperature()))
    return Frame(
        numbers=atoms.numbers.copy(),
        frac_coords=atoms.get_scaled_positions(wrap=False),
        lattice=np.array(atoms.cell),
        energy=None if energy is None else float(energy),
        forces=results.get("forces"),
        time=_time(atoms.info),
        values=values,
    )


def _numbers(info: Mapping[str, Any]) -> dict[str, float | int]:
    """Return the single numbers of a frame's description; whole ones, such as labels, stay whole."""
    return {
        str(name): int(value) if isinstance(value, (int, np.integer)) else float(value)
        for name, value in info.items()
        if _is_number(value) and name not in _NO_PROPERTIES
    }


def _time(info: Mapping[str, Any]) -> float | None:
    return float(info["time"]) if _is_number(info.get("time")) else None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) and math.isfinite(value)


def _check_xyz(path: Path) -> None:
    """Find the frame at which an xyz file stops being one, which ASE's reader does not tell, or passes over."""
    from ase.io.formats import open_with_compression

    number = 0
    with open_with_compression(str(path), "r") as file:
        while line := file.readline():
            number += 1
            if not line.strip():
                if any(rest.strip() for rest in file):
                    raise FrameError(number, "an empty line instead of a number of atoms, and more after it")
                return
            try:
                count = int(line)
            except ValueError as error:
                raise FrameError(number, f"expected a number of atoms, got {line.strip()[:40]!r}") from error
            rows = [file.readline() for _ in range(count + 1)]
            missing = sum(not row.strip() for row in rows[1:])
            if missing:
                raise FrameError(number, f"{count - missing} of its {count} atoms: the file ends, or lines are empty")


# ---- ASE's .traj: its numbers alone ---------------------------------------------------------------------------------


def _traj_frames(path: Path) -> Iterator[Frame]:
    """Read numbers, positions, cells, energies and forces; constraints and calculators that a file names stay text."""
    from ase.io import ulm

    try:
        file: Any = ulm.open(str(path), "r")
    except Exception as error:  # damaged bytes may raise nearly anything
        raise DataError(f"{path}: no ASE trajectory, or a damaged one ({_first_line(error)})") from error
    with file:
        if file.get_tag() != "ASE-Trajectory":
            raise DataError(f"{path}: no ASE trajectory, its tag is {file.get_tag()!r}")
        numbers, masses = file.get("numbers"), file.get("masses")  # of all frames but those that have their own
        for i in range(len(file)):
            frame = file[i]
            yield _from_ulm(frame, np.asarray(frame.get("numbers", numbers)), frame.get("masses", masses))


def _from_ulm(entry: Any, numbers: np.ndarray, masses: object) -> Frame:
    lattice, positions = np.asarray(entry.cell, dtype=float), np.asarray(entry.positions, dtype=float)
    if lattice.shape != (3, 3) or not lattice.any(axis=1).all():
        raise ValueError("no three-dimensional cell")
    check_lattice(lattice)
    info = entry.get("info") or {}
    values = _numbers(info)
    momenta = entry.get("momenta")
    if momenta is not None and "temperature" not in values:
        values["temperature"] = _temperature(np.asarray(momenta), numbers, masses)
    calculator = entry.get("calculator")
    energy = None if calculator is None else calculator.get("energy")
    forces = None if calculator is None else calculator.get("forces")
    return Frame(
        numbers=numbers,
        frac_coords=positions @ np.linalg.inv(lattice),
        lattice=lattice,
        energy=None if energy is None else float(energy),
        forces=None if forces is None else np.asarray(forces, dtype=float),
        time=_time(info),
        values=values,
    )


def _temperature(momenta: np.ndarray, numbers: np.ndarray, masses: object) -> float:
    from ase import units
    from ase.data import atomic_masses

    kilograms = atomic_masses[numbers] if masses is None else np.asarray(masses)
    return float((momenta**2 / kilograms[:, None]).sum() / (3 * len(numbers) * units.kB))


# ---- LAMMPS and VASP: one frame at a time, so that errors name it ----------------------------------------------------


def _lammps_frames(path: Path, elements: Sequence[str] | None) -> Iterator[Frame]:
    """Read a text dump, atoms sorted by id; the energy of 0 that ASE puts beside forces is none."""
    import ase.io

    options: dict[str, Any] = {"specorder": list(elements)} if elements else {}
    for number, lines in enumerate(_lammps_blocks(path), start=1):
        step = int(lines[1])
        if lines[2].startswith("ITEM: UNITS"):  # stands in the first frame alone, if at all
            options["units"] = lines[3].strip()
        columns = next((line.split()[2:] for line in lines if line.startswith("ITEM: ATOMS")), [])
        if "id" not in columns:
            raise FrameError(
                number, "no column id, without which LAMMPS writes atoms in any order: dump … id element x y z"
            )
        if not {"element", "mass"} & set(columns) and not elements:
            raise FrameError(
                number,
                "atom types, but no column element: say which elements the types 1, 2, … are with elements=[Cu,Zn], or "
                "write it with dump_modify … element Cu Zn",
            )
        atoms = cast("Atoms", ase.io.read(StringIO("".join(lines)), index=0, format="lammps-dump-text", **options))
        count = int(lines[next(i for i, line in enumerate(lines) if line.startswith("ITEM: NUMBER")) + 1])
        if len(atoms) != count:
            raise FrameError(number, f"{len(atoms)} of its {count} atoms")
        yield replace(_from_atoms(atoms), energy=None, time=None, step=step)


def _lammps_blocks(path: Path) -> Iterator[list[str]]:
    from ase.io.formats import open_with_compression

    with open_with_compression(str(path), "r") as file:
        lines: list[str] = []
        for line in file:
            if line.startswith("ITEM: TIMESTEP") and lines:
                yield lines
                lines = []
            lines.append(line)
        yield lines


def _xdatcar_frames(path: Path) -> Iterator[Frame]:
    """Read VASP's XDATCAR, where a new header stands before every frame if the cell changes."""
    from ase.data import atomic_numbers
    from ase.io.formats import open_with_compression

    lattice, numbers = np.zeros((3, 3)), np.zeros(0, dtype=np.int64)
    with open_with_compression(str(path), "r") as file:
        while line := file.readline():
            if "configuration=" not in line:
                if not line.strip() and not any(rest.strip() for rest in file):
                    return
                header = [file.readline().split() for _ in range(6)]
                scale = float(header[0][0])
                lattice = np.array([[float(value) for value in row] for row in header[1:4]])
                # A negative number is the volume.
                lattice = lattice * (scale if scale > 0 else (-scale / abs(np.linalg.det(lattice))) ** (1 / 3))
                symbols = [atomic_numbers[name.replace("/", "_").partition("_")[0]] for name in header[4]]
                numbers = np.repeat(symbols, [int(count) for count in header[5]])
                continue
            rows = [file.readline().split()[:3] for _ in numbers]
            missing = sum(len(row) < 3 for row in rows)
            if missing:
                raise ValueError(f"{len(rows) - missing} of its {len(rows)} atoms have coordinates")
            yield Frame(numbers, np.array(rows, dtype=float), lattice)
