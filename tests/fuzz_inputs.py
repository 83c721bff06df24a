"""Further kinds of input for `tests/fuzz.py`: file-system objects, zips, frames, tables and left-handed cells.

Each function damages something in its own way, writes it to `folder`, and returns what is to be read and the ids that
must come through, as `fuzz.damaged_file` does. `originals` is the folder that `fuzz.write_originals` filled.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from tests import mutations

Damaged = tuple[Path, set[str]]
_CIFS = range(3, 9)
"""Numbers of the intact CIFs in space group P 1."""


def folder_of_objects(rng: random.Random, originals: Path, folder: Path) -> Damaged:
    """Put what is no file under the names of CIFs: links, folders, pipes, names that are no text, other bytes."""
    target = folder / "objects"
    target.mkdir()
    (target / "intact.cif").write_bytes((originals / "3.cif").read_bytes())
    for number in range(rng.choice((1, 2, 5))):
        path = target / f"{number}.cif"
        kind = rng.randrange(7)
        if kind == 0:
            path.symlink_to(target / "nowhere")
        elif kind == 1:
            path.symlink_to(path)
        elif kind == 2:
            path.mkdir()
        elif kind == 3:
            os.mkfifo(path)
        elif kind == 4:
            name = os.fsencode(target) + b"/" + bytes(rng.randrange(128, 256) for _ in range(4)) + b".cif"
            Path(os.fsdecode(name)).write_bytes((originals / "4.cif").read_bytes())
        elif kind == 5:
            path.write_bytes(rng.choice((b"", b"\xff\xfe" * 50, b"\xef\xbb\xbfdata_x\n", b"\0" * 1000)))
        else:
            path.symlink_to(rng.choice(("/dev/null", "/dev/zero", "/proc/self/mem", "..", "intact.cif")))
    return target, {"intact"}


def zip_of_cifs(rng: random.Random, originals: Path, folder: Path) -> Damaged:
    """Pack CIFs under odd names, twice under one name, as bombs; then perhaps damage the bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("intact.cif", (originals / "3.cif").read_bytes())
        for number in _CIFS:
            content = (originals / f"{number}.cif").read_bytes()
            name = rng.choice((f"{number}.cif", f"a/{number}.cif", "../up.cif", "/root.cif", "é\x1b[2J.cif", ".cif"))
            if rng.random() < 0.3:
                content = rng.choice((b" " * (2**26 + 1), b"", b"\0", b"data_x\nloop_\n" + b"_a\n" * 10_000))
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    content, untouched = packed.getvalue(), {"intact"}
    if rng.random() < 0.5:
        content, untouched = mutations.damage_bytes(content, rng), set()
    path = folder / "cifs.zip"
    path.write_bytes(content)
    return path, untouched


def extxyz_frames(rng: random.Random, originals: Path, folder: Path) -> Damaged:
    """Change counts, comments and atoms of one frame after two intact ones, with or without a mark at the beginning."""
    del originals
    comment = 'Lattice="4 0 0 0 5 0 0 0 6" Properties=species:S:1:pos:R:3 pbc="T T T"'
    intact = "".join(f"2\n{comment} id=intact-{n}\nNa 0 0 0\nCl 2 2 {n + 1}\n" for n in range(2))
    count = rng.choice(("2", "2", "0", "-3", "999999999999", "1e3", "", "2 2", "\x00", "3"))
    words = rng.choice(
        ("", " data=x", " key_value_pairs=3", " id=[1]", ' id="\x1b[2J"', " Lattice=x", " a=_JSON {", " @@")
    )
    atoms = rng.choice(
        ("Na 0 0 0\nCl 2 2 2", "Na 0 0\nCl 2 2 2", "Xx 0 0 0\nCl nan inf 2", "Na 1e400 0 0\nCl 2 2 2", "")
    )
    path = folder / rng.choice(("some.extxyz", "user@host.extxyz", "some@0:3.xyz"))
    text = f"{intact}{count}\n{comment}{words}\n{atoms}\n"
    path.write_text(text, encoding=rng.choice(("utf-8", "utf-8-sig")))
    return path, {"intact-0", "intact-1"}


def packed_json(rng: random.Random, originals: Path, folder: Path) -> Damaged:
    """Pack something that unpacks to much, or is no JSON, or ends early."""
    del originals
    content = rng.choice(
        (b"[" * 10**6, b" " * 10**8, b"[1, 2", b'{"structures": [{"lattice": 1, "sites": 2}]}', b"NaN")
    )
    data = gzip.compress(content)
    path = folder / "structures.json.gz"
    path.write_bytes(data if rng.random() < 0.7 else data[: rng.randrange(len(data))])
    return path, set()


def packed_table(rng: random.Random, originals: Path, folder: Path) -> Damaged:
    """Pack a table of much of nothing: a bomb, a cell without an end, rows without number, or cut short."""
    del originals
    content = rng.choice(
        (b" " * 2**29, b"a" * 2**29, b'"' + b"," * 2**28, b"x,\n" * 10**4, b'"a\n' * 10**4, b"\0" * 2**27, b"")
    )
    ending, pack = rng.choice((("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)))
    data = pack(b"material_id,cif\n" + content) if ending == "gz" or len(content) < 10**7 else pack(content[: 10**7])
    path = folder / f"table.csv.{ending}"
    path.write_bytes(data if rng.random() < 0.8 else data[: rng.randrange(len(data))])
    return path, set()


def table_cells(rng: random.Random, originals: Path, folder: Path) -> Damaged:
    """Write tables whose cells are of other kinds: lists, mappings, bytes, texts among numbers."""
    cif = (originals / "3.cif").read_text()
    odd = rng.choice(([1, 2], {"a": 1}, b"\xff", "\x1b[2J", "x" * 10_000, None, 3.5))
    rows = [{"material_id": f"intact-{n}", "cif": cif, "gap": str(n)} for n in range(3)]
    frame = pd.DataFrame(rows)
    column = rng.choice(("material_id", "cif", "gap"))
    values: list[object] = [odd] * 3 if column == "material_id" else [*frame[column][:2], odd]
    frame[column] = pd.Series(values, dtype=object)
    path = folder / "cells.parquet"
    try:
        frame.to_parquet(path)
    except Exception:  # noqa: BLE001  what parquet does not hold is a CSV
        path = folder / "cells.csv"
        frame.to_csv(path)
    named = set() if column == "material_id" else {"intact-0", "intact-1"}
    return path, named


def left_handed(rng: random.Random, originals: Path, folder: Path) -> Damaged:
    """Write a crystal in any of its bases, half of which are left-handed."""
    import ase.io

    atoms = ase.io.read(originals / f"{rng.choice(list(_CIFS))}.cif")
    assert not isinstance(atoms, list)
    basis = np.eye(3)[rng.sample(range(3), 3)] * [rng.choice((1, -1)) for _ in range(3)]
    scaled = atoms.get_scaled_positions(wrap=False)
    atoms.set_cell(basis @ atoms.cell.array, scale_atoms=False)
    atoms.set_scaled_positions(scaled @ np.linalg.inv(basis))
    atoms.info = {"id": "intact"}
    path = folder / "hand.extxyz"
    ase.io.write(path, atoms)
    return path, {"intact"}


KINDS: dict[str, Callable[[random.Random, Path, Path], Damaged]] = {
    "objects": folder_of_objects,
    "zip": zip_of_cifs,
    "frames": extxyz_frames,
    "json.gz": packed_json,
    "table": packed_table,
    "cells": table_cells,
    "left-handed": left_handed,
}
"""What damages each kind, by the name to draw it by."""
