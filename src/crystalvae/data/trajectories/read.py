"""Trajectories from files: one file a trajectory, its frames in order, checked, unwrapped and without drift."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from crystalvae.data.trajectories.formats import COMPRESSED, TRAJECTORY_PATTERNS, Frame, read_frames
from crystalvae.data.trajectories.trajectory import Trajectory
from crystalvae.data.trajectories.unwrap import AMBIGUOUS, FrameError, remove_drift, same_cell_vectors, unwrap
from crystalvae.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_LISTED = 5


def read_trajectories(
    path: Path | str,
    *,
    stride: int = 1,
    min_frames: int = 2,
    timestep: float | None = None,
    without_drift: bool = True,
    elements: Sequence[str] | None = None,
    strict: bool = False,
    progress: bool = True,
) -> list[Trajectory]:
    """Read a file, or every trajectory in a folder and its folders, in the order of their names.

    Ids are the names of the files, for a folder with their place in it (`run1/XDATCAR`), without endings such as
    `.extxyz`. Hidden files and folders are passed over. A file that `read_trajectory` refuses is set apart, with file,
    frame and reason in the log and counted; with `strict` it is an error. The other options are `read_trajectory`'s.

    Raises `DataError` where there is nothing to read, or nothing that can be used.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"{place}: no such file or folder")
    paths = _trajectory_files(place) if place.is_dir() else [place]
    if not paths:
        raise DataError(f"{place}: no trajectories; expected files named {', '.join(TRAJECTORY_PATTERNS)}")
    found: list[Trajectory] = []
    refused: list[str] = []
    for file, name in zip(paths, _ids(paths, place), strict=True):
        try:
            found.append(
                read_trajectory(
                    file,
                    id=name,
                    stride=stride,
                    min_frames=min_frames,
                    timestep=timestep,
                    without_drift=without_drift,
                    elements=elements,
                    progress=progress,
                )
            )
        except DataError as error:
            if strict or place.is_file():
                raise
            refused.append(str(error))
    if refused:
        lines = [f"  {reason}" for reason in refused[:_LISTED]]
        lines += [f"  … and {len(refused) - _LISTED} more"] if len(refused) > _LISTED else []
        log.warning("%s: read %d trajectories, set %d apart:\n%s", place, len(found), len(refused), "\n".join(lines))
    if not found:
        raise DataError(f"{place}: no usable trajectory, {len(refused)} set apart; the first: {refused[0]}")
    return found


