"""Trajectories: the type, every format in order, atoms followed across borders, what is refused by file and frame."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from crystalvae.data.trajectories import Trajectory, read_trajectories, read_trajectory
from crystalvae.data.trajectories.storage import load_trajectories, save_trajectories
from crystalvae.data.trajectories.unwrap import FrameError, remove_drift, same_cell_vectors, unwrap
from crystalvae.errors import ConfigError, DataError

FRAMES, ATOMS = 40, 3
CELL = np.array([[4.0, 0.0, 0.0], [1.6, 4.2, 0.0], [0.5, 0.4, 5.0]])


def walk(seed: int = 0, frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Unwrapped fractional coordinates that leave the cell time and again, from inside it, and cells that grow."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 1, (1, ATOMS, 3))
    steps = rng.uniform(-0.12, 0.12, (frames - 1, ATOMS, 3)) + 0.08  # all atoms drift along
    return np.concatenate((start, start + np.cumsum(steps, axis=0))), CELL * (1 + 0.002 * np.arange(frames))[
        :, None, None
    ]


def as_written(coords: np.ndarray, cells: np.ndarray, numbers: tuple[int, ...] = (29, 30, 8)) -> list[Atoms]:
    """Frames as a program writes them: wrapped into the cell, with energy, forces, time and a temperature."""
    frames = []
    for i, (frac, cell) in enumerate(zip(coords, cells, strict=True)):
        info = {"time": 5.0 * i, "temperature": 300.0 + i, "regime": i // 20, "name": "text is no property"}
        atoms = Atoms(numbers, scaled_positions=frac % 1.0, cell=cell, pbc=True, info=info)
        atoms.calc = SinglePointCalculator(atoms, energy=-3.0 + 0.1 * i, forces=np.full((len(numbers), 3), 0.01 * i))
        frames.append(atoms)
    return frames


def trajectory(frames: int = 5, **changes: Any) -> Trajectory:
    coords, cells = walk(frames=frames)
    fields: dict[str, Any] = {
        "id": "walk",
        "atom_types": torch.tensor([29, 30, 8]),
        "frac_coords": torch.from_numpy(coords),
        "lattices": torch.from_numpy(cells),
        "times": torch.arange(frames, dtype=torch.float64) * 5.0,
        "energies": torch.arange(frames, dtype=torch.float64),
        "forces": torch.ones(frames, ATOMS, 3, dtype=torch.float64),
        "properties": {"regime": torch.arange(frames) // 2},
    }
    return Trajectory(**{**fields, **changes})


# ---- the type -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("atom_types", torch.ones(3, 1), r"'walk'\.atom_types: expected shape \(3,\), got \(3, 1\)"),
        ("frac_coords", torch.zeros(5, 2, 3), r"'walk'\.frac_coords: expected shape \(5, 3, 3\), got \(5, 2, 3\)"),
        ("lattices", torch.eye(3), r"'walk'\.lattices: expected shape \(5, 3, 3\), got \(3, 3\)"),
        ("energies", torch.zeros(4), r"'walk'\.energies: expected shape \(5,\), got \(4,\)"),
        ("forces", torch.zeros(5, 3), r"'walk'\.forces: expected shape \(5, 3, 3\), got \(5, 3\)"),
        ("properties", {"x": torch.zeros(5, 1)}, r"'walk'\.properties\['x'\]: expected shape \(5,\), got \(5, 1\)"),
        ("times", torch.tensor([0.0, 1.0, 1.0, 2.0, 3.0]), r"'walk'\.times: expected times that rise"),
        ("times", torch.zeros(0), "expected frames and atoms, got 0 frames of 3 atoms"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_fields_that_do_not_fit_are_named_with_both_shapes(field: str, value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        trajectory(**{field: value})


def test_frames_are_crystals_wrapped_into_their_cells():
    entry = trajectory()
    crystals = entry.frames()
    assert len(crystals) == len(entry) == 5
    assert crystals.num_atoms.tolist() == [3] * 5
    assert bool(((crystals.frac_coords >= 0) & (crystals.frac_coords < 1)).all())
    moved = crystals.frac_coords.double() - entry.frac_coords.reshape(-1, 3)
    torch.testing.assert_close(moved, moved.round(), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(crystals.lattices.double(), entry.lattices, atol=1e-6, rtol=0.0)
    assert crystals.properties["regime"].tolist() == [0, 0, 1, 1, 2]
    assert crystals.properties["energy"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert entry.frames(-1).properties["time"].tolist() == [20.0]
    assert entry.frames([3, 1]).properties["time"].tolist() == [15.0, 5.0]


def test_a_slice_with_a_stride_keeps_every_value_of_its_frames():
    entry = trajectory(9)
    part = entry[2:9:3]
    assert part.times.tolist() == [10.0, 25.0, 40.0]
    assert part.energies is not None
    assert part.energies.tolist() == [2.0, 5.0, 8.0]
    assert part.properties["regime"].tolist() == [1, 2, 4]
    torch.testing.assert_close(part.frac_coords, entry.frac_coords[[2, 5, 8]])
    assert trajectory(energies=None, forces=None)[:2].energies is None
    for empty in (slice(3, 3), slice(None, None, -1)):
        with pytest.raises(ValueError, match="forwards in time"):
            entry[empty]


@pytest.mark.usefixtures("without_type_checks")
def test_one_frame_is_no_slice():
    with pytest.raises(TypeError, match=r"frames\(3\)"):
        trajectory()[3]  # pyright: ignore[reportArgumentType]


def test_what_is_written_as_extxyz_comes_back(tmp_path: Path):
    entry = trajectory(7)
    entry.write_extxyz(tmp_path / "walk.extxyz")
    back = read_trajectory(tmp_path / "walk.extxyz", without_drift=False)
    assert back.id == "walk"
    for name in ("atom_types", "frac_coords", "lattices", "times", "energies", "forces"):
        torch.testing.assert_close(getattr(back, name), getattr(entry, name), atol=1e-8, rtol=0.0)
    assert back.properties["regime"].dtype == torch.int64  # a label stays a whole number
    assert back.properties["regime"].tolist() == entry.properties["regime"].tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["walk.extxyz"]


def test_the_cache_file_keeps_trajectories_exactly(tmp_path: Path):
    entries = [trajectory(4), trajectory(6, energies=None, forces=None, properties={})]
    save_trajectories(entries, tmp_path / "kept.safetensors")
    back = load_trajectories(tmp_path / "kept.safetensors")
    for got, expected in zip(back, entries, strict=True):
        assert torch.equal(got.frac_coords, expected.frac_coords)
        assert (got.energies is None) == (expected.energies is None)
        assert set(got.properties) == set(expected.properties)
    (tmp_path / "kept.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="damaged"):
        load_trajectories(tmp_path / "kept.safetensors")


# ---- following atoms ------------------------------------------------------------------------------------------------


def test_unwrapping_gives_back_the_walk_exactly():
    coords, cells = walk()
    got, longest = unwrap(coords % 1.0, cells)
    assert float(np.abs(coords).max()) > 3  # it did leave the cell
    np.testing.assert_allclose(got - got[:1], coords - coords[:1], atol=1e-12)
    assert 0.2 < longest < 0.5


def test_in_a_skewed_cell_the_shortest_step_is_not_the_one_with_the_smallest_coordinates():
    cell = np.array([[[3.0, 0.0, 0.0], [2.9, 1.0, 0.0], [0.0, 0.0, 3.0]]] * 2)
    step = np.array([1.6, 0.35, 0.0])  # one image is 1.3 Å from where it was, straight above in y
    frac = step @ np.linalg.inv(cell[0])
    got, _ = unwrap(np.stack((np.zeros((1, 3)), frac[None] % 1.0)), cell)
    images = [step + np.array([i, j, 0]) @ cell[0] for i in range(-3, 4) for j in range(-3, 4)]
    assert np.linalg.norm(got[1, 0] @ cell[0]) == pytest.approx(min(np.linalg.norm(image) for image in images))


def test_drift_is_that_of_the_mass_and_not_of_the_atoms():
    coords = np.zeros((2, 2, 3))
    coords[1, 0] = 0.3  # the light atom moves by 0.3, the heavy one stays
    got = remove_drift(coords, np.array([1.0, 2.0]))
    np.testing.assert_allclose(got[1], [[0.2] * 3, [-0.1] * 3])
    np.testing.assert_allclose(got[0], coords[0])


def test_reading_removes_the_drift_unless_told_not_to(tmp_path: Path):
    coords, cells = walk()
    ase.io.write(tmp_path / "walk.extxyz", as_written(coords, cells))
    masses = as_written(coords, cells)[0].get_masses()
    for without_drift in (True, False):
        got = read_trajectory(tmp_path / "walk.extxyz", without_drift=without_drift).frac_coords.numpy()
        centre = (got * masses[:, None]).sum(axis=1) / masses.sum()
        moved = float(np.abs(centre - centre[0]).max())
        assert moved < 1e-12 if without_drift else moved > 1.0


def test_the_same_cell_in_other_vectors_goes_on_as_it_was():
    coords, cells = walk(frames=12)
    flipped_coords, flipped_cells = coords.copy(), cells.copy()
    other = np.array([[1, 0, 0], [-1, 1, 0], [0, 1, 1]])  # LAMMPS flips its box like this
    flipped_cells[5:] = other @ cells[5:]
    flipped_coords[5:] = coords[5:] @ np.linalg.inv(other) % 1.0
    got, same = same_cell_vectors(flipped_coords, flipped_cells)
    np.testing.assert_allclose(same, cells, atol=1e-12)
    unwrapped, _ = unwrap(got, same)
    np.testing.assert_allclose(unwrapped - unwrapped[:1], coords - coords[:1], atol=1e-12)
    with pytest.raises(FrameError, match="frame 6: another cell"):
        same_cell_vectors(coords, np.concatenate((cells[:5], 2.2 * cells[5:])))


def test_frames_too_far_apart_to_follow_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    coords, cells = walk()
    ase.io.write(tmp_path / "walk.extxyz", as_written(coords[::4], cells[::4]))
    with caplog.at_level(logging.WARNING):
        read_trajectory(tmp_path / "walk.extxyz")
    assert "not certain which way they went" in caplog.text


# ---- formats --------------------------------------------------------------------------------------------------------


def write_lammps(path: Path, frames: list[Atoms], columns: str = "id element x y z fx fy fz") -> None:
    """A dump as LAMMPS writes it: in an order of its own, with the step's number and no energy."""
    lines = []
    rng = np.random.default_rng(0)
    for i, atoms in enumerate(frames):
        cell = np.array(atoms.cell)
        xy, xz, yz = cell[1, 0], cell[2, 0], cell[2, 1]
        bounds = (
            (min(0.0, xy, xz, xy + xz), cell[0, 0] + max(0.0, xy, xz, xy + xz), xy),
            (min(0.0, yz), cell[1, 1] + max(0.0, yz), xz),
            (0.0, cell[2, 2], yz),
        )
        lines += ["ITEM: TIMESTEP", str(1000 + 50 * i), "ITEM: NUMBER OF ATOMS", str(len(atoms))]
        lines += ["ITEM: BOX BOUNDS xy xz yz pp pp pp", *(" ".join(f"{value:.12g}" for value in row) for row in bounds)]
        lines.append(f"ITEM: ATOMS {columns}")
        symbols, forces = atoms.get_chemical_symbols(), atoms.get_forces()
        types = {symbol: str(1 + sorted(set(symbols)).index(symbol)) for symbol in symbols}
        for atom in rng.permutation(len(atoms)):
            values = dict(zip(["x", "y", "z"], atoms.positions[atom], strict=True))
            values |= dict(zip(["fx", "fy", "fz"], forces[atom], strict=True))
            values |= {"id": atom + 1, "element": symbols[atom], "type": types[symbols[atom]]}
            lines.append(" ".join(str(values[name]) for name in columns.split()))
    path.write_text("\n".join(lines) + "\n")


