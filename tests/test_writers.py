"""Exported crystals: every format read back with pymatgen, ASE and gemmi, and folders that are never half-written."""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import ase.db
import ase.io
import gemmi
import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Structure
from pymatgen.io.cif import CifParser
from pymatgen.io.vasp import Poscar

from crystalvae.data import writers
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.writers import FORMATS, check_output_dir, default_ids, write_crystals
from crystalvae.errors import ConfigError, DataError, OutputError
from crystalvae.evaluation.validity.structure import describe


def random_crystals(count: int, seed: int = 0) -> CrystalBatch:
    """Crystals of any orientation and handedness, elements mixed, one atom in a box each so that none are too close."""
    rng = np.random.default_rng(seed)
    boxes = np.stack(np.meshgrid(*[np.arange(2)] * 3), axis=-1).reshape(-1, 3) / 2

    def crystal() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        atoms = rng.integers(1, 9)
        coords = boxes[rng.permutation(8)[:atoms]] + rng.uniform(0.05, 0.2, (atoms, 3))
        lattice = 6 * np.linalg.qr(rng.standard_normal((3, 3)))[0] + rng.uniform(-1, 1, (3, 3))
        return rng.choice([1, 6, 8, 11, 17, 26, 2, 94], atoms), coords, lattice

    return CrystalBatch.from_arrays(crystal() for _ in range(count))


def write(crystals: CrystalBatch, folder: Path, **options: object) -> list[Path]:
    return write_crystals(crystals, folder, table=describe(crystals), **options)  # pyright: ignore[reportArgumentType]


