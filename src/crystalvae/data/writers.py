"""Export of crystals: CIF, extended XYZ, POSCAR and ASE databases that all hold the very same structures."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gemmi
import numpy as np
import torch

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import lattice_from_parameters, lattice_to_parameters
from crystalvae.errors import ConfigError, DataError
from crystalvae.output_dir import MANIFEST_NAME, WRITER, check_output_dir, staged_output

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "check_output_dir", "default_ids", "write_crystals"]

log = logging.getLogger(__name__)

DECIMALS = 8
"""Decimals of cell lengths (Å), angles (degrees), fractional and Cartesian coordinates (Å) in every file."""
CELL_DECIMALS = 10
"""Decimals of the components of the cell vectors (Å)."""
MIN_VOLUME = 1e-3
"""Cells smaller than this (Å^3) cannot be read back from lengths and angles."""
SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class _Record:
    """One crystal as every format writes it: already rounded, right-handed, c along z and a in the xz plane."""

    id: str
    symbols: list[str]
    numbers: np.ndarray
    frac_coords: np.ndarray
    cart_coords: np.ndarray
    cell: np.ndarray
    parameters: np.ndarray


def write_crystals(
    crystals: CrystalBatch,
    output_dir: Path | str,
    *,
    table: pd.DataFrame,
    formats: Sequence[str] = ("cif",),
    ids: Sequence[str] | None = None,
    overwrite: bool = False,
    info: Mapping[str, object] | None = None,
) -> list[Path]:
    """Write crystals and `samples.csv` to a folder and return the paths of all files, in the order of the crystals.

    Args:
        crystals: The crystals, in the order in which they are numbered.
        output_dir: New or empty folder; see `check_output_dir` for what is refused and `staged_output` for how it
            comes to be complete or not at all.
        table: One row a crystal, as `evaluation.validity.structure.describe` gives it, with more columns if wanted;
            `samples.csv` is `id` and these columns.
        formats: Any of `cif` (one `<id>.cif` each), `poscar` (one `<id>.vasp` each), `extxyz` (`samples.extxyz`) and
            `db` (ASE's `samples.db`); empty for the table alone.
        ids: File names without suffix, else 0000, 0001, … with as many digits as are needed, at least four.
        overwrite: Replace the files of an earlier export. Other files in the folder are never touched.
        info: What to keep beside the list of files in `samples.json`, such as the seed.

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
    records = _records(crystals, names)
    if len(records) < len(crystals):
        missing = sorted(set(names) - {record.id for record in records})
        log.warning(
            "%d of %d crystals have no cell or coordinates that a file could hold; samples.csv alone lists them: %s",
            len(missing), len(crystals), ", ".join(missing[:5]) + (", …" if len(missing) > 5 else ""),
        )  # fmt: skip
    import pandas as pd

    with staged_output(output_dir, overwrite=overwrite) as folder:
        files = [name for key in FORMATS if key in formats for name in FORMATS[key](records, folder)]
        rows = table.reset_index(drop=True)
        rows.insert(0, "id", pd.Series(names, dtype=object))
        rows.to_csv(folder / "samples.csv", index=False, float_format="%.8g", lineterminator="\n")
        files += ["samples.csv", MANIFEST_NAME]
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


def _check_arguments(crystals: CrystalBatch, table: pd.DataFrame, formats: Sequence[str], ids: list[str]) -> None:
    if isinstance(formats, str) or not set(formats) <= set(FORMATS):
        raise ConfigError(f"formats={formats!r}: expected a list of some of {', '.join(FORMATS)}")
    if len(table) != len(crystals) or "id" in table.columns:
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
    unknown = (crystals.atom_types < 1) | (crystals.atom_types > 118)
    if bool(unknown.any()):
        atom = int(unknown.nonzero()[0])
        raise DataError(
            f"crystal {ids[int(crystals.batch[atom])]}, atom {int(crystals.token_idx[atom])}: atomic number "
            f"{int(crystals.atom_types[atom])} is no element; expected 1 to 118. Nothing was written"
        )


def _records(crystals: CrystalBatch, ids: list[str]) -> list[_Record]:
    host = crystals.detach().to("cpu")
    lattices, frac_coords = host.lattices.double(), host.frac_coords.double()
    # -f · -L = f · L: the same atoms in a right-handed cell, so that lengths and angles say everything.
    sign = torch.where(torch.linalg.det(lattices) < 0, -1.0, 1.0).double()
    lengths, angles = lattice_to_parameters(lattices * sign[:, None, None])
    lengths, degrees = lengths.round(decimals=DECIMALS), torch.rad2deg(angles).round(decimals=DECIMALS)
    cells = lattice_from_parameters(lengths, torch.deg2rad(degrees)).round(decimals=CELL_DECIMALS) + 0.0
    # Rounded first, so that 1 - 1e-12 becomes 0 and not 1; adding 0.0 makes -0.0 into 0.0.
    frac_coords = torch.remainder((frac_coords * sign[host.batch, None]).round(decimals=DECIMALS), 1.0)
    frac_coords = frac_coords.round(decimals=DECIMALS) + 0.0
    cart_coords = torch.einsum("ni,nij->nj", frac_coords, cells[host.batch]).round(decimals=DECIMALS) + 0.0
    parameters = torch.cat((lengths, degrees), dim=-1)
    counts = host.num_atoms.tolist()
    usable = torch.isfinite(parameters).all(-1) & (torch.linalg.det(cells) >= MIN_VOLUME) & (host.num_atoms > 0)
    bad_atoms = host.batch[~torch.isfinite(cart_coords).all(-1)]
    usable[bad_atoms] = False
    symbols = [gemmi.Element(number).name for number in range(119)]
    pieces = zip(
        usable.tolist(), ids, host.atom_types.split(counts), frac_coords.split(counts), cart_coords.split(counts),
        cells.numpy(), parameters.numpy(), strict=True,
    )  # fmt: skip
    return [
        _Record(name, [symbols[z] for z in numbers.tolist()], numbers.numpy(), frac.numpy(), cart.numpy(), cell, values)
        for keep, name, numbers, frac, cart, cell, values in pieces
        if keep
    ]


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_cif(records: list[_Record], folder: Path) -> list[str]:
    from pymatgen.core import Composition

    for record in records:
        counts = {symbol: record.symbols.count(symbol) for symbol in dict.fromkeys(record.symbols)}
        units = math.gcd(*counts.values())
        with warnings.catch_warnings():  # pymatgen sorts by electronegativity, and warns of noble gases
            warnings.filterwarnings("ignore", message="No Pauling electronegativity")
            formula = Composition(counts).reduced_formula
        block = gemmi.cif.Block(record.id)
        pairs = zip(
            ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"),
            record.parameters.tolist(),
            strict=True,
        )
        for name, value in pairs:
            block.set_pair(f"_cell_{name}", f"{value:.{DECIMALS}f}")
        block.set_pair("_cell_volume", f"{np.linalg.det(record.cell):.{DECIMALS}f}")
        block.set_pair("_cell_formula_units_Z", str(units))
        block.set_pair("_symmetry_space_group_name_H-M", "'P 1'")
        block.set_pair("_symmetry_Int_Tables_number", "1")
        block.set_pair("_chemical_formula_structural", formula)
        block.set_pair("_chemical_formula_sum", gemmi.cif.quote(_formula_sum(counts, units)))
        symmetry = block.init_loop("_symmetry_equiv_pos_", ["site_id", "as_xyz"])
        symmetry.add_row(["1", "'x, y, z'"])
        sites = block.init_loop(
            "_atom_site_",
            ["type_symbol", "label", "symmetry_multiplicity", "fract_x", "fract_y", "fract_z", "occupancy"],
        )
        x, y, z = ([f"{value:.{DECIMALS}f}" for value in column] for column in record.frac_coords.T.tolist())
        labels = [f"{symbol}{index}" for index, symbol in enumerate(record.symbols)]
        ones = ["1"] * len(labels)
        sites.set_all_values([record.symbols, labels, ones, x, y, z, ones])
        _write_text(folder / f"{record.id}.cif", block.as_string())
    return [f"{record.id}.cif" for record in records]


def _formula_sum(counts: Mapping[str, int], units: int) -> str:
    # Hill order, as the CIF dictionary has it: with carbon C and H first, else by the alphabet.
    order = sorted(
        counts, key=lambda symbol: ("C" in counts and symbol != "C", "C" in counts and symbol != "H", symbol)
    )
    return " ".join(f"{symbol}{counts[symbol] // units}" for symbol in order)


def _write_poscar(records: list[_Record], folder: Path) -> list[str]:
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


def _write_extxyz(records: list[_Record], folder: Path) -> list[str]:
    from ase import Atoms
    from ase.io.extxyz import write_extxyz

    frames = (
        Atoms(numbers=record.numbers, positions=record.cart_coords, cell=record.cell, pbc=True, info={"id": record.id})
        for record in records
    )
    with (folder / "samples.extxyz").open("w", encoding="utf-8", newline="\n") as file:
        write_extxyz(file, frames, write_results=False)
    return ["samples.extxyz"]


def _write_db(records: list[_Record], folder: Path) -> list[str]:
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


FORMATS: dict[str, Callable[[list[_Record], Path], list[str]]] = {
    "cif": _write_cif,
    "extxyz": _write_extxyz,
    "poscar": _write_poscar,
    "db": _write_db,
}
"""Writers by format: each writes records to a folder and returns the names of its files."""