WRITERS: dict[str, Callable[[Path, list[Atoms]], None]] = {
    "walk.extxyz": ase.io.write,
    "walk.xyz.gz": lambda path, frames: ase.io.write(path, frames, format="extxyz"),
    "walk.traj": ase.io.write,
    "XDATCAR": lambda path, frames: ase.io.write(path, frames, format="vasp-xdatcar"),
    "walk.lammpstrj": write_lammps,
    "walk.xsf": ase.io.write,  # by way of ASE's list of formats
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_walk_in_order_and_unwrapped(tmp_path: Path, name: str):
    coords, cells = walk()
    frames = as_written(coords, cells)
    WRITERS[name](tmp_path / name, frames)
    got = read_trajectory(tmp_path / name, without_drift=False, timestep=None if "lammps" not in name else 0.5)
    assert got.id == ("XDATCAR" if name == "XDATCAR" else "walk.xsf" if name == "walk.xsf" else "walk")
    assert got.atom_types.tolist() == [29, 30, 8]
    moved = got.frac_coords.numpy() - coords
    np.testing.assert_allclose(moved, np.broadcast_to(np.round(moved[:1]), moved.shape), atol=1e-7)
    np.testing.assert_allclose(got.lattices.numpy(), cells, atol=1e-7)
    if name in {"XDATCAR", "walk.xsf"}:
        assert got.times.tolist() == list(range(FRAMES))
    elif "lammps" in name:
        assert got.times.tolist() == [500.0 + 25.0 * i for i in range(FRAMES)]
        assert got.energies is None  # ASE's reader says 0 where a dump says nothing
    else:
        assert got.times.tolist() == [5.0 * i for i in range(FRAMES)]
        assert got.energies is not None
        np.testing.assert_allclose(got.energies.numpy(), -3.0 + 0.1 * np.arange(FRAMES), atol=1e-9)
        assert set(got.properties) == {"temperature", "regime"}
        assert got.properties["temperature"].tolist() == [300.0 + i for i in range(FRAMES)]
        assert got.properties["regime"].tolist() == [i // 20 for i in range(FRAMES)]
    if name not in {"XDATCAR", "walk.xsf"}:
        assert got.forces is not None
        np.testing.assert_allclose(got.forces[:, 1, 2].numpy(), 0.01 * np.arange(FRAMES), atol=1e-8)


def test_atoms_are_followed_through_all_frames_before_a_stride_is_taken(tmp_path: Path):
    coords, cells = walk()
    ase.io.write(tmp_path / "walk.traj", as_written(coords, cells))
    got = read_trajectory(tmp_path / "walk.traj", stride=7, without_drift=False)
    moved = got.frac_coords.numpy() - coords[::7]
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:1], moved.shape), atol=1e-9)
    assert got.times.tolist() == [35.0 * i for i in range(6)]


