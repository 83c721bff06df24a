"""Tables in CDVAE's format: CSV, feather and parquet with a column of CIFs."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import re
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crystalvae.data.cif import CrystalError, RawCrystal, parse_cif
from crystalvae.data.dataset import Row
from crystalvae.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

TABLE_SUFFIXES = (".csv", ".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zip", ".csv.zst", ".feather", ".parquet")
PROPERTY_NAMES = {"spacegroup.number": "spacegroup_number"}
"""Columns whose published names cannot be written as a config key."""

MISSING = ["", "nan", "NaN", "NAN", "-nan", "-NaN", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "None"]
"""What stands for a missing value in a CSV."""


MAX_UNPACKED, MAX_RATIO = 2**28, 100
"""A compressed CSV may unpack to so many bytes, or to so many times its size: CIFs give 10 or 20."""


def table_rows(path: Path) -> Iterator[Row]:
    """Return the rows of a table with a `cif` column and, where present, `material_id` and numeric columns.

    CSV (plain or compressed), feather and parquet are told apart by their names. Numeric columns become properties.
    The crystals are not yet parsed. Raises `DataError` where the file is missing, no table, without `cif` or rows.
    """
    frame, malformed = _read_frame(path)
    if "cif" not in frame.columns:
        found = ", ".join(map(repr, list(frame.columns)[:12])) or "none"
        raise DataError(f"{path}: no column 'cif'; found {found[:500]}. Expected CDVAE's format: material_id, cif, …")
    if frame.columns.duplicated().any():
        raise DataError(f"{path}: two columns are named {frame.columns[frame.columns.duplicated()][0]!r}; rename one")
    if frame.empty:
        raise DataError(f"{path}: the table has no rows")
    return _table_rows(path, frame, malformed)


def _read_frame(path: Path) -> tuple[pd.DataFrame, dict[int, str]]:
    """Return the table, and by number (from 1) the rows of a CSV that have more fields than its header, with why."""
    import pandas as pd

    try:
        if path.suffix in {".feather", ".parquet"}:
            return _read_columns(path), {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            frame = _read_csv(path)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: the file is empty") from error
    except Exception as error:  # parsers of damaged bytes raise nearly anything; all of it means this
        raise DataError(f"{path}: not a readable table ({' '.join(str(error).split())[:200]})") from error
    # pandas counts records, the header first: "Skipping line 3: expected 9 fields, saw 10" is row 2.
    lines = re.findall(r"Skipping line (\d+): (.*)", "\n".join(str(warning.message) for warning in caught))
    return frame, {int(line) - 1: reason for line, reason in lines}


def _check_unpacked(path: Path) -> None:
    """Raise `ValueError` where a compressed file unpacks to far more than a table does, before it fills the memory."""
    packers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    limit, total = max(MAX_UNPACKED, MAX_RATIO * path.stat().st_size), 0
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
    elif path.suffix in packers:
        with packers[path.suffix](path) as file:
            while total <= limit and (block := file.read(2**20)):
                total += len(block)
    if total > limit:
        raise ValueError(f"it unpacks to more than {limit / 2**20:.0f} MiB, {MAX_RATIO} times its size")


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    _check_unpacked(path)
    # Ids stay text: "NaN" is one (sodium nitride's formula), and 0012 is not 12. pandas 3 drops "NaN" in spite of a
    # converter, so every other column is told by name what stands for a missing value.
    header = pd.read_csv(path, nrows=0, encoding_errors="replace").columns
    return pd.read_csv(
        path,
        low_memory=False,
        encoding_errors="replace",
        on_bad_lines="warn",
        dtype={"material_id": str},
        keep_default_na=False,
        na_values={name: MISSING for name in header if name != "material_id"},
    )


def _read_columns(path: Path) -> pd.DataFrame:
    import pyarrow.feather
    import pyarrow.parquet

    read = pyarrow.feather.read_table if path.suffix == ".feather" else pyarrow.parquet.read_table
    table = read(path, memory_map=False)
    table.validate(full=True)  # damaged offsets would otherwise be followed into foreign memory
    return table.to_pandas()


def _table_rows(path: Path, frame: pd.DataFrame, malformed: dict[int, str]) -> Iterator[Row]:
    columns = _property_columns(path, frame)
    ids = frame["material_id"].tolist() if "material_id" in frame.columns else [None] * len(frame)
    number = 0
    for position, (crystal_id, cif) in enumerate(zip(ids, frame["cif"].tolist(), strict=True)):
        number += 1
        while number in malformed:
            yield "?", partial(_refuse_row, malformed[number]), {}
            number += 1
        properties = {name: value for name, values in columns.items() if (value := values[position]) is not None}
        yield _row_id(crystal_id, number), partial(_parse_cell, cif), properties
    for number in sorted(entry for entry in malformed if entry > number):
        yield "?", partial(_refuse_row, malformed[number]), {}


def _row_id(given: object, number: int) -> str:
    # pandas puts NaN where there is none; a list or a mapping, which parquet may hold, names no crystal.
    named = isinstance(given, (str, int, float, np.integer, np.floating)) and given != "" and given == given  # noqa: PLR0124
    return str(given) if named else f"row-{number}"


def _property_columns(path: Path, frame: pd.DataFrame) -> dict[str, list[float | str | None]]:
    """Return the columns of numbers, NaN where missing, and those of words, None where missing."""
    import pandas as pd

    columns: dict[str, list[float | str | None]] = {}
    for column in map(str, frame.columns):
        name = PROPERTY_NAMES.get(column, column)
        # An unnamed or repeated index column carries nothing; "." in a name cannot be addressed from a config.
        if column in {"cif", "material_id", ""} or column.startswith("Unnamed") or "." in name:
            continue
        given = (
            frame[column]
            if pd.api.types.is_numeric_dtype(frame[column].dtype)
            else _mostly_numbers(path, frame, column)
        )
        if given is None:
            columns[name] = [value if isinstance(value, str) else None for value in frame[column].tolist()]
            continue
        values = given.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
        huge = np.abs(values) > np.finfo(np.float32).max
        if huge.any():
            log.warning("%s: column %r has %d values beyond float32, taken as missing", path, column, int(huge.sum()))
            values[huge] = np.nan
        columns[name] = values.tolist()
    return columns


def _mostly_numbers(path: Path, frame: pd.DataFrame, column: str) -> pd.Series | None:
    """Return a column of texts of which at least half are numbers, the others missing; None for any other column."""
    import pandas as pd

    present = pd.Series(frame[column]).dropna()
    texts = present[present.map(lambda value: isinstance(value, (str, int, float)) and not isinstance(value, bool))]
    numbers = pd.Series(pd.to_numeric(texts, errors="coerce")).dropna()
    if len(numbers) == 0 or 2 * len(numbers) < len(present):
        return None
    others = [value for place, value in present.items() if place not in numbers.index]
    log.warning(
        "%s: column %r has %d cells that are no numbers, taken as missing: %s",
        path, column, len(others), ", ".join(repr(str(value)[:20]) for value in others[:3]),
    )  # fmt: skip
    return numbers.reindex(frame.index)


def _parse_cell(cif: object) -> RawCrystal:
    if isinstance(cif, str) and cif.strip():
        return parse_cif(cif)
    empty = isinstance(cif, str) or cif is None or cif != cif  # noqa: PLR0124  NaN is what pandas puts there
    raise CrystalError("the cif cell is empty" if empty else f"the cif cell holds {str(cif)[:40]!r}, no CIF")


def _refuse_row(reason: str) -> RawCrystal:
    raise CrystalError(f"malformed row: {reason}")
