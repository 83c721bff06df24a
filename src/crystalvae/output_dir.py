"""Folders that results are exported to: never half-written, and never at the cost of somebody else's files."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crystalvae.errors import OutputError
from crystalvae.files import process_alive

MANIFEST_NAME = "samples.json"
"""File beside the results that lists every file of the export, so that a later one knows which files are its own."""
WRITER = "crystalvae"
OWN_NAMES = re.compile(r"\d{4,}\.(cif|vasp)|samples\.(csv|json|extxyz|db)")
"""Names an export uses unless other ids are given."""


def check_output_dir(output_dir: Path | str, *, overwrite: bool = False) -> None:
    """Raise `OutputError` where an export into a folder would be refused; meant to be called before long work.

    Refused are: a folder that holds anything (unless `overwrite`, or unless all it holds is an export that was killed
    half-way), a place that cannot be written to, and, under `overwrite`, files of other origin under our names.
    """
    folder = _resolve(output_dir)
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"output_dir={folder} is a file; expected a folder. Give another output_dir")
        _probe(folder)
        if folder.is_dir():
            _check_contents(folder, overwrite=overwrite)
    except OSError as error:
        raise _as_output_error(folder, error) from error


def check_writable(output_dir: Path | str) -> None:
    """Raise `OutputError` where nothing could be written to a folder; meant to be called before long work."""
    folder = _resolve(output_dir)
    try:
        _probe(folder)
    except OSError as error:
        raise _as_output_error(folder, error) from error


@contextmanager
def staged_output(output_dir: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder to write to; what lies in it, `MANIFEST_NAME` included, becomes the export at the end.

    The folder is `<name>.partial-<pid>`, beside `output_dir` or, where that exists already, inside it (so that both are
    on one file system). A new `output_dir` appears in one rename. Into an existing one the files are moved one by one,
    bracketed by a manifest that says `complete: false` until the last has arrived; of what was there before, only files
    listed in the earlier manifest are removed. If the block raises, nothing but the old contents remains. Partial
    folders of killed runs are cleared away.

    Raises `OutputError` as `check_output_dir` does, and for any failure of the file system.
    """
    folder = _resolve(output_dir)
    check_output_dir(folder, overwrite=overwrite)
    try:
        _clear_stale(folder)
        parent = folder if folder.is_dir() else folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        partial = parent / f"{folder.name}.partial-{os.getpid()}"
        partial.mkdir()
        try:
            yield partial
            _commit(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise _as_output_error(folder, error) from error


def _probe(folder: Path) -> None:
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    with tempfile.TemporaryDirectory(prefix=".crystalvae-probe-", dir=existing):
        pass


def _resolve(output_dir: Path | str) -> Path:
    try:
        return Path(output_dir).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(
            f"output_dir={output_dir!r} is not a usable path ({error}). Give another output_dir"
        ) from error


def _as_output_error(folder: Path, error: OSError) -> OutputError:
    if isinstance(error, OutputError):
        return error
    reason = error.strerror or str(error)
    return OutputError(f"cannot write to output_dir={folder}: {reason}. Give a folder that can be written to")


def _check_contents(folder: Path, *, overwrite: bool) -> None:
    present = {entry.name for entry in folder.iterdir() if not _is_partial(entry.name, folder)}
    ours, complete = _earlier_export(folder)
    others = present - ours
    if not overwrite and (others or (present and complete)):
        raise OutputError(
            f"output_dir={folder} already holds {len(present)} files or folders; expected a new or empty folder. "
            "Give another output_dir, or overwrite=true to replace the files of an earlier export there"
        )
    _refuse_clash(folder, {name for name in others if OWN_NAMES.fullmatch(name)})


def _refuse_clash(folder: Path, names: set[str]) -> None:
    if names:
        raise OutputError(
            f"output_dir={folder} holds {', '.join(sorted(names)[:3])}, which no earlier export there is known to have "
            f"written ({MANIFEST_NAME} does not list them) and which would be replaced. Move them, or give another "
            "output_dir"
        )


def _earlier_export(folder: Path) -> tuple[set[str], bool]:
    """Return the names of an earlier export's files in a folder, and whether it was completed."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set(), True
    if not isinstance(manifest, dict) or manifest.get("written_by") != WRITER:
        return set(), True
    files = manifest.get("files")
    names = {name for name in files if isinstance(name, str)} if isinstance(files, list) else set()
    # A manifest is a file anybody can edit: only plain names of plain files in this very folder count.
    plain = {name for name in names if Path(name).name == name and (folder / name).is_file()}
    return plain | {MANIFEST_NAME}, manifest.get("complete") is not False


def _commit(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.replace(folder)
        return
    new = {entry.name for entry in partial.iterdir()}
    old, _ = _earlier_export(folder)
    _refuse_clash(folder, {name for name in new - old if (folder / name).exists()})
    marker = {"written_by": WRITER, "complete": False, "files": sorted(old | new)}
    marker_path = partial / f"{MANIFEST_NAME}.marker"
    marker_path.write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    marker_path.replace(folder / MANIFEST_NAME)
    for name in sorted(old - new):
        (folder / name).unlink(missing_ok=True)
    for name in sorted(new - {MANIFEST_NAME}):
        (partial / name).replace(folder / name)
    (partial / MANIFEST_NAME).replace(folder / MANIFEST_NAME)


def _is_partial(name: str, folder: Path) -> bool:
    return re.fullmatch(re.escape(folder.name) + r"\.partial-\d+", name) is not None


def _clear_stale(folder: Path) -> None:
    for place in (folder.parent, folder):
        if not place.is_dir():
            continue
        with suppress(PermissionError):
            for entry in sorted(place.iterdir()):
                if _is_partial(entry.name, folder) and not process_alive(int(entry.name.rpartition("-")[2])):
                    shutil.rmtree(entry, ignore_errors=True)