def test_momenta_give_the_temperature(tmp_path: Path):
    frames = as_written(*walk(frames=3))
    for i, atoms in enumerate(frames):
        del atoms.info["temperature"]
        atoms.set_momenta(np.full((ATOMS, 3), 1.0 + i))
    ase.io.write(tmp_path / "walk.traj", frames)
    ase.io.write(tmp_path / "walk.extxyz", frames)
    expected = [atoms.get_temperature() for atoms in frames]
    for entry in read_trajectories(tmp_path):
        np.testing.assert_allclose(entry.properties["temperature"].numpy(), expected, rtol=1e-6)


def test_values_that_some_frames_lack(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    frames = as_written(*walk(frames=4))
    frames[2].calc = None
    del frames[2].info["temperature"]
    del frames[1].info["time"]
    ase.io.write(tmp_path / "walk.extxyz", frames)
    with caplog.at_level(logging.INFO):
        got = read_trajectory(tmp_path / "walk.extxyz")
    assert got.energies is None
    assert "3 of 4 frames have an energy" in caplog.text
    assert "state no time" in caplog.text
    assert got.properties["temperature"].isnan().tolist() == [False, False, True, False]


class Opened:
    """What a pickle inside a file would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("opened"),)  # pyright: ignore[reportReturnType]


def test_nothing_in_a_traj_file_is_run_or_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickled.traj").write_bytes(b"PickleTrajectory" + pickle.dumps(Opened()))
    with pytest.raises(DataError, match=r"pickled\.traj: no ASE trajectory"):
        read_trajectory(tmp_path / "pickled.traj")
    assert not (tmp_path / "opened").exists()

    from ase.constraints import FixAtoms

    frames = as_written(*walk(frames=3))
    for atoms in frames:
        atoms.set_constraint(FixAtoms([0]))
    ase.io.write(tmp_path / "held.traj", frames)

    def build(*_: object) -> None:
        pytest.fail("a constraint of the file was built")

    monkeypatch.setattr("ase.constraints.dict2constraint", build)
    assert len(read_trajectory(tmp_path / "held.traj")) == 3


def test_a_name_that_looks_like_a_database_is_read_as_the_file_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    frames = as_written(*walk(frames=4))
    for name in ("postgres_run.xyz", "run@2.xyz"):
        ase.io.write(tmp_path / "plain.xyz", frames, format="extxyz")
        (tmp_path / "plain.xyz").rename(tmp_path / name)
        assert len(read_trajectory(Path(name))) == 4


# ---- what is refused ------------------------------------------------------------------------------------------------


def lines_of(tmp_path: Path, name: str) -> list[str]:
    WRITERS[name](tmp_path / name, as_written(*walk(frames=6)))
    return (tmp_path / name).read_text().splitlines(keepends=True)


def damaged_xyz(lines: list[str], what: str) -> list[str]:
    """The file's lines with frame 4 damaged in one way."""
    block = ATOMS + 2
    head, frame, tail = lines[: 3 * block], lines[3 * block : 4 * block], lines[4 * block :]
    count, comment, first, second, third = frame
    words = first.split()
    cell = comment.split('"')
    damaged = {
        "nan": [count, comment, " ".join([words[0], "nan", *words[2:]]) + "\n", second, third],
        "count": ["2\n", comment, first, second],
        "order": [count, comment, second, first, third],
        "no number": ["three\n", comment, first, second, third],
        "gap": ["\n", *frame],
        "end": [count, comment, first],
        "words": [count, comment, "Cu here there everywhere 0 0 0\n", second, third],
        "energy": [count, comment.replace("energy=", "energy=nan old="), first, second, third],
        "time": [count, comment.replace("time=15.0", "time=10.0"), first, second, third],
        "flat": [count, '"'.join([cell[0], "4 0 0 1 0 0 0 0 5", *cell[2:]]), first, second, third],
    }
    return head + damaged[what] + ([] if what == "end" else tail)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("nan", "coordinates not finite"),
        ("count", "2 atoms, expected the 3 of frame 1"),
        ("order", "another order: atom 1 is Zn, was Cu"),
        ("no number", "expected a number of atoms, got 'three'"),
        ("gap", "an empty line instead of a number of atoms"),
        ("end", "1 of its 3 atoms"),
        ("words", "cannot be read"),
        ("energy", "an energy not finite"),
        ("time", r"its time is 10 fs, not after the 10 fs of the frame before"),
        ("flat", "flat|volume|absurd"),
    ],
)
def test_a_bad_frame_is_named_with_its_file(tmp_path: Path, what: str, reason: str):
    lines = damaged_xyz(lines_of(tmp_path, "walk.extxyz"), what)
    (tmp_path / "bad.extxyz").write_text("".join(lines))
    with pytest.raises(DataError, match=rf"bad\.extxyz, frame 4: .*({reason})"):
        read_trajectory(tmp_path / "bad.extxyz")