def read_trajectory(
    path: Path | str,
    *,
    id: str | None = None,  # noqa: A002  the field's own name
    stride: int = 1,
    min_frames: int = 2,
    timestep: float | None = None,
    without_drift: bool = True,
    elements: Sequence[str] | None = None,
    progress: bool = True,
) -> Trajectory:
    """Read one trajectory: extxyz, ASE `.traj`, XDATCAR, a LAMMPS text dump, or whatever else ASE reads.

    Args:
        path: The file. Nothing in it is executed.
        id: Its name, else that of the file without its ending.
        stride: Keep every so many frames. Atoms are followed through all of them first.
        min_frames: A trajectory with fewer frames is refused: the window's length, where windows are made of it.
        timestep: fs from frame to frame, or for a LAMMPS dump from time step to time step. None takes the `time` (fs)
            that each frame states; where one states none it is 1 fs a step, and the log says so.
        without_drift: Keep the centre of mass where it is in the first frame.
        elements: Those of the types 1, 2, … in a LAMMPS dump that has no column `element`.
        progress: Show how far reading has come.

    Every frame is described in the cell vectors that follow from the frame before, and coordinates are unwrapped.
    Energy and forces are kept where every frame has them, single numbers in a frame's description as properties.

    Raises `DataError` naming the file and, where it is one frame's fault, the frame: it cannot be read, has a value
    that is not finite, other atoms or another order than the first, or does not come after the one before.
    """
    file = Path(path).expanduser()
    if stride < 1 or min_frames < 1:
        raise ConfigError(f"stride={stride}, min_frames={min_frames}: expected whole numbers of at least 1")
    if timestep is not None and not (math.isfinite(timestep) and timestep > 0):
        raise ConfigError(f"timestep={timestep}: expected a positive number of fs, or null")
    name = _ids([file], file)[0] if id is None else id
    try:
        frames = list(_with_same_atoms(_shown(read_frames(file, elements=elements), file, progress)))
        kept = -(-len(frames) // stride)
        if kept < min_frames:
            strided = f", {kept} at stride {stride}" if stride > 1 else ""
            raise DataError(f"{file}: too short, frames: {len(frames)}{strided}; expected at least {min_frames}")
        return _assemble(name, frames, file, timestep=timestep, without_drift=without_drift)[::stride]
    except FrameError as error:
        raise DataError(f"{file}, {error}") from error


def _trajectory_files(folder: Path) -> list[Path]:
    named = {
        path for pattern in TRAJECTORY_PATTERNS for ending in COMPRESSED for path in folder.rglob(pattern + ending)
    }
    return sorted(
        path
        for path in named
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _ids(paths: Sequence[Path], place: Path) -> list[str]:
    names = [path.name if path == place else path.relative_to(place).as_posix() for path in paths]
    short = [_without_ending(name) for name in names]
    return [name if short.count(less) > 1 else less for name, less in zip(names, short, strict=True)]


def _without_ending(name: str) -> str:
    for ending in COMPRESSED[1:]:
        name = name.removesuffix(ending)
    for pattern in TRAJECTORY_PATTERNS:
        if pattern.startswith("*."):
            name = name.removesuffix(pattern[1:])
    return name


def _shown(frames: Iterator[Frame], path: Path, progress: bool) -> Iterator[Frame]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not (progress and (console.is_terminal or console.is_jupyter))
    return iter(track(frames, f"reading {path.name}", console=console, transient=True, disable=hidden))


def _with_same_atoms(frames: Iterator[Frame]) -> Iterator[Frame]:
    from ase.data import chemical_symbols

    first: np.ndarray | None = None
    for number, frame in enumerate(frames, start=1):
        first = frame.numbers if first is None else first
        if len(frame.numbers) != len(first):
            raise FrameError(number, f"{len(frame.numbers)} atoms, expected the {len(first)} of frame 1")
        if (frame.numbers != first).any():
            atom = int(np.flatnonzero(frame.numbers != first)[0])
            got, expected = (chemical_symbols[int(numbers[atom])] for numbers in (frame.numbers, first))
            raise FrameError(
                number, f"other elements than in frame 1, or another order: atom {atom + 1} is {got}, was {expected}"
            )
        yield frame


def _assemble(
    name: str, frames: Sequence[Frame], path: Path, *, timestep: float | None, without_drift: bool
) -> Trajectory:
    numbers = frames[0].numbers
    coords = np.stack([frame.frac_coords for frame in frames])
    coords, lattices = same_cell_vectors(coords, np.stack([frame.lattice for frame in frames]))
    coords, longest = unwrap(coords, lattices)
    if longest > AMBIGUOUS:
        log.warning(
            "%s: from one frame to the next atoms move by up to %.0f %% of the cell, so that it is not certain which "
            "way they went; frames closer to each other are needed",
            path, 100 * longest,
        )  # fmt: skip
    if without_drift:
        from ase.data import atomic_masses

        coords = remove_drift(coords, atomic_masses[numbers])
    energies = _known_everywhere([frame.energy for frame in frames], "an energy", path)
    forces = _known_everywhere([frame.forces for frame in frames], "forces", path)
    return Trajectory(
        id=name,
        atom_types=torch.from_numpy(numbers.astype(np.int64)),
        frac_coords=torch.from_numpy(coords),
        lattices=torch.from_numpy(lattices),
        times=torch.from_numpy(_times(frames, path, timestep)),
        energies=None if energies is None else torch.from_numpy(energies),
        forces=None if forces is None else torch.from_numpy(forces),
        properties=_properties(frames),
    )


def _times(frames: Sequence[Frame], path: Path, timestep: float | None) -> np.ndarray:
    stated = [frame.time for frame in frames if frame.time is not None]
    steps = [frame.step for frame in frames if frame.step is not None]
    if timestep is None and len(stated) == len(frames):
        times = np.array(stated, dtype=float)
    else:
        if timestep is None:
            log.info("%s: frames state no time; 1 fs is taken for a step, and timestep=… says what it is", path)
        numbers = steps if len(steps) == len(frames) else range(len(frames))
        times = np.array(numbers, dtype=float) * (1.0 if timestep is None else timestep)
    late = np.flatnonzero(np.diff(times) <= 0)
    if len(late):
        i = int(late[0]) + 1
        raise FrameError(i + 1, f"its time is {times[i]:g} fs, not after the {times[i - 1]:g} fs of the frame before")
    return times


def _known_everywhere(values: Sequence[float | np.ndarray | None], what: str, path: Path) -> np.ndarray | None:
    known = [value for value in values if value is not None]
    if len(known) == len(values):
        return np.array(known, dtype=float)
    if known:
        log.warning("%s: %d of %d frames have %s, so that it is left out", path, len(known), len(values), what)
    return None


def _properties(frames: Sequence[Frame]) -> dict[str, torch.Tensor]:
    names = dict.fromkeys(name for frame in frames for name in frame.values)
    properties = {}
    for name in names:
        values = [frame.values.get(name, math.nan) for frame in frames]
        whole = all(isinstance(value, int) for value in values)
        properties[name] = torch.tensor(values, dtype=torch.int64 if whole else torch.float64)
    return properties
