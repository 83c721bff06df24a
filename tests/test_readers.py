"""Readers: the same crystals as pymatgen reads, whatever the file's kind, and every bad one named."""

from __future__ import annotations

import gzip
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.cif import CrystalError, parse_cif
from crystalvae.data.cif_files import MAX_CIF_BYTES
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.readers import read_crystals
from crystalvae.data.sources import FileSource
from crystalvae.errors import DataError
from tests.samples import rock_salt_and_friends

CIF = """data_test
_cell_length_a {a}
_cell_length_b 5
_cell_length_c 6
_cell_angle_alpha 90
_cell_angle_beta {beta}
_cell_angle_gamma 90
{symmetry}
loop_
_atom_site_type_symbol
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
{sites}
"""
SITES = "Na Na1 0.1 0.2 0.3 1\nCl Cl1 0.6 0.7 0.8 1"


def cif(a: float | str = 4, beta: float | str = 90, symmetry: str = "", sites: str = SITES) -> str:
    return CIF.format(a=a, beta=beta, symmetry=symmetry, sites=sites)


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def read(path: Path, *, niggli: bool = True, **options: object) -> CrystalDataset:
    """Read as training data are read."""
    return read_crystals(path, niggli=niggli, unique_ids=True, **options)  # pyright: ignore[reportArgumentType]


def matches(first: Structure, second: Structure) -> bool:
    return StructureMatcher(primitive_cell=False).fit(first, second)


def assert_same(first: CrystalDataset, second: CrystalDataset) -> None:
    assert first.ids == second.ids
    assert torch.equal(first.crystals.atom_types, second.crystals.atom_types)
    torch.testing.assert_close(first.crystals.frac_coords, second.crystals.frac_coords)
    torch.testing.assert_close(first.crystals.lattices, second.crystals.lattices)
    assert first.crystals.properties.keys() == second.crystals.properties.keys()
    for name, values in first.crystals.properties.items():
        torch.testing.assert_close(values, second.crystals.properties[name], equal_nan=True)


# ---- against pymatgen -----------------------------------------------------------------------------------------------


@pytest.mark.mp20
@pytest.mark.filterwarnings("ignore")  # pymatgen's remarks about its own CIFs
def test_mp20_structures_are_those_that_pymatgen_reads(mp20_dir: Path, tmp_path: Path) -> None:
    """150 validation structures: the same lattice, atoms and, away from the Niggli cell's borders, parameters.

    At a border (equal lengths, or a projection of exactly half an edge) two cells are equally reduced, and rounding and
    pymatgen's looser tolerance choose between them: 3 of the 150. Those must still generate the same lattice.
    """
    frame = pd.read_csv(mp20_dir / "val.csv").sample(150, random_state=20)
    frame.to_csv(tmp_path / "sample.csv")
    dataset = read(tmp_path / "sample.csv")
    assert dataset.ids == frame["material_id"].tolist()
    reference = [Structure.from_str(text, fmt="cif").get_reduced_structure("niggli") for text in frame["cif"]]
    same_angles = []
    for expected, found in zip(reference, dataset.crystals.to_structure(), strict=True):
        assert found.composition == expected.composition
        assert found.volume == pytest.approx(expected.volume, rel=1e-5)
        np.testing.assert_allclose(sorted(found.lattice.abc), sorted(expected.lattice.abc), atol=1e-3)
        assert found.lattice.find_mapping(expected.lattice, ltol=1e-4, atol=0.02) is not None
        standard = Lattice.from_parameters(*found.lattice.parameters)
        np.testing.assert_allclose(found.lattice.matrix, standard.matrix, atol=1e-4)
        assert matches(expected, found)
        # 60° and 120° may stand for each other: the sign of a cell vector is free where a sum of projections is zero.
        cosines = [np.sort(np.abs(np.cos(np.radians(entry.lattice.angles)))) for entry in (found, expected)]
        same_angles.append(np.allclose(*cosines, rtol=0, atol=2e-5))
    assert np.mean(same_angles) >= 0.97