@pytest.mark.parametrize("name", ["XDATCAR", "walk.lammpstrj"])
def test_a_file_that_breaks_off_names_its_last_frame(tmp_path: Path, name: str):
    lines = lines_of(tmp_path, name)
    (tmp_path / name).write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match=rf"{name}, frame 6: .*2 of its 3 atoms"):
        read_trajectory(tmp_path / name)


def test_a_traj_file_that_breaks_off_is_refused(tmp_path: Path):
    ase.io.write(tmp_path / "walk.traj", as_written(*walk(frames=6)))
    content = (tmp_path / "walk.traj").read_bytes()
    for kept in (len(content) // 2, 200, 20):
        (tmp_path / "half.traj").write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"half\.traj"):
            read_trajectory(tmp_path / "half.traj")


def test_lammps_dumps_say_what_they_lack(tmp_path: Path):
    frames = as_written(*walk(frames=3))
    write_lammps(tmp_path / "types.lammpstrj", frames, "id type x y z fx fy fz")
    with pytest.raises(DataError, match=r"frame 1: atom types, but no column element.*elements="):
        read_trajectory(tmp_path / "types.lammpstrj")
    named = read_trajectory(tmp_path / "types.lammpstrj", elements=["Cu", "O", "Zn"])
    assert named.atom_types.tolist() == [29, 30, 8]
    write_lammps(tmp_path / "nameless.lammpstrj", frames, "element x y z fx fy fz")
    with pytest.raises(DataError, match="no column id"):
        read_trajectory(tmp_path / "nameless.lammpstrj")


