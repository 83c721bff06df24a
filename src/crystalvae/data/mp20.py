"""MP-20 from its public home: checked by hash, retried, resumed, and never half there."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crystalvae.errors import DataError
from crystalvae.output_dir import process_alive

if TYPE_CHECKING:
    import requests
    from rich.progress import Progress, TaskID

log = logging.getLogger(__name__)

MP20_URL = "https://raw.githubusercontent.com/txie-93/cdvae/main/data/mp_20"
"""Home of MP-20 (Xie et al. 2022); the environment variable `CRYSTALVAE_MP20_URL` names a mirror instead."""
URL_VARIABLE = "CRYSTALVAE_MP20_URL"
MP20_SHA1 = {
    "train": "b1c9d498565ac2fd8d075a51ff2ef5e51ba6c21f",
    "val": "7efe4d7ebeb4f460ceaad35e5326c42111d9c9a1",
    "test": "5dc643041df53f5ce4970a79930ad262b4f07acd",
}
"""Git blob SHA-1 of each split's CSV."""

WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each new attempt; counted anew whenever an attempt brought something."""
TIMEOUT = (10.0, 30.0)
"""Seconds to wait for a connection, and for the next bytes."""
STALE_AFTER = 600.0
"""Seconds without a new byte after which a part that another process began is free to be taken over."""
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_MAX_BYTES = 2**28
_BLOCK = 2**16


class _AttemptError(Exception):
    """An attempt that failed; the message says why, and whether another may do better."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def fetch_mp20(folder: Path, splits: Sequence[str]) -> dict[str, Path]:
    """Return the CSV of each split in `folder`, downloading those that are not there yet.

    A file that is there is used if its hash is the published one. A download that breaks off is retried, and goes on
    where it stopped, also in a later run; it takes its name only when it is complete and its hash is right. Several
    processes may do this at once. Raises `DataError` for a split that MP-20 lacks, a file with the wrong content, a
    folder that cannot be written to, and where there is no connection, with the three ways to provide the files.
    """
    unknown = [split for split in splits if split not in MP20_SHA1]
    if unknown:
        raise DataError(f"MP-20, split {unknown[0]!r}: expected one of {', '.join(MP20_SHA1)}")
    paths = {split: folder / f"{split}.csv" for split in splits}
    missing = {split: path for split, path in paths.items() if not _present(path, MP20_SHA1[split])}
    if not missing:
        return paths
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _progress() as progress:
            for split, path in missing.items():
                _fetch(_url(split), path, MP20_SHA1[split], progress)
    except _AttemptError as error:
        raise DataError(_three_ways(folder, list(missing), str(error))) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{folder}: cannot keep MP-20 there ({reason}). Set CRYSTALVAE_CACHE_DIR to a folder that can be written "
            "to, or CRYSTALVAE_MP20_DIR to one that already holds train.csv, val.csv and test.csv"
        ) from error
    return paths