@pytest.mark.parametrize("niggli", [True, False])
@pytest.mark.parametrize("index", range(4))
def test_symmetry_is_expanded_to_the_whole_crystal(tmp_path: Path, index: int, niggli: bool) -> None:
    structure = rock_salt_and_friends()[index]
    text = str(CifWriter(structure, symprec=1e-3))
    (tmp_path / "one.cif").write_text(text)
    dataset = read(tmp_path, niggli=niggli)
    (found,) = dataset.crystals.to_structure()
    assert len(found) == len(structure)
    assert found.composition == structure.composition
    assert matches(structure, found)


def test_symmetry_given_by_name_or_number_counts_as_much_as_operations() -> None:
    site = "Na Na1 0.1 0.2 0.3 1"
    assert len(parse_cif(cif(symmetry="_symmetry_space_group_name_H-M 'P m m m'", sites=site)).numbers) == 8
    assert len(parse_cif(cif(symmetry="_symmetry_Int_Tables_number 47", sites=site)).numbers) == 8
    shifted = "loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'-x+1/3,-y,-z'"  # no standard setting of any group
    assert len(parse_cif(cif(symmetry=shifted, sites=site)).numbers) == 2


@pytest.mark.parametrize("index", range(4))
def test_the_niggli_cell_of_any_supercell_basis_is_the_same(tmp_path: Path, index: int) -> None:
    structure = rock_salt_and_friends()[index]
    skewed = structure.copy().make_supercell([[1, 1, 0], [0, 1, 2], [0, 0, 1]], in_place=False)
    write_table(
        tmp_path / "two.csv",
        [{"cif": str(CifWriter(entry, significant_figures=12))} for entry in (structure, skewed)],
    )
    crystals = read(tmp_path / "two.csv").crystals
    torch.testing.assert_close(crystals.lengths[0], crystals.lengths[1], atol=1e-3, rtol=0)
    torch.testing.assert_close(crystals.angles[0].cos().abs(), crystals.angles[1].cos().abs(), atol=1e-3, rtol=0)
    assert matches(*crystals.to_structure())
    assert bool(((crystals.frac_coords >= 0) & (crystals.frac_coords < 1)).all())


def test_coordinates_are_wrapped_before_they_lose_digits(tmp_path: Path) -> None:
    write_table(tmp_path / "far.csv", [{"cif": cif(sites="Na Na1 900.1234567 -0.0000000001 -3.25 1")}])
    (coords,) = read(tmp_path / "far.csv", niggli=False).crystals.frac_coords
    torch.testing.assert_close(coords, torch.tensor([0.1234567, 0.0, 0.75]), atol=2e-7, rtol=0)


# ---- kinds of files -------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        {"material_id": "mp-1", "cif": cif(), "band_gap": 1.5, "spacegroup.number": 1, "pretty_formula": "NaCl"},
        {"material_id": "mp-2", "cif": cif(a=4.5), "band_gap": None, "spacegroup.number": 2, "pretty_formula": "NaCl"},
    ]
    return write_table(tmp_path / "table.csv", rows)


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv.gz": lambda frame, path: frame.to_csv(path),
    ".csv.bz2": lambda frame, path: frame.to_csv(path),
    ".csv.xz": lambda frame, path: frame.to_csv(path),
    ".csv.zip": lambda frame, path: frame.to_csv(path),
    ".feather": lambda frame, path: frame.to_feather(path),
    ".parquet": lambda frame, path: frame.to_parquet(path),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_table_gives_the_same(table: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"other{suffix}"
    WRITERS[suffix](pd.read_csv(table), path)
    assert_same(read(table), read(path))


def test_numeric_columns_are_properties(table: Path) -> None:
    properties = read(table).crystals.properties
    assert set(properties) == {"band_gap", "spacegroup_number"}
    torch.testing.assert_close(properties["band_gap"], torch.tensor([1.5, torch.nan]), equal_nan=True)
    assert properties["spacegroup_number"].tolist() == [1, 2]


def test_values_beyond_float32_are_missing_and_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_table(tmp_path / "huge.csv", [{"cif": cif(), "energy": 1e300}, {"cif": cif(), "energy": -2.0}])
    energy = read(tmp_path / "huge.csv").crystals.properties["energy"]
    torch.testing.assert_close(energy, torch.tensor([torch.nan, -2.0]), equal_nan=True)
    assert "'energy' has 1 values beyond float32" in caplog.text


def test_nullable_columns_and_missing_ids(tmp_path: Path) -> None:
    frame = pd.DataFrame({"material_id": ["a", None], "cif": [cif()] * 2, "n": pd.array([3, None], dtype="Int64")})
    frame.to_parquet(tmp_path / "nullable.parquet")
    dataset = read(tmp_path / "nullable.parquet")
    assert dataset.ids == ["a", "row-2"]
    torch.testing.assert_close(dataset.crystals.properties["n"], torch.tensor([3.0, torch.nan]), equal_nan=True)


def test_without_ids_rows_are_numbered(tmp_path: Path) -> None:
    assert read(write_table(tmp_path / "x.csv", [{"cif": cif()}] * 3)).ids == ["row-1", "row-2", "row-3"]


def test_a_folder_of_cifs_is_read_in_order_of_names(tmp_path: Path) -> None:
    for name, length in (("b", 4.5), ("a", 4), ("c", -1)):
        (tmp_path / f"{name}.cif").write_text(cif(a=length))
    (tmp_path / "d.cif").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "notes.txt").write_text("not a crystal")
    dataset = read(tmp_path)
    assert dataset.ids == ["a", "b"]
    assert [(entry.row, entry.id) for entry in dataset.skipped] == [(3, "c"), (4, "d")]
    with pytest.raises(DataError, match=r"row 3 \(c\)"):
        read(tmp_path, strict=True)


