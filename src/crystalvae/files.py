"""Files: written whole or not at all, found again by their content; running processes and installed packages."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_under_way: set[Path] = set()


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, in a folder that exists then; a file of that name is deleted at the end.

    What a killed process leaves is known by its name, see `remove_stale_partials`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")
    _under_way.add(partial)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
        _under_way.discard(partial)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; at the end of the block the file takes its own name.

    It does so in one rename, once its content is on the disk, so that readers see the old file or all of the new one.
    If the block raises, nothing changes and nothing is left. The folder is made where it is missing.
    """
    with partial_file(path) as partial:
        yield partial
        put_in_place(partial, path)


def put_in_place(partial: Path, path: Path) -> None:
    """Give a complete file its name, once its content is on the disk."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, its line ends as they are, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def remove_stale_partials(path: Path) -> None:
    """Delete what killed processes left beside `path` under the temporary names of `whole_file`."""
    for partial in path.parent.glob(f".{path.name}.*.tmp"):
        pid = partial.name.removesuffix(".tmp").rpartition(".")[2]
        if pid.isdigit() and not process_alive(int(pid)) and partial not in _under_way:
            partial.unlink(missing_ok=True)


def process_alive(pid: int) -> bool:
    """Say whether another process with this number runs on this machine; True where that cannot be known.

    This process's own number says False: what it left under that number is of an earlier process.
    """
    if pid == os.getpid():
        return False
    if sys.platform == "win32":
        return True  # os.kill(pid, 0) would end the process there; leftovers stay, and disturb nobody
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def file_hash(path: Path, *, algorithm: str = "sha256", prefix: bytes = b"") -> str:
    """Return the hash of a prefix and a file's content, in hexadecimal digits."""
    digest = hashlib.new(algorithm, prefix, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def files_key(paths: Iterable[Path], **options: object) -> str:
    """Return a short key for names and content of files, in this order, and the options they are read with.

    Of what is no file, or cannot be read, the name alone counts.
    """
    parts = [repr(sorted(options.items())), *(f"{path.name}{_hash_or_reason(path)}" for path in paths)]
    return hashlib.sha256("".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


def _hash_or_reason(path: Path) -> str:
    try:
        return file_hash(path) if path.is_file() else "no file"  # a pipe would never end
    except OSError as error:
        return f"unreadable {error.errno}"


def arrays_key(arrays: Iterable[tuple[str, np.ndarray]], *, settings: str = "") -> str:
    """Return a short key for named arrays, in this order, and the settings of what is made of them."""
    digest = hashlib.sha256(settings.encode())
    for name, values in arrays:
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def package_version(name: str) -> str | None:
    """Return the version of an installed package, None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {name: package_version(name) for name in packages}
    return {name: version for name, version in found.items() if version is not None}
