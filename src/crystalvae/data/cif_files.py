"""Folders and zips of CIFs: each file a row, and one that cannot be read costs only itself."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from crystalvae.data.cif import CrystalError, RawCrystal, parse_cif
from crystalvae.data.dataset import Row
from crystalvae.errors import DataError

MAX_CIF_BYTES = 64 * 2**20
"""Files that are larger than this, or unpack to more, hold no crystal of at most `cif.MAX_SITES` atoms."""


def cif_paths(folder: Path) -> list[Path]:
    """Return the paths that end in .cif in a folder, by name; `DataError` where it cannot be looked into."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.name.endswith(".cif"))
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror or error})") from error


def folder_rows(folder: Path) -> Iterator[Row]:
    """Give the CIFs of a folder by name; `DataError` where there are none."""
    paths = cif_paths(folder)
    if not paths:
        raise DataError(f"{folder}: expected a folder with *.cif files, found none")
    return ((_readable(path.stem), partial(_read_file, path), {}) for path in paths)


def zip_rows(path: Path) -> Iterator[Row]:
    """Give the CIFs of a zip by name; `DataError` where it is no zip, or there are none."""
    try:
        archive = zipfile.ZipFile(path)  # its directory is read once; it is closed with the last of its rows
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: not a readable zip ({error})") from error
    members = sorted((entry for entry in archive.infolist() if entry.filename.endswith(".cif")), key=_name_of)
    if not members:
        raise DataError(f"{path}: expected a zip with *.cif files, found none")
    return (
        (_readable(PurePosixPath(entry.filename).stem), partial(_read_member, archive, entry), {}) for entry in members
    )


def _name_of(entry: zipfile.ZipInfo) -> str:
    return entry.filename


def _readable(name: str) -> str:
    """Return a file's name as text that can be stored: bytes that are no UTF-8 as their escapes."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def _read_file(path: Path) -> RawCrystal:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading from a pipe would wait for somebody to write
            raise CrystalError("cannot be read: not a file, but a folder, pipe or device of that name")
        _check_size(found.st_size)
        content = path.read_bytes()
    except (OSError, RuntimeError) as error:  # a loop of links, too
        raise CrystalError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_cif(content.decode("utf-8", errors="replace"))


def _read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> RawCrystal:
    _check_size(entry.file_size)  # no more than this is unpacked, whatever is in there
    try:
        content = archive.read(entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise CrystalError(f"cannot be read: {error}") from error
    return parse_cif(content.decode("utf-8", errors="replace"))


def _check_size(size: int) -> None:
    if size > MAX_CIF_BYTES:
        raise CrystalError(f"{size / 2**20:.0f} MiB, more than the {MAX_CIF_BYTES // 2**20} that a CIF may have")