@pytest.mark.parametrize("name", ["some.extxyz", "some.db", "POSCAR"])
def test_what_ase_reads_gives_the_same_crystals(tmp_path: Path, name: str) -> None:
    import ase.io

    structures = rock_salt_and_friends()[: 1 if name == "POSCAR" else 4]
    atoms = CrystalBatch.from_structures(structures).to_atoms()
    if name.endswith("db"):
        from ase.db import connect

        with connect(tmp_path / name) as database:
            for number, entry in enumerate(atoms):
                database.write(entry, material_id=f"id-{number}", band_gap=0.5 * number)
    else:
        for number, entry in enumerate(atoms):
            entry.info = {"material_id": f"id-{number}", "band_gap": 0.5 * number}
        ase.io.write(tmp_path / name, atoms if len(atoms) > 1 else atoms[0])
    dataset = read(tmp_path / name)
    assert all(matches(*pair) for pair in zip(structures, dataset.crystals.to_structure(), strict=True))
    if name != "POSCAR":
        assert dataset.ids == ["id-0", "id-1", "id-2", "id-3"]
        assert dataset.crystals.properties["band_gap"].tolist() == [0.0, 0.5, 1.0, 1.5]


def test_whole_numbers_of_a_frame_are_numbers_and_switches_are_not(tmp_path: Path) -> None:
    import ase.io

    atoms = CrystalBatch.from_structures(rock_salt_and_friends()[:3]).to_atoms()
    for entry, gap in zip(atoms, (0, 1.1, 2), strict=True):
        entry.info = {"band_gap": gap, "spacegroup_number": 225, "relaxed": True}
    ase.io.write(tmp_path / "some.extxyz", atoms)
    properties = read(tmp_path / "some.extxyz").crystals.properties
    torch.testing.assert_close(properties["band_gap"], torch.tensor([0.0, 1.1, 2.0]))
    assert properties["spacegroup_number"].tolist() == [225.0] * 3
    assert "relaxed" not in properties


def test_frames_without_a_cell_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "two.xyz").write_text(
        '1\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 pbc="T T T"\nNa 0 0 0\n1\nno cell\nNa 0 0 0\n'
    )
    dataset = read(tmp_path / "two.xyz")
    assert len(dataset) == 1
    assert [(entry.row, entry.reason) for entry in dataset.skipped] == [(2, "no three-dimensional cell")]


# ---- what is wrong with a row ---------------------------------------------------------------------------------------

