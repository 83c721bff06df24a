"""Export of crystals: CIF, extended XYZ, POSCAR and ASE databases that all hold the very same structures."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.file_records import (
    CELL_DECIMALS,
    DECIMALS,
    LAST_ELEMENT,
    FileRecord,
    cif_text,
    described_groups,
    file_records,
)
from crystalvae.data.formulas import GRAM_PER_CM3, formulas_and_masses
from crystalvae.errors import ConfigError, DataError
from crystalvae.output_dir import MANIFEST_NAME, WRITER, check_output_dir, staged_output

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "check_output_dir", "default_ids", "write_crystals"]

log = logging.getLogger(__name__)

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def write_crystals(
    crystals: CrystalBatch,
    output_dir: Path | str,
    *,
    table: pd.DataFrame | None = None,
    formats: Sequence[str] = ("cif",),
    ids: Sequence[str] | None = None,
    overwrite: bool = False,
    info: Mapping[str, object] | None = None,
    pictures: Mapping[str, Callable[[Path], object]] | None = None,
    cif_symmetry: bool = True,
) -> list[Path]:
    """Write crystals and `samples.csv` to a folder and return the paths of all files, in the order of the crystals.

    Args:
        crystals: The crystals, in the order in which they are numbered.
        output_dir: New or empty folder; see `check_output_dir` for what is refused and `staged_output` for how it
            comes to be complete or not at all.
        table: One row per crystal of what `samples.csv` says beside ids, such as `describe` of
            `evaluation.validity.structure`. Of `formula`, `atoms`, `volume` (Å^3) and `density` (g/cm^3) those that it
            lacks follow.
        formats: Any of `cif` (one `<id>.cif` each), `poscar` (one `<id>.vasp` each), `extxyz` (`samples.extxyz`) and
            `db` (ASE's `samples.db`); empty for the table alone.
        ids: File names without suffix, else 0000, 0001, … with as many digits as are needed, at least four.
        overwrite: Replace the files of an earlier export. Other files in the folder are never touched.
        info: What to keep beside the list of files in `samples.json`, such as the seed.
        pictures: Further files of the export, by name, and what draws each to the path that it is given.
        cif_symmetry: CIFs of crystals in the symmetric description have the conventional cell, the space group with
            its operations, and the asymmetric unit; see `file_records.cif_text`. False: P 1, all atoms.

    Every format is written from one set of float64 arrays: atoms in the order given, cell lengths, angles and
    fractional coordinates rounded to 8 decimals. A CIF has no orientation, so all files have the cell in the one that
    pymatgen reads from a CIF (c along z, a in the xz plane); left-handed cells are inverted together with their
    coordinates, which leaves the structure and its chirality as they are. The same input gives the same bytes, the
    database included (its times are 0, its unique ids are hashes of the content). POSCAR repeats an element's symbol
    where the order of atoms does. What pymatgen's CIF reader does with these files as with all: it sorts atoms by
    element, and unless `frac_tolerance=0` moves coordinates within 1e-4 of 1/3 and 2/3 to these.

    Crystals that no format can hold (numbers that are not finite, cells without volume) keep their number and their row
    in `samples.csv`, where `valid` is false, but have no structure file; a warning says how many.

    Raises `DataError` for an element that is unknown (0) or a table of another length, `ConfigError` for unknown
    formats and unusable ids, `OutputError` for the folder.
    """
    names = default_ids(len(crystals)) if ids is None else list(ids)
    _check_arguments(crystals, table, formats, names)
    host = crystals.detach().to("cpu")
    records = file_records(
        host.atom_types, host.frac_coords, host.lattices, host.num_atoms, names,
        space_groups=described_groups(host.properties) if cif_symmetry else None,
    )  # fmt: skip
    if len(records) < len(crystals):
        missing = sorted(set(names) - {record.id for record in records})
        log.warning(
            "%d of %d crystals have no cell or coordinates that a file could hold; samples.csv alone lists them: %s",
            len(missing), len(crystals), ", ".join(missing[:5]) + (", …" if len(missing) > 5 else ""),
        )  # fmt: skip
    import pandas as pd

    with staged_output(output_dir, overwrite=overwrite) as folder:
        files = [name for key in FORMATS if key in formats for name in FORMATS[key](records, folder)]
        given = {} if table is None else table.reset_index(drop=True)
        own = {name: values for name, values in _facts(host).items() if name not in given}
        rows = pd.DataFrame({"id": pd.Series(names, dtype=object), **given, **own})
        rows.to_csv(folder / "samples.csv", index=False, float_format="%.8g", lineterminator="\n")
        for name, draw in (pictures or {}).items():
            draw(folder / name)
        files += ["samples.csv", *(pictures or {}), MANIFEST_NAME]
        manifest = {
            "written_by": WRITER,
            "complete": True,
            "crystals": len(crystals),
            "formats": [key for key in FORMATS if key in formats],
            "info": dict(info or {}),
            "files": files,
        }
        _write_text(folder / MANIFEST_NAME, json.dumps(manifest, indent=1, default=str) + "\n")
    return [Path(output_dir) / name for name in files]


def default_ids(count: int) -> list[str]:
    """Return 0000, 0001, … with as many digits as the last needs, at least four."""
    digits = max(4, len(str(count - 1)))
    return [f"{index:0{digits}d}" for index in range(count)]


def _facts(crystals: CrystalBatch) -> dict[str, Sequence[object]]:
    counts = crystals.num_atoms.numpy()
    formulas, masses = formulas_and_masses(crystals.atom_types.numpy(), counts)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        volumes = np.abs(np.linalg.det(crystals.lattices.double().numpy()))
        density = masses / volumes * GRAM_PER_CM3
    return {"formula": formulas, "atoms": counts.tolist(), "volume": volumes.tolist(), "density": density.tolist()}


def _check_arguments(
    crystals: CrystalBatch, table: pd.DataFrame | None, formats: Sequence[str], ids: list[str]
) -> None:
    if isinstance(formats, str) or not set(formats) <= set(FORMATS):
        raise ConfigError(f"formats={formats!r}: expected a list of some of {', '.join(FORMATS)}")
    if table is not None and (len(table) != len(crystals) or "id" in table.columns):
        raise DataError(
            f"table: expected one row for each of {len(crystals)} crystals and no column 'id', "
            f"got {len(table)} rows and columns {list(table.columns)}"
        )
    unusable = [name for name in ids if not isinstance(name, str) or not SAFE_ID.fullmatch(name)]
    if len(ids) != len(crystals) or unusable or len({name.lower() for name in ids}) != len(ids):
        raise ConfigError(
            f"ids: expected {len(crystals)} names, all different (upper and lower case count as the same), of letters, "
            f"digits and ._+- only; got {len(ids)}" + (f", among them {unusable[0]!r}" if unusable else "")
        )
    unknown = (crystals.atom_types < 1) | (crystals.atom_types > LAST_ELEMENT)
    if bool(unknown.any()):
        atom = int(unknown.nonzero()[0])
        raise DataError(
            f"crystal {ids[int(crystals.batch[atom])]}, atom {int(crystals.token_idx[atom])}: atomic number "
            f"{int(crystals.atom_types[atom])} is not an element; expected 1 to {LAST_ELEMENT}. Nothing was written"
        )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_cif(records: list[FileRecord], folder: Path) -> list[str]:
    for record in records:
        _write_text(folder / f"{record.id}.cif", cif_text(record))
    return [f"{record.id}.cif" for record in records]


def _write_poscar(records: list[FileRecord], folder: Path) -> list[str]:
    for record in records:
        runs: list[list[str]] = []
        for symbol in record.symbols:
            if runs and runs[-1][0] == symbol:
                runs[-1].append(symbol)
            else:
                runs.append([symbol])
        lines = [
            record.id,
            "1.0",
            *(" ".join(f"{value:.{CELL_DECIMALS}f}" for value in row) for row in record.cell.tolist()),
            " ".join(run[0] for run in runs),
            " ".join(str(len(run)) for run in runs),
            "direct",
            *(" ".join(f"{value:.{DECIMALS}f}" for value in row) for row in record.frac_coords.tolist()),
        ]
        _write_text(folder / f"{record.id}.vasp", "\n".join(lines) + "\n")
    return [f"{record.id}.vasp" for record in records]


def _write_extxyz(records: list[FileRecord], folder: Path) -> list[str]:
    from ase import Atoms
    from ase.io.extxyz import write_extxyz

    frames = (
        Atoms(numbers=record.numbers, positions=record.cart_coords, cell=record.cell, pbc=True, info={"id": record.id})
        for record in records
    )
    with (folder / "samples.extxyz").open("w", encoding="utf-8", newline="\n") as file:
        write_extxyz(file, frames, write_results=False)
    return ["samples.extxyz"]


def _write_db(records: list[FileRecord], folder: Path) -> list[str]:
    from ase.db import connect
    from ase.db.row import AtomsRow

    path = folder / "samples.db"
    connection: Any = connect(path, type="db", use_lock_file=False)
    with connection as database:
        for record in records:
            arrays = (record.numbers, record.cell, record.cart_coords)
            content = record.id.encode() + b"".join(array.tobytes() for array in arrays)
            row = AtomsRow(
                {
                    "numbers": record.numbers,
                    "positions": record.cart_coords,
                    "cell": record.cell,
                    "pbc": np.ones(3, dtype=bool),
                    "unique_id": hashlib.sha256(content).hexdigest()[:32],
                    "ctime": 0.0,
                    "user": None,
                }
            )
            database.write(row, data={"id": record.id})
    with closing(sqlite3.connect(path)) as raw:
        # ASE stamps each row with the time of writing; the rows are stored anew, so that no byte of it remains.
        raw.execute("UPDATE systems SET mtime = ctime")
        raw.commit()
        raw.execute("VACUUM")
    return ["samples.db"]


FORMATS: dict[str, Callable[[list[FileRecord], Path], list[str]]] = {
    "cif": _write_cif,
    "extxyz": _write_extxyz,
    "poscar": _write_poscar,
    "db": _write_db,
}
"""Writers by format: each writes records to a folder and returns the names of its files."""
