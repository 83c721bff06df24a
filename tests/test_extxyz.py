"""Extended XYZ, frame by frame: what is damaged costs only itself, whatever the file's name and whatever is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crystalvae.data.cif import MAX_SITES
from crystalvae.data.readers import read_crystals
from crystalvae.errors import DataError

COMMENT = 'Lattice="4 0 0 0 4 0 0 0 {c}" Properties=species:S:1:pos:R:3 pbc="T T T" id={id}'


def frame(name: str, *, more: str = "", c: float = 5.0) -> str:
    return f"2\n{COMMENT.format(c=c, id=name)}{more}\nNa 0 0 0\nCl 2 2 2\n"


def test_frames_come_in_order_with_their_ids_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "some.extxyz"
    path.write_text(frame("a", more=" band_gap=1.5") + frame("b", more=" band_gap=2", c=6) + "\n")
    dataset = read_crystals(path)
    assert list(dataset.ids) == ["a", "b"]
    assert dataset.crystals.properties["band_gap"].tolist() == [1.5, 2.0]
    assert dataset.crystals.lengths[:, 2].tolist() == [5.0, 6.0]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("2\nLattice=\nNa 0 0 0\nCl 2 2 2\n", "no frame of extended XYZ"),
        (frame("x").replace("Cl 2 2", "Cl two two"), "no frame of extended XYZ"),
        (frame("x").replace("Cl", "Xx"), "no frame of extended XYZ"),
        (f"{MAX_SITES + 1}\n{COMMENT.format(c=5, id='x')}\n" + "Na 0 0 0\n" * (MAX_SITES + 1), "atoms, more than"),
    ],
)
def test_a_damaged_frame_costs_only_itself(tmp_path: Path, bad: str, reason: str) -> None:
    path = tmp_path / "some.extxyz"
    path.write_text(frame("a") + bad + frame("b"))
    dataset = read_crystals(path)
    assert list(dataset.ids) == ["a", "b"]
    assert [(entry.row, entry.id) for entry in dataset.skipped] == [(2, "some-2")]
    assert reason in dataset.skipped[0].reason


@pytest.mark.parametrize("count", ["many", "-1", "1000000000", "3"])
def test_where_the_next_frame_begins_nobody_knows(tmp_path: Path, count: str) -> None:
    """A number of atoms that is none, or more than follow: what stood before is kept, and no memory is asked for."""
    path = tmp_path / "some.extxyz"
    path.write_text(frame("a") + f"{count}\n{COMMENT.format(c=5, id='x')}\nNa 0 0 0\n")
    dataset = read_crystals(path)
    assert list(dataset.ids) == ["a"]
    assert len(dataset.skipped) == 1


def test_names_marks_and_comments_that_mean_something_elsewhere(tmp_path: Path) -> None:
    """`@` divides a name from an index for ASE, `data` is a field of its databases, and editors write marks."""
    path = tmp_path / "user@host.extxyz"
    path.write_text(frame("a", more=" data=words"), encoding="utf-8-sig")
    assert list(read_crystals(path).ids) == ["a"]
    path.write_text("")
    with pytest.raises(DataError, match="no usable crystal"):
        read_crystals(path)