NO_SITES = CIF.split("loop_", maxsplit=1)[0].format(a=4, beta=90, symmetry="")
BAD_CIFS = {
    "partial occupancy at Cl1": cif(sites=SITES.replace("0.8 1", "0.8 0.5")),
    "occupancy 'nan' is not a number": cif(sites=SITES.replace("0.3 1", "0.3 nan")),
    "unknown element 'Xx'": cif(sites=SITES.replace("Na Na1", "Xx Xx1")),
    "no atom sites in the CIF": NO_SITES,
    "the cif cell is empty": "",
    "not a readable CIF": "this is no CIF",
    "absurd cell -4, 5, 6, 90, 90, 90": cif(a=-4),
    "absurd cell 4, 5, 6, 90, 200, 90": cif(beta=200),
    "absurd cell 0, 5, 6, 90, 90, 90": cif(a=0),
    "no complete cell in the CIF ": cif().replace("cell_length_b", "cel_length_b"),
    "no complete cell in the CIF": cif().replace("cell_", "cel_"),
    "absurd cell lengths 0.01, 5, 6 Å": cif(a=0.01),
    "absurd cell lengths 1e+06, 5, 6 Å": cif(a="1e6"),
    "the cell is not finite": cif(a="nan"),
    "the cell has no volume": cif(beta="0.01"),
    "coordinates are not finite": cif(sites=SITES.replace("0.2", "nan")),
    "coordinates are not finite ": cif(sites=SITES.replace("0.2", "?")),
    "absurd fractional coordinate of size 1e+30": cif(sites=SITES.replace("0.2", "1e30")),
    "unknown space group 'P 9'": cif(symmetry="_symmetry_space_group_name_H-M 'P 9'"),
    "symmetry operations that cannot be read": cif(symmetry="loop_\n_symmetry_equiv_pos_as_xyz\nx\nnonsense\n"),
    "symmetry operations that cannot be read: 'nonsense'": cif(
        symmetry="_symmetry_space_group_name_H-M 'P 1'\nloop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\nnonsense\n"
    ),
    "several atoms in one place": cif(sites=SITES + "\nNa Na2 1.1 -0.8 0.3 1"),
    "symmetry puts atoms in one place": cif(
        symmetry="_symmetry_Int_Tables_number 2", sites=SITES + "\nNa Na2 .9 .8 .7 1"
    ),
    "10001 sites, more than 10000": cif(sites="\n".join(["Na Na1 0 0 0 1"] * 10001)),
    "21 atoms, more than max_atoms=20": cif(sites="\n".join(f"Na Na1 0 0 {number / 21:.4f} 1" for number in range(21))),
    "unknown element with atomic number 100": cif(sites="Fm Fm1 0 0 0 1"),
}


@pytest.mark.parametrize("reason", BAD_CIFS)
def test_a_bad_row_is_reported_counted_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    rows = [{"material_id": f"mp-{i}", "cif": text} for i, text in enumerate((cif(), BAD_CIFS[reason], cif()))]
    path = write_table(tmp_path / "bad.csv", rows)
    dataset = read(path, max_atoms=20 if "max_atoms" in reason else None)
    assert dataset.ids == ["mp-0", "mp-2"]
    (skipped,) = dataset.skipped
    assert (skipped.row, skipped.id) == (2, "mp-1")
    assert skipped.reason.startswith(reason.strip())
    assert "kept 2 crystals, skipped 1" in caplog.text
    assert f"row 2 (mp-1): {reason.strip()}" in caplog.text
    with pytest.raises(DataError, match=r"row 2 \(mp-1\)"):
        read(path, max_atoms=20, strict=True)


def test_of_two_rows_with_one_id_the_first_usable_one_is_kept(tmp_path: Path) -> None:
    lengths = (-1, 4, 4.5, 4.7)
    path = write_table(tmp_path / "x.csv", [{"material_id": "mp-1", "cif": cif(a=length)} for length in lengths])
    dataset = read(path, niggli=False)
    assert dataset.crystals.lengths[:, 0].tolist() == [4.0]
    assert [(entry.row, entry.reason.split()[0]) for entry in dataset.skipped] == [
        (1, "absurd"),
        (3, "duplicate"),
        (4, "duplicate"),
    ]


