"""Extended XYZ frame by frame, so that a damaged frame costs only itself."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from crystalvae.data.cif import MAX_SITES, CrystalError
from crystalvae.data.plain_crystals import Frame
from crystalvae.errors import DataError

_CELL_LINES = b"VEC"
"""What lines after the atoms begin with, where the cell stands there."""


def extxyz_frames(path: Path) -> Iterator[Frame | CrystalError]:
    """Give each frame of a file, or why it cannot be read; `DataError` where the file itself cannot be.

    A frame is a line with the number of atoms, a comment and a line for each atom. Where that number is none, nobody
    can tell where the next frame begins: the rest of the file is one frame that cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from _frames(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _frames(file: IO[bytes]) -> Iterator[Frame | CrystalError]:
    line = file.readline().removeprefix(codecs.BOM_UTF8)
    while line:
        if not line.strip():
            line = file.readline()
            continue
        try:
            count = int(line)
        except ValueError:
            shown = line[:40].decode("utf-8", errors="backslashreplace").strip()
            yield CrystalError(f"expected a number of atoms, got {shown!r}; nothing from here on can be read")
            return
        if count < 0:
            yield CrystalError(f"got {count} atoms; nothing from here on can be read")
            return
        if count > MAX_SITES:
            for _ in islice(file, count + 1):
                pass
            yield CrystalError(f"{count} atoms, more than {MAX_SITES}")
            line = file.readline()
            continue
        lines = [line, *islice(file, count + 1)]
        line = file.readline()
        while line.startswith(_CELL_LINES):
            lines.append(line)
            line = file.readline()
        yield _frame(lines) if len(lines) >= count + 2 else CrystalError(f"the file ends within its {count} atoms")


def _frame(lines: list[bytes]) -> Frame | CrystalError:
    from ase.io.extxyz import read_xyz

    text = b"".join(lines).decode("utf-8", errors="replace")
    try:
        (atoms,) = read_xyz(StringIO(text), index=cast("Any", slice(0, 1)))  # annotated as a number alone
    except Exception as error:  # noqa: BLE001  ASE's readers raise nearly anything on damaged text
        return CrystalError(f"no frame of extended XYZ: {' '.join(str(error).split())[:200]}")
    return Frame(atoms.numbers, atoms.positions, np.asarray(atoms.cell), atoms.info)
