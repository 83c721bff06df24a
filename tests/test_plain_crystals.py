"""Files of others as plain data: the same crystals as pymatgen and ASE read, and nothing built that a file names."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.core import Structure

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.readers import read_crystals
from crystalvae.errors import DataError
from tests.samples import random_crystals, rock_salt_and_friends

NESTED = {"a": [{"deep": {"@module": "payload", "@class": "P", "@version": "1"}}]}
HUGE = {"__ndarray__": [[10**12], "float64", []]}
PAYLOAD = "from pathlib import Path\nPath(__file__).with_suffix('.trace').touch()\nclass P:\n    pass\n"


def assert_same_crystals(path: Path, structures: list[Structure]) -> None:
    expected, found = CrystalBatch.from_structures(structures), read_crystals(path).crystals
    assert torch.equal(found.atom_types, expected.atom_types)
    torch.testing.assert_close(found.lattices, expected.lattices, atol=1e-5, rtol=0)
    difference = found.frac_coords - expected.frac_coords
    torch.testing.assert_close(difference - difference.round(), torch.zeros_like(difference), atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", ["one", "list", "mapping", "entries", "parameters", "cartesian", "old species"])
def test_json_of_pymatgen_gives_the_same_crystals(tmp_path: Path, form: str) -> None:
    structures = rock_salt_and_friends()[: 1 if form == "one" else 4]
    entries = [json.loads(structure.to_json()) for structure in structures]
    for entry in entries:
        entry["lattice"] = {k: v for k, v in entry["lattice"].items() if (k == "matrix") == (form != "parameters")}
        for site in entry["sites"]:
            site.pop("abc" if form == "cartesian" else "xyz", None)
            if form == "old species":
                site["species"] = [{"element": site["species"][0]["element"], "occu": 1.0, "oxidation_state": 1}]
    if form == "parameters":  # these say nothing of the orientation
        structures = [Structure(s.lattice.from_parameters(*s.lattice.parameters), s.species, s.frac_coords)
                      for s in structures]  # fmt: skip
    whole = {"one": entries[0], "mapping": dict(enumerate(entries)), "entries": [{"structure": e} for e in entries]}
    (tmp_path / "x.json").write_text(json.dumps(whole.get(form, entries)))
    assert_same_crystals(tmp_path / "x.json", structures)


@pytest.mark.parametrize("place", ["properties", "site", "species", "lattice", "structure", "charge"])
def test_no_class_that_a_json_names_is_looked_up(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`payload.py` beside the file would run if it was so much as imported."""
    (tmp_path / "payload.py").write_text(PAYLOAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    structure = rock_salt_and_friends()[0]
    entry = json.loads(structure.to_json())
    bait = NESTED["a"][0]["deep"]
    if place == "properties":
        for site in entry["sites"]:
            site["properties"] = {"magmom": bait, "other": NESTED}
        entry["properties"] = NESTED
    elif place == "site":
        entry["sites"] = [{**site, **bait} for site in entry["sites"]]
    elif place == "species":
        for site in entry["sites"]:
            site["species"][0] |= {**bait, "properties": bait}
    elif place == "structure":
        entry |= bait
    else:
        entry[place] = {**(entry["lattice"] if place == "lattice" else {}), **bait}
    (tmp_path / "x.json").write_text(json.dumps([entry]))
    assert_same_crystals(tmp_path / "x.json", [structure])
    assert "payload" not in sys.modules
    assert not (tmp_path / "payload.trace").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: e["sites"][0]["species"].append({"element": "K", "occu": 0.5}), "partial occupancies"),
        (lambda e: e["sites"][0]["species"][0].update(occu=0.5), "partial occupancies"),
        (lambda e: e["sites"][0]["species"][0].update(occu="x"), "no pymatgen structure: could not convert"),
        (lambda e: e["sites"][0]["species"][0].update(element="Qq"), "no pymatgen structure: 'Qq' is no element"),
        (lambda e: e["sites"][0].update(abc=[0, 0]), r"no pymatgen structure: coordinates of shape \(2,\)"),
        (lambda e: e["sites"][0].update(abc=[0, 0, 10**400]), "no pymatgen structure"),
        (lambda e: e["sites"][0].pop("species"), "no pymatgen structure: 'species' is missing"),
        (lambda e: e.update(sites={"a": 1}), "no pymatgen structure"),
        (lambda e: e["lattice"].update(matrix=[[1, 2], [3, 4]]), r"a lattice of shape \(2, 2\), expected 3 x 3"),
        (lambda e: e["lattice"].update(matrix=HUGE), "no pymatgen structure"),
        (lambda e: e.update(sites=[]), "no atoms"),
    ],
)
def test_a_damaged_structure_is_skipped_with_its_reason(tmp_path: Path, change, reason: str) -> None:
    entries = [json.loads(structure.to_json()) for structure in rock_salt_and_friends()[:2]]
    change(entries[0])
    (tmp_path / "x.json").write_text(json.dumps({"a": entries[0], "b": entries[1]}))
    dataset = read_crystals(tmp_path / "x.json")
    assert dataset.ids == ["b"]
    (skipped,) = dataset.skipped
    assert skipped.id == "a"
    assert re.search(reason, skipped.reason), skipped.reason