def test_rows_with_too_many_fields_keep_their_numbers(tmp_path: Path) -> None:
    text = cif().replace("\n", "\r\n")
    lines = [f'mp-{row},"{text}",{row}' for row in range(1, 8)]
    for row in (2, 3, 7):
        lines[row - 1] += ",1"
    lines[4] = 'mp-5,"",0'
    (tmp_path / "x.csv").write_text("\n".join(["material_id,cif,n", *lines, ""]), newline="")
    dataset = read(tmp_path / "x.csv")
    assert dataset.ids == ["mp-1", "mp-4", "mp-6"]
    assert dataset.crystals.properties["n"].tolist() == [1, 4, 6]
    assert [entry.row for entry in dataset.skipped] == [2, 3, 5, 7]
    assert dataset.skipped[0].reason == "malformed row: expected 3 fields, saw 4"
    with pytest.raises(DataError, match=r"row 2 .*malformed row"):
        read(tmp_path / "x.csv", strict=True)


def test_many_bad_rows_are_counted_and_the_first_few_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"cif": cif()}] + [{"cif": cif(a=-1)}] * 2500  # more than the reader takes in one go
    dataset = read(write_table(tmp_path / "x.csv", [*rows, {"cif": cif()}]))
    assert dataset.ids == ["row-1", "row-2502"]
    assert len(dataset.skipped) == 2500
    assert "skipped 2500" in caplog.text
    assert "… and 2490 more" in caplog.text


# ---- what is wrong with a file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file"),
        ("empty.csv", b"", "the file is empty"),
        ("header.csv", b"material_id,cif\n", "the table has no rows"),
        ("other.csv", b"material_id,structure\nmp-1,x\n", "no column 'cif'; found 'material_id', 'structure'"),
        ("numbers.csv", b"cif\n0.5\n", r"no usable crystal, 1 rows skipped; .*holds '0.5', no CIF"),
        ("table.txt", b"cif\n", "ASE cannot read it"),
        ("open.csv", b'material_id,cif\nmp-1,"data_x\n', "not a readable table .*EOF inside string"),
        ("zipped.csv.gz", b"not zipped", "not a readable table"),
        ("columns.parquet", b"PAR1PAR1", "not a readable table"),
        ("columns.feather", b"", "not a readable table"),
    ],
)
def test_a_bad_table_is_one_error_that_names_it(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_and_files_without_crystals_are_our_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a folder with \*\.cif files"):
        read(tmp_path)
    for path in (tmp_path / "none", tmp_path / "none.extxyz"):
        with pytest.raises(DataError, match="no such file or folder"):
            read(path)
    (tmp_path / "POSCAR").write_text("nonsense")
    with pytest.raises(DataError, match="ASE cannot read it"):
        read(tmp_path / "POSCAR")


def test_bytes_that_are_not_utf8_cost_only_their_own_row(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.csv", [{"cif": cif()}, {"cif": cif(sites="@@ Na1 0 0 0 1")}])
    path.write_bytes(path.read_bytes().replace(b"@@", b"\xff\xfe"))
    dataset = read(path)
    assert [entry.row for entry in dataset.skipped] == [2]


def test_parse_cif_says_why() -> None:
    with pytest.raises(CrystalError, match="not a readable CIF"):
        parse_cif("data_x\nloop_\n_a\n_b\n1 2 3\n")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_ids_stay_text_and_missing_values_stay_missing(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"material_id": ["NaN", "0012", "", "NA"], "gap": [1.5, None, 2.0, None], "cif": [cif()] * 4})
    {".parquet": frame.to_parquet}.get(suffix, frame.to_csv)(tmp_path / f"t{suffix}")
    dataset = read(tmp_path / f"t{suffix}")
    assert list(dataset.ids) == ["NaN", "0012", "row-3", "NA"]
    expected = torch.tensor([1.5, torch.nan, 2.0, torch.nan])
    torch.testing.assert_close(dataset.crystals.properties["gap"], expected, equal_nan=True)


# ---- what lies there under the name of a CIF ------------------------------------------------------------------------


def _write_cifs(folder: Path) -> None:
    folder.mkdir()
    for name in ("a", "z"):
        (folder / f"{name}.cif").write_text(cif())


def _make_pipe(path: Path) -> None:
    os.mkfifo(path)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "broken link": lambda path: path.symlink_to(path.with_name("nowhere")),
    "link to itself": lambda path: path.symlink_to(path),
    "folder": lambda path: path.mkdir(),
    "pipe": _make_pipe,
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_file_costs_only_itself(tmp_path: Path, kind: str) -> None:
    _write_cifs(tmp_path / "cifs")
    UNREADABLE[kind](tmp_path / "cifs" / "m.cif")
    dataset = read(tmp_path / "cifs")
    assert list(dataset.ids) == ["a", "z"]
    assert [(entry.id, entry.reason.split(":")[0]) for entry in dataset.skipped] == [("m", "cannot be read")]
    source = FileSource(name="own", path=str(tmp_path / "cifs"), test_fraction=0, cache_dir=str(tmp_path / "cache"))
    assert list(source.load("train").ids) in (["a", "z"], ["a"], ["z"])
    with pytest.raises(DataError, match=r"no such file or folder|neither a file nor|cannot be read|found none"):
        read(tmp_path / "cifs" / "m.cif")


def test_files_that_may_not_be_read_cost_only_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_cifs(tmp_path / "cifs")
    whole = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "a.cif":
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)  # tests may run as root, who may read anything
    dataset = read(tmp_path / "cifs")
    assert list(dataset.ids) == ["z"]
    assert [(entry.id, entry.reason) for entry in dataset.skipped] == [("a", "cannot be read: Permission denied")]


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_names_that_are_no_text_become_text(tmp_path: Path) -> None:
    _write_cifs(tmp_path / "cifs")
    Path(os.fsdecode(os.fsencode(tmp_path / "cifs") + b"/\xff\xe9.cif")).write_text(cif())
    assert sorted(read(tmp_path / "cifs").ids) == ["\\xff\\xe9", "a", "z"]
    source = FileSource(name="own", path=str(tmp_path / "cifs"), test_fraction=0, cache_dir=str(tmp_path / "cache"))
    assert len(source.load("train")) >= 2