def contents(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same_atoms(first: Structure, second: Structure) -> None:
    """Same cell, same atoms in the same order, within 1e-6 Å."""
    assert first.atomic_numbers == second.atomic_numbers
    np.testing.assert_allclose(first.lattice.matrix, second.lattice.matrix, atol=1e-6)
    shift = np.array(first.frac_coords) - np.array(second.frac_coords)
    np.testing.assert_allclose((shift - np.round(shift)) @ first.lattice.matrix, 0.0, atol=1e-6)


def to_structure(atoms: ase.Atoms) -> Structure:
    return Structure(np.array(atoms.cell), atoms.numbers, atoms.get_scaled_positions(wrap=False))


def read_cif(path: Path) -> Structure:
    # pymatgen moves coordinates near 1/3 and 2/3 unless told otherwise, and sorts atoms by element; labels keep order.
    structure = CifParser(path, frac_tolerance=0).parse_structures(primitive=False)[0]
    return Structure.from_sites(sorted(structure, key=lambda site: int(re.sub(r"\D", "", site.label))))


@pytest.fixture(scope="module")
def crystals() -> CrystalBatch:
    return random_crystals(12)


@pytest.fixture(scope="module")
def folder(crystals: CrystalBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "samples"
    write(crystals, folder, formats=list(FORMATS))
    return folder


def test_all_formats_hold_the_same_structures_in_the_same_order(crystals: CrystalBatch, folder: Path):
    frames = ase.io.read(folder / "samples.extxyz", index=":")
    rows = list(ase.db.connect(folder / "samples.db").select())
    assert len(frames) == len(rows) == len(crystals)
    for name, frame, row in zip(default_ids(len(crystals)), frames, rows, strict=True):
        reference = read_cif(folder / f"{name}.cif")
        same_atoms(reference, Poscar.from_file(folder / f"{name}.vasp", check_for_potcar=False).structure)
        same_atoms(reference, to_structure(ase.io.read(folder / f"{name}.vasp")))
        same_atoms(reference, to_structure(frame))
        same_atoms(reference, to_structure(row.toatoms()))
        assert row.data["id"] == name
        assert all(frame.pbc)


def test_what_is_written_is_what_was_given(crystals: CrystalBatch, folder: Path):
    for name, frame, (numbers, coords, lattice) in zip(
        default_ids(len(crystals)), ase.io.read(folder / "samples.extxyz", index=":"), crystals.to_arrays(), strict=True
    ):
        assert frame.numbers.tolist() == numbers.tolist()
        # Orientation is a choice, distances are not: all those of the crystal, images included, and its chirality.
        given = Structure(lattice, numbers, coords)
        np.testing.assert_allclose(to_structure(frame).distance_matrix, given.distance_matrix, atol=1e-6)
        rotation = np.linalg.lstsq(lattice, np.array(frame.cell) * np.sign(np.linalg.det(lattice)), rcond=None)[0]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(rotation) == pytest.approx(1.0, abs=1e-6)
        moved = frame.positions - coords @ lattice @ rotation
        shifts = moved @ np.linalg.inv(np.array(frame.cell))
        np.testing.assert_allclose((shifts - np.round(shifts)) @ np.array(frame.cell), 0.0, atol=1e-5)
        small = gemmi.read_small_structure(str(folder / f"{name}.cif"))
        assert [site.element.atomic_number for site in small.sites] == numbers.tolist()


def test_a_cif_reads_alike_in_ase_gemmi_and_pymatgen(folder: Path):
    for path in sorted(folder.glob("*.cif")):
        reference = read_cif(path)
        block = gemmi.cif.read(str(path)).sole_block()
        small = gemmi.make_small_structure_from_block(block)
        atoms = ase.io.read(path)
        assert atoms.numbers.tolist() == [site.element.atomic_number for site in small.sites]
        assert tuple(atoms.numbers) == reference.atomic_numbers
        for coords in (atoms.get_scaled_positions(), np.array([site.fract.tolist() for site in small.sites])):
            np.testing.assert_allclose(coords, reference.frac_coords, atol=1e-7)
        np.testing.assert_allclose(atoms.cell.cellpar(), reference.lattice.parameters, atol=1e-6)
        np.testing.assert_allclose(small.cell.parameters, reference.lattice.parameters, atol=1e-6)
        assert float(block.find_value("_cell_volume")) == pytest.approx(reference.volume, abs=1e-5)
        assert small.spacegroup.number == 1
        formula = block.find_value("_chemical_formula_sum").strip("'").split()
        units = int(block.find_value("_cell_formula_units_Z"))
        written = {part.rstrip("0123456789"): units * int(part.lstrip(part.rstrip("0123456789"))) for part in formula}
        assert written == {str(element): amount for element, amount in reference.composition.items()}


def test_the_same_input_gives_the_same_bytes(crystals: CrystalBatch, folder: Path, tmp_path: Path):
    time.sleep(0.01)  # a time stamp would differ
    write(crystals, tmp_path / "again", formats=list(FORMATS))
    assert contents(tmp_path / "again") == contents(folder)
    with closing(sqlite3.connect(folder / "samples.db")) as connection:
        assert set(connection.execute("SELECT ctime, mtime, username FROM systems")) == {(0.0, 0.0, None)}


def test_samples_csv_has_the_facts_in_order(crystals: CrystalBatch, folder: Path):
    rows = pd.read_csv(folder / "samples.csv", dtype={"id": str}, keep_default_na=False)
    assert list(rows.columns) == [
        "id", "formula", "atoms", "volume", "density", "shortest_distance", "valid", "reason",
    ]  # fmt: skip
    assert rows.id.tolist() == default_ids(len(crystals))
    facts = describe(crystals)
    assert rows.formula.tolist() == facts.formula.tolist()
    np.testing.assert_allclose(rows.shortest_distance, facts.shortest_distance, rtol=1e-6)
    assert rows.valid.tolist() == facts.valid.tolist()


def test_samples_csv_needs_no_table_and_keeps_one_that_is_given(crystals: CrystalBatch, tmp_path: Path):
    write_crystals(crystals, tmp_path / "alone", formats=[])
    rows = pd.read_csv(tmp_path / "alone" / "samples.csv", dtype={"id": str}, keep_default_na=False)
    facts = describe(crystals)
    assert list(rows.columns) == ["id", "formula", "atoms", "volume", "density"]
    assert rows.formula.tolist() == facts.formula.tolist()
    assert rows.atoms.tolist() == facts.atoms.tolist()
    for name in ("volume", "density"):
        np.testing.assert_allclose(rows[name], facts[name], rtol=1e-6)
    table = pd.DataFrame({"formula": ["mine"] * len(crystals), "energy": range(len(crystals))})
    write_crystals(crystals, tmp_path / "more", table=table, formats=[])
    rows = pd.read_csv(tmp_path / "more" / "samples.csv")
    assert list(rows.columns) == ["id", "formula", "energy", "atoms", "volume", "density"]
    assert set(rows.formula) == {"mine"}
    assert list(table.columns) == ["formula", "energy"]  # the argument stays as it was


def test_a_batch_gives_the_text_that_the_files_hold(crystals: CrystalBatch, folder: Path):
    for number, (name, text) in enumerate(zip(default_ids(len(crystals)), crystals.to_cif(), strict=True)):
        written = (folder / f"{name}.cif").read_text()
        assert text.replace(f"data_crystal-{number}\n", f"data_{name}\n") == written


def test_what_no_cif_can_hold_has_no_text(crystals: CrystalBatch):
    unknown = crystals.replace(atom_types=torch.where(crystals.batch == 1, 0, crystals.atom_types))
    flat = crystals.replace(lattices=crystals.lattices * torch.tensor([1.0, 1.0, 0.0])[:, None])
    for broken, first in ((unknown, 1), (flat, 0)):
        with pytest.raises(DataError, match=f"crystal-{first}: cannot be written as CIF"):
            broken.to_cif()


def test_numbers_have_the_digits_they_need():
    assert default_ids(2) == ["0000", "0001"]
    assert default_ids(10_000)[-1] == "9999"
    assert default_ids(10_001)[::10_000] == ["00000", "10000"]
    assert default_ids(0) == []


def test_paths_come_in_the_order_of_the_crystals(crystals: CrystalBatch, tmp_path: Path):
    ids = [f"mp-{index}" for index in range(len(crystals))][::-1]
    paths = write(crystals, tmp_path / "out", ids=ids, info={"seed": 7})
    assert paths == [tmp_path / "out" / f"{name}.cif" for name in ids] + [
        tmp_path / "out" / "samples.csv",
        tmp_path / "out" / "samples.json",
    ]
    assert all(path.is_file() for path in paths)
    assert json.loads(paths[-1].read_text())["info"] == {"seed": 7}


def test_unknown_elements_are_never_written(tmp_path: Path):
    blank = CrystalBatch.empty([2, 3])
    with pytest.raises(DataError, match="crystal 0000, atom 0: atomic number 0"):
        write(blank, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_no_file_can_hold_is_listed_without_a_file(
    crystals: CrystalBatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    lattices, coords = crystals.lattices.clone(), crystals.frac_coords.clone()
    lattices[1, 2] = lattices[1, 0]
    lattices[3] = math.nan
    coords[crystals.ptr[5]] = math.inf
    broken = crystals.replace(lattices=lattices, frac_coords=coords)
    write(broken, tmp_path / "out", formats=["cif", "extxyz"])
    assert "3 of 12 crystals" in caplog.text
    rows = pd.read_csv(tmp_path / "out" / "samples.csv", dtype={"id": str})
    assert rows.id[~rows.valid].tolist() == ["0001", "0003", "0005"]
    written = {path.stem for path in (tmp_path / "out").glob("*.cif")}
    assert written == set(default_ids(12)) - {"0001", "0003", "0005"}
    assert len(ase.io.read(tmp_path / "out" / "samples.extxyz", index=":")) == 9


def test_coordinates_that_round_to_one_become_zero(tmp_path: Path):
    crystal = CrystalBatch(
        atom_types=torch.tensor([14]),
        frac_coords=torch.tensor([[1 - 1e-9, -1e-9, 1.0]], dtype=torch.float64),
        lattices=3 * torch.eye(3, dtype=torch.float64)[None],
        num_atoms=torch.tensor([1]),
    )
    write(crystal, tmp_path / "out")
    assert "Si Si0 1 0.00000000 0.00000000 0.00000000 1" in (tmp_path / "out" / "0000.cif").read_text()


def test_impossible_arguments_are_refused(crystals: CrystalBatch, tmp_path: Path):
    for options in ({"formats": ["pdb"]}, {"formats": "cif"}, {"ids": ["a"]}, {"ids": ["../a", *default_ids(11)]},
                    {"ids": ["A", "a", *default_ids(10)]}):  # fmt: skip
        with pytest.raises(ConfigError):
            write(crystals, tmp_path / "out", **options)
    with pytest.raises(DataError, match="12 crystals"):
        write_crystals(crystals, tmp_path / "out", table=describe(crystals[:3]))
    assert list(tmp_path.iterdir()) == []


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_anything_is_refused(crystals: CrystalBatch, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    for attempt in (check_output_dir, lambda folder: write(crystals, folder)):
        with pytest.raises(OutputError, match="already holds 1"):
            attempt(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "notes.txt"]


def test_empty_and_missing_folders_are_fine(crystals: CrystalBatch, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/deep"):
        check_output_dir(tmp_path / name)
        write(crystals[:2], tmp_path / name)
        assert len(list((tmp_path / name).iterdir())) == 4
    assert not list(tmp_path.rglob("*.partial-*"))
    assert not list(tmp_path.rglob(".crystalvae-probe*"))


def test_checking_leaves_no_trace(tmp_path: Path):
    check_output_dir(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_overwrite_replaces_our_files_and_no_others(crystals: CrystalBatch, tmp_path: Path):
    folder = tmp_path / "out"
    write(crystals, folder, formats=["cif", "poscar"])
    (folder / "notes.txt").write_text("mine")
    (folder / "0000.png").write_text("mine")
    with pytest.raises(OutputError, match="already holds"):
        check_output_dir(folder)
    check_output_dir(folder, overwrite=True)
    write(crystals[:2], folder, overwrite=True)
    assert set(contents(folder)) == {"0000.cif", "0001.cif", "samples.csv", "samples.json", "notes.txt", "0000.png"}
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_file_of_other_origin_under_our_name_is_kept(crystals: CrystalBatch, tmp_path: Path):
    (tmp_path / "0001.cif").write_text("mine")
    for attempt in (check_output_dir, lambda folder, overwrite: write(crystals, folder, overwrite=overwrite)):
        with pytest.raises(OutputError, match=r"0001\.cif"):
            attempt(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="already holds"):
        check_output_dir(tmp_path)
    (tmp_path / "0001.cif").rename(tmp_path / "mine.cif")
    with pytest.raises(OutputError, match=r"mine\.cif"):
        write(crystals[:1], tmp_path, ids=["mine"], overwrite=True)
    assert contents(tmp_path) == {"mine.cif": b"mine"}


def test_an_edited_manifest_cannot_name_files_elsewhere(crystals: CrystalBatch, tmp_path: Path):
    (tmp_path / "precious.txt").write_text("mine")
    folder = tmp_path / "out"
    write(crystals[:1], folder)
    manifest = json.loads((folder / "samples.json").read_text())
    manifest["files"] += ["../precious.txt", str(tmp_path / "precious.txt"), "..", 3]
    (folder / "samples.json").write_text(json.dumps(manifest))
    write(crystals[:2], folder, overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_places_that_cannot_be_written_to_give_our_error(crystals: CrystalBatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match="output_dir="):
            check_output_dir(place)
        with pytest.raises(OutputError, match="output_dir="):
            write(crystals, place)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_gives_our_error(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot write"):
        check_output_dir(tmp_path / "out")
    tmp_path.chmod(0o700)


def test_a_failure_in_the_middle_leaves_the_old_contents(
    crystals: CrystalBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "out"
    write(crystals, folder)
    before = contents(folder)

    def full_disk(path: Path, text: str) -> None:
        if path.name == "0002.vasp":
            raise OSError(28, "No space left on device")
        path.write_text(text)

    monkeypatch.setattr(writers, "_write_text", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        write(crystals, folder, formats=["cif", "poscar"], overwrite=True)
    with pytest.raises(OutputError, match="No space left"):
        write(crystals, tmp_path / "other", formats=["poscar"])
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_run_left_disturbs_nobody(crystals: CrystalBatch, tmp_path: Path):
    killed = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = int(killed.stdout)
    (tmp_path / f"out.partial-{dead}").mkdir()
    (tmp_path / f"out.partial-{dead}" / "0000.cif").write_text("half")
    (tmp_path / f"out.partial-{os.getppid()}").mkdir()  # somebody alive
    (tmp_path / f"outer.partial-{dead}").mkdir()  # of another folder
    write(crystals, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {
        "out", f"out.partial-{os.getppid()}", f"outer.partial-{dead}",
    }  # fmt: skip
    inside = tmp_path / "out" / f"out.partial-{dead}"
    inside.mkdir()
    write(crystals, tmp_path / "out", overwrite=True)
    assert not inside.exists()


def test_an_export_killed_while_files_were_moved_is_done_again(
    crystals: CrystalBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "out"
    folder.mkdir()
    with monkeypatch.context() as patch:
        moved: list[Path] = []
        really = Path.replace

        def killed(path: Path, target: Path) -> Path:
            if len(moved) == 4:
                raise KeyboardInterrupt
            moved.append(path)
            return really(path, target)

        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(crystals, folder)
    assert 1 < len(contents(folder)) < 12
    check_output_dir(folder)
    write(crystals, folder)
    write(crystals, tmp_path / "reference")
    assert contents(folder) == contents(tmp_path / "reference")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_sigkill_in_the_middle_leaves_nothing_that_looks_finished(tmp_path: Path):
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from crystalvae.output_dir import staged_output\n"
        "with staged_output(sys.argv[1]) as folder:\n"
        "    (folder / '0000.cif').write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out"), str(Path(__file__).parents[1] / "src")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    assert not (tmp_path / "out").exists()
    write(random_crystals(3), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_thousands_of_crystals_take_seconds(tmp_path: Path):
    crystals = CrystalBatch.cat([random_crystals(50)] * 40)
    table = describe(crystals)
    start = time.perf_counter()
    write_crystals(crystals, tmp_path / "out", table=table)
    assert time.perf_counter() - start < 10  # 2,000 crystals; about 0.3 s where files are cheap