@pytest.mark.parametrize("same_header", [True, False])
def test_a_trajectory_gives_the_frames_that_ase_wrote(tmp_path: Path, *, same_header: bool) -> None:
    import ase.io

    structures = random_crystals((3, 3, 3) if same_header else (1, 4, 2), seed=3).to_structure()
    frames = CrystalBatch.from_structures(structures).to_atoms()
    if same_header:
        for frame in frames:
            frame.numbers = frames[0].numbers
    for number, frame in enumerate(frames):
        frame.info = {"material_id": f"m{number}", "band_gap": 0.5 * number}
    ase.io.write(tmp_path / "x.traj", frames)
    dataset = read_crystals(tmp_path / "x.traj")
    assert list(dataset.ids) == ["m0", "m1", "m2"]
    assert dataset.crystals.properties["band_gap"].tolist() == [0.0, 0.5, 1.0]
    again = dataset.crystals.to_atoms()
    for frame, found in zip(frames, again, strict=True):
        assert found.numbers.tolist() == frame.numbers.tolist()
        np.testing.assert_allclose(found.cell, frame.cell, atol=1e-5)
        np.testing.assert_allclose(found.positions, frame.positions, atol=1e-4)


@pytest.mark.parametrize(
    "text",
    [HUGE, {"__ase_objtype__": "atoms", "constraints": [{"name": "FixAtoms", "kwargs": {"indices": HUGE}}]}],
)
def test_what_a_database_says_beside_atoms_is_not_decoded(tmp_path: Path, text: dict[str, object]) -> None:
    """A decoder of ASE's would build these, and ask for eight terabytes."""
    from ase.db import connect

    structures = rock_salt_and_friends()
    connection: Any = connect(tmp_path / "x.db")
    with connection as database:
        for atoms in CrystalBatch.from_structures(structures).to_atoms():
            database.write(atoms, band_gap=1.5, data={"volume": 3.0})
    content = json.dumps({"band_gap": 1.5, "bad": text})
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection, connection:
        connection.execute("UPDATE systems SET key_value_pairs = ?, constraints = ?", (content, json.dumps([text])))
    before = (tmp_path / "x.db").read_bytes()
    assert_same_crystals(tmp_path / "x.db", structures)
    assert read_crystals(tmp_path / "x.db").crystals.properties["band_gap"].tolist() == [1.5] * 4
    assert read_crystals(tmp_path / "x.db").crystals.properties["volume"].tolist() == [3.0] * 4
    assert (tmp_path / "x.db").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.traj", b"\x80\x04\x95not a trajectory" * 9, "not an ASE trajectory"),
        ("x.traj", b"- of UlmASE-Trajectory  " + b"\x03" + b"\0" * 7 + b"\xff" * 16, "not an ASE trajectory"),
        ("x.gpw", b"- of Ulmgpaw            " + b"\0" * 60, "its format is gpw, which is not read here"),
        ("x.bundle", b"", "ASE cannot read it"),
        ("x.db", b"SQLite format 3\0" + b"\0" * 100, "ASE cannot read it"),
        ("x.py", b"import os\n", "its format is py, which is not read here"),
    ],
)
def test_formats_that_build_what_they_name_are_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_crystals(tmp_path / name)