def test_zips_are_read_in_the_time_of_their_length(tmp_path: Path) -> None:
    """The directory of a zip, which grows with it, is read once and not once per crystal."""
    path = tmp_path / "cifs.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3000):
            archive.writestr(f"{number:05d}.cif", cif())
    opened = []
    whole = zipfile.ZipFile._RealGetContents  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "_RealGetContents", lambda archive: (opened.append(1), whole(archive)))
        dataset = read_crystals(path)
    assert len(dataset) == 3000
    assert list(dataset.ids[:2]) == ["00000", "00001"]
    assert len(opened) == 1


def test_files_that_unpack_to_gigabytes_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.cif", cif())
        archive.writestr("bomb.cif", b" " * (MAX_CIF_BYTES + 1))
    dataset = read_crystals(path)
    assert list(dataset.ids) == ["good"]
    assert "more than the 64 that a CIF may have" in dataset.skipped[0].reason


def test_a_byte_order_mark_is_no_part_of_a_cif(tmp_path: Path) -> None:
    (tmp_path / "bom.cif").write_text(cif(), encoding="utf-8-sig")
    assert list(read(tmp_path).ids) == ["bom"]


# ---- cells of a table that are something else -----------------------------------------------------------------------


def test_one_text_among_numbers_costs_that_number_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"cif": cif(), "gap": gap, "formula": "NaCl"} for gap in ("0.5", "1.5", "unknown?", "2")]
    properties = read(write_table(tmp_path / "x.csv", rows)).crystals.properties
    expected = torch.tensor([0.5, 1.5, torch.nan, 2.0])
    torch.testing.assert_close(properties["gap"], expected, equal_nan=True)
    assert "column 'gap' has 1 cells that are no numbers, taken as missing: 'unknown?'" in caplog.text
    assert set(properties) == {"gap"}


def test_ids_that_are_lists_or_mappings_are_numbers_of_rows(tmp_path: Path) -> None:
    for ids in ([["a"], ["b", "c"]], [{"a": 1}, {"a": 2}]):
        pd.DataFrame({"material_id": ids, "cif": [cif()] * 2}).to_parquet(tmp_path / "x.parquet")
        assert list(read(tmp_path / "x.parquet").ids) == ["row-1", "row-2"]


def test_packed_json_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crystalvae.data.readers.MAX_JSON_BYTES", 10_000)
    with gzip.open(tmp_path / "bomb.json.gz", "wb") as file:
        file.write(b" " * 1_000_000)
    with pytest.raises(DataError, match=r"not readable JSON .*unpacks to more than"):
        read(tmp_path / "bomb.json.gz")