def test_what_is_too_short_is_refused_as_the_window_demands(tmp_path: Path):
    frames = as_written(*walk(frames=20))
    ase.io.write(tmp_path / "walk.extxyz", frames)
    assert len(read_trajectory(tmp_path / "walk.extxyz", min_frames=20)) == 20
    with pytest.raises(DataError, match=r"walk\.extxyz: too short, frames: 20, 7 at stride 3; expected at least 8"):
        read_trajectory(tmp_path / "walk.extxyz", stride=3, min_frames=8)
    ase.io.write(tmp_path / "POSCAR", frames[0], format="vasp")
    with pytest.raises(DataError, match="POSCAR: too short, frames: 1; expected at least 2"):
        read_trajectory(tmp_path / "POSCAR")


def test_atoms_without_a_cell_are_no_crystal(tmp_path: Path):
    ase.io.write(tmp_path / "molecule.xyz", [Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])] * 3)
    with pytest.raises(DataError, match=r"molecule\.xyz, frame 1: .*no three-dimensional cell"):
        read_trajectory(tmp_path / "molecule.xyz")


@pytest.mark.parametrize(("name", "content"), [("a.extxyz", b""), ("a.xyz", b"\xff\xfe\x00"), ("a.zzz", b"hello")])
def test_what_is_no_trajectory_is_refused_by_its_name(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_trajectory(tmp_path / name)
    with pytest.raises(DataError, match=r"nothing\.xyz: no such file"):
        read_trajectory(tmp_path / "nothing.xyz")
    with pytest.raises(ConfigError, match="stride=0"):
        read_trajectory(tmp_path / name, stride=0)
    with pytest.raises(ConfigError, match="timestep=-1"):
        read_trajectory(tmp_path / name, timestep=-1.0)


def test_in_a_folder_bad_files_are_set_apart_and_counted_unless_strict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    good = as_written(*walk(frames=6))
    for run in ("run2", "run1", ".hidden", "empty"):
        (tmp_path / run).mkdir()
    for run in ("run2", "run1", ".hidden"):
        ase.io.write(tmp_path / run / "XDATCAR", good, format="vasp-xdatcar")
    ase.io.write(tmp_path / "a.extxyz", good)
    ase.io.write(tmp_path / "a.traj", good)
    (tmp_path / "b.extxyz").write_text("".join(damaged_xyz(lines_of(tmp_path, "walk.extxyz"), "nan")))
    (tmp_path / "notes.txt").write_text("not looked at")
    with caplog.at_level(logging.WARNING):
        found = read_trajectories(tmp_path)
    assert [entry.id for entry in found] == ["a.extxyz", "a.traj", "run1/XDATCAR", "run2/XDATCAR", "walk"]
    assert "read 5 trajectories, set 1 apart" in caplog.text
    assert "b.extxyz, frame 4: coordinates not finite" in caplog.text
    with pytest.raises(DataError, match=r"b\.extxyz, frame 4"):
        read_trajectories(tmp_path, strict=True)
    with pytest.raises(DataError, match="no usable trajectory, 6 set apart"):
        read_trajectories(tmp_path, min_frames=7)
    with pytest.raises(DataError, match="no trajectories; expected files named"):
        read_trajectories(tmp_path / "empty")