def git_blob_sha1(path: Path) -> str:
    """Return what git calls a file of this content: the SHA-1 of "blob <size>", a zero byte and the content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _present(path: Path, sha1: str) -> bool:
    if not path.is_file():
        return False
    try:
        found = git_blob_sha1(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if found != sha1:
        raise DataError(
            f"{path}: not the published MP-20 file (git blob SHA-1 {found}, expected {sha1}). Delete it to download it "
            "again, or, if these are crystals of your own, set data.source.data_dir=… to a folder outside the cache"
        )
    return True


def _url(split: str) -> str:
    return f"{(os.environ.get(URL_VARIABLE) or MP20_URL).rstrip('/')}/{split}.csv"


def _three_ways(folder: Path, splits: Sequence[str], reason: str) -> str:
    urls = ", ".join(_url(split) for split in splits)
    return (
        f"MP-20 ({', '.join(splits)}) is not here and could not be downloaded: {reason}. There are three ways to "
        "provide it: (a) connect to the internet and run again, which goes on where the download stopped; (b) set the "
        "environment variable CRYSTALVAE_MP20_DIR, or data.source.data_dir=…, to a folder with train.csv, val.csv and "
        f"test.csv; (c) fetch {urls} elsewhere and put {', '.join(f'{split}.csv' for split in splits)} into {folder}"
    )


# ---- one file -------------------------------------------------------------------------------------------------------


def _fetch(url: str, path: Path, sha1: str, progress: Progress) -> None:
    part = _claim_part(path)
    task = progress.add_task(path.name, total=None)
    try:
        resumed = _complete(url, part, progress, task)
        if resumed and git_blob_sha1(part) != sha1:
            # What an earlier run left may have been damaged; the whole file, from one server, deserves its own verdict.
            log.warning("%s: what an earlier run had downloaded does not fit; starting over", path)
            part.unlink()
            _complete(url, part, progress, task)
        found = git_blob_sha1(part)
        if found != sha1:
            with part.open("rb") as file:
                begins = file.read(40)
            part.unlink()
            raise DataError(
                f"{url}: not the published MP-20 file (git blob SHA-1 {found}, expected {sha1}; it begins {begins!r}), "
                "so it was deleted. A proxy or a login page may have answered in its place: open the address in a "
                f"browser, or unset {URL_VARIABLE} if it names a mirror"
            )
        part.replace(path)
    finally:
        if part.exists():  # free for any later run, this process's own included
            part.replace(_free_part(path))


def _complete(url: str, part: Path, progress: Progress, task: TaskID) -> bool:
    """Download until the part is complete; say whether its beginning was there before."""
    resumed, tries = part.exists() and part.stat().st_size > 0, 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _attempt(url, part, progress, task) and resumed
        except _AttemptError as error:
            grown = part.exists() and part.stat().st_size > before
            tries = 0 if grown else tries
            if not error.again or tries == len(WAITS):
                raise
            log.warning("%s: %s; trying again in %g s", url, error, WAITS[tries])
            time.sleep(WAITS[tries])
            tries += 1


def _attempt(url: str, part: Path, progress: Progress, task: TaskID) -> bool:
    """Ask once for what is missing and append it; say whether the beginning was kept."""
    import requests

    offset = part.stat().st_size if part.exists() else 0
    # identity: a compressed answer would count its range in other bytes than ours.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={offset}-"} if offset else {})}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416 and offset:  # nothing after what we have; the hash tells whether that is all
                return True
            if response.status_code not in {200, 206}:
                reason = f"{url} answered {response.status_code} {response.reason}"
                raise _AttemptError(reason, again=response.status_code in _RETRIED)
            kept = response.status_code == 206
            if kept and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                part.unlink(missing_ok=True)
                raise _AttemptError(f"{url} answered with another range than asked for", again=True)
            _append(response, part, offset if kept else 0, progress, task)
            return kept
    except requests.RequestException as error:
        # A wrong address stays wrong; everything else may be the network.
        raise _AttemptError(f"{url}: {_short(error)}", again=not isinstance(error, ValueError)) from error


def _append(response: requests.Response, part: Path, offset: int, progress: Progress, task: TaskID) -> None:
    length = response.headers.get("Content-Length", "")
    progress.update(task, completed=offset, total=offset + int(length) if length.isdigit() else None)
    with part.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        for block in response.iter_content(_BLOCK):
            if file.tell() + len(block) > _MAX_BYTES:
                raise _AttemptError(f"{response.url} sends far more than MP-20 holds", again=False)
            file.write(block)
            progress.advance(task, len(block))
        file.flush()
        os.fsync(file.fileno())


def _short(error: Exception) -> str:
    import requests

    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ConnectionError):
        return f"no connection ({type(error).__name__})"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


# ---- parts: each belongs to one process, or is free -----------------------------------------------------------------


def _free_part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _claim_part(path: Path) -> Path:
    """Return a part of our own: the largest one that nobody writes to any more, taken over by renaming it, or none yet.

    Renaming is what makes this safe without a lock: of two processes that want the same part, one finds it gone.
    """
    host = "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in socket.gethostname())
    own = path.with_name(f".{path.name}.{host}.{os.getpid()}.{secrets.token_hex(4)}.part")
    sizes: dict[Path, int] = {}
    for part in path.parent.glob(f".{path.name}*.part"):
        try:
            if _abandoned(part, path, host):
                sizes[part] = part.stat().st_size
        except FileNotFoundError:
            continue
    for part in sorted(sizes, key=lambda entry: sizes[entry], reverse=True):
        if own.exists():
            part.unlink(missing_ok=True)
            continue
        try:
            part.rename(own)
            own.touch()
        except FileNotFoundError:
            continue
    return own


def _abandoned(part: Path, path: Path, host: str) -> bool:
    if part == _free_part(path) or time.time() - part.stat().st_mtime > STALE_AFTER:
        return True
    owner_host, _, rest = part.name.removeprefix(f".{path.name}.").partition(".")
    pid = rest.partition(".")[0]
    if owner_host != host or not pid.isdigit() or int(pid) == os.getpid():  # another thread of ours may be at it
        return False
    return not process_alive(int(pid))
