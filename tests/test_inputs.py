"""Crystals from anywhere: every format, in any state; what cannot be read is named, and counted."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from ase.db import connect
from pymatgen.core import Lattice, Structure

import crystalvae
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.dataset_file import save_dataset
from crystalvae.errors import DataError
from crystalvae.evaluation.inputs import CrystalSet, read_crystals

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
SILICON = Structure(Lattice(2.715 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])), ["Si", "Si"], [[0] * 3, [0.25] * 3])
STRUCTURES = {"salt": SALT, "silicon": SILICON}


def write(folder: Path, kind: str) -> Path:  # noqa: C901  one branch a format
    """Write both structures, under their names where the format has names."""
    atoms = [structure.to_ase_atoms() for structure in STRUCTURES.values()]
    path = folder / f"crystals.{kind}"
    if kind == "folder":
        path.mkdir()
        for name, structure in STRUCTURES.items():
            (path / f"{name}.cif").write_text(structure.to(fmt="cif"))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, structure in STRUCTURES.items():
                archive.writestr(f"inside/{name}.cif", structure.to(fmt="cif"))
    elif kind == "csv":
        cifs = [structure.to(fmt="cif") for structure in STRUCTURES.values()]
        pd.DataFrame({"material_id": list(STRUCTURES), "cif": cifs}).to_csv(path, index=False)
    elif kind == "json":
        path.write_text(json.dumps({name: structure.as_dict() for name, structure in STRUCTURES.items()}))
    elif kind == "json.gz":
        entries = [{"material_id": name, "structure": structure.as_dict()} for name, structure in STRUCTURES.items()]
        path.write_bytes(gzip.compress(json.dumps(entries).encode()))
    elif kind == "extxyz":
        for name, entry in zip(STRUCTURES, atoms, strict=True):
            entry.info = {"material_id": name}
        ase.io.write(path, atoms)
    elif kind == "db":
        with connect(path) as database:
            for name, entry in zip(STRUCTURES, atoms, strict=True):
                database.write(entry, material_id=name)
    else:
        batch = CrystalBatch.from_structures(STRUCTURES.values())
        save_dataset(CrystalDataset(batch, list(STRUCTURES)), path)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "csv", "json", "json.gz", "extxyz", "db", "safetensors"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_every_format_gives_the_same_crystals(tmp_path: Path, kind: str):
    found = read_crystals(write(tmp_path, kind), name="here")
    assert (found.name, found.ids, found.positions) == ("here", ["salt", "silicon"], [0, 1])
    assert not found.unreadable
    assert found.crystals.num_atoms.tolist() == [8, 2]
    for got, expected in zip(found.crystals.to_structure(), STRUCTURES.values(), strict=True):
        assert got.composition == expected.composition
        np.testing.assert_allclose(got.lattice.parameters, expected.lattice.parameters, rtol=1e-5)
        np.testing.assert_allclose(
            np.sort(got.distance_matrix.ravel()), np.sort(expected.distance_matrix.ravel()), atol=1e-4
        )


def test_unreadable_cifs_among_good_ones_keep_their_place_and_say_why(tmp_path: Path):
    good = SILICON.to(fmt="cif")
    (tmp_path / "a.cif").write_text("no crystal at all")
    (tmp_path / "b.cif").write_text(good)
    (tmp_path / "c.cif").write_text("")
    (tmp_path / "d.cif").write_text(good.replace("_cell_length_a ", "_cell_length_a   0.0 #"))
    (tmp_path / "e.cif").write_text(good)
    found = read_crystals(tmp_path)
    assert found.ids == ["b", "e"]
    assert found.positions == [1, 4]
    assert [(entry.position, entry.id) for entry in found.unreadable] == [(0, "a"), (2, "c"), (3, "d")]
    assert all(entry.reason for entry in found.unreadable)
    assert found.total == 5
    content = found.to_dict()
    assert content["count"] == 5
    assert [entry["id"] for entry in content["unreadable"]] == ["a", "c", "d"]


def test_a_source_of_nothing_but_rubbish_is_a_set_of_unreadable_crystals(tmp_path: Path):
    (tmp_path / "a.cif").write_text("no crystal at all")
    found = read_crystals(tmp_path)
    assert (len(found.crystals), found.total) == (0, 1)


def test_repeated_ids_stay_and_cells_are_not_reduced(tmp_path: Path):
    large = SILICON.copy().make_supercell([2, 1, 1])
    rows = {"material_id": ["mp-1", "mp-1"], "cif": [large.to(fmt="cif"), SILICON.to(fmt="cif")]}
    pd.DataFrame(rows).to_csv(tmp_path / "crystals.csv", index=False)
    found = read_crystals(tmp_path / "crystals.csv")
    assert found.ids == ["mp-1", "mp-1"]
    assert found.crystals.num_atoms.tolist() == [4, 2]


def test_json_may_hold_candidates_in_lists_one_structure_and_rubbish(tmp_path: Path):
    path = tmp_path / "crystals.json"
    path.write_text(json.dumps({"mp-1": [SALT.as_dict(), SILICON.as_dict()], "mp-2": {"lattice": {}, "sites": []}}))
    found = read_crystals(path)
    assert found.ids == ["mp-1", "mp-1"]
    assert [entry.id for entry in found.unreadable] == ["mp-2"]
    path.write_text(json.dumps(SALT.as_dict()))
    assert read_crystals(path).crystals.num_atoms.tolist() == [8]
    path.write_text(json.dumps({"structures": [SALT.as_dict(), 7]}))
    found = read_crystals(path)
    assert (found.ids, [entry.id for entry in found.unreadable]) == (["row-1"], ["row-2"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing", None, "no such file"),
        ("empty", "folder", "found none"),
        ("a.json", b"{", "not readable JSON"),
        ("a.json", b"[]", "expected pymatgen structures"),
        ("a.json.gz", b"no gzip", "not readable JSON"),
        ("a.zip", b"no zip", "not a readable zip"),
        ("a.csv", b"material_id,structure\n1,2\n", "no column 'cif'"),
        ("a.res", b"\x00\x01", "ASE cannot read it"),
    ],
)
def test_what_is_no_source_of_crystals_is_an_error_that_says_so(
    tmp_path: Path, name: str, content: bytes | str | None, message: str
):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_crystals(path)


def test_ids_and_positions_belong_to_every_crystal():
    with pytest.raises(ValueError, match="one id and position"):
        CrystalSet("x", CrystalBatch.from_structures([SALT]), ["a", "b"], [0])


@pytest.mark.parametrize("kind", ["folder", "csv", "safetensors"])
def test_one_reader_serves_training_and_evaluation(tmp_path: Path, kind: str):
    path = write(tmp_path, kind)
    as_they_are = crystalvae.read_crystals(path)
    assert torch.equal(as_they_are.crystals.lattices, read_crystals(path).crystals.lattices)
    reduced = crystalvae.read_crystals(str(path), niggli=True, max_atoms=2)
    assert (reduced.ids, [entry.id for entry in reduced.skipped]) == (["silicon"], ["salt"])
    np.testing.assert_allclose(reduced.crystals.angles, [[60.0, 60.0, 60.0]], atol=1e-3)
    with pytest.raises(DataError, match=r"row 1 \(salt\): 8 atoms, more than max_atoms=2"):
        crystalvae.read_crystals(path, max_atoms=2, strict=True)
    with pytest.raises(DataError, match="no usable crystal, 2 rows skipped"):
        crystalvae.read_crystals(path, max_atoms=1)


def test_frames_that_cannot_be_read_are_kept_as_such(tmp_path: Path):
    (tmp_path / "a.xyz").write_bytes(b"\x00\x01")
    found = read_crystals(tmp_path / "a.xyz")
    assert len(found.crystals) == 0
    assert [entry.reason for entry in found.unreadable] == [
        "expected a number of atoms, got '\\x00\\x01'; nothing from here on can be read"
    ]
