"""MP-20 from its public home: checked by hash, retried, resumed, and never half there."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crystalvae.errors import DataError
from crystalvae.files import file_hash, put_in_place

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

RETRIES, BACKOFF = 4, 0.5
"""How often a request that fails is repeated, and the first wait in seconds, which doubles each time."""
TIMEOUT = (10.0, 30.0)
"""Seconds to wait for a connection, and for the next bytes."""
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_MAX_BYTES = 2**28
_BLOCK = 2**16


class _NoAnswerError(Exception):
    """The file could not be had; the message says why."""


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
    except _NoAnswerError as error:
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
    return file_hash(path, algorithm="sha1", prefix=b"blob %d\0" % path.stat().st_size)


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


def _fetch(url: str, path: Path, sha1: str, progress: Progress) -> None:
    """Download a file beside its name; a part that an earlier run left is kept and continued."""
    from filelock import FileLock

    part = path.with_name(f".{path.name}.part")
    with FileLock(path.with_name(f".{path.name}.lock")):  # the system frees it where its process is killed
        if _present(path, sha1):
            return  # another process was at it
        task = progress.add_task(path.name, total=None)
        resumed = part.exists()
        _download(url, part, progress, task)
        if resumed and git_blob_sha1(part) != sha1:
            # What an earlier run left may have been damaged; the whole file, from one server, deserves its own verdict.
            log.warning("%s: what an earlier run had downloaded does not fit; starting over", path)
            part.unlink()
            _download(url, part, progress, task)
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
        put_in_place(part, path)


def _download(url: str, part: Path, progress: Progress, task: TaskID) -> None:
    """Ask for what is missing until the part is complete, or nothing new comes."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    retry = Retry(RETRIES, backoff_factor=BACKOFF, status_forcelist=_RETRIED, raise_on_status=False)
    part.touch()
    with requests.Session() as session:
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        while True:
            before = part.stat().st_size
            try:
                return _append(session, url, part, progress, task)
            except requests.RequestException as error:  # urllib3 has retried what is worth it, but for broken answers
                if part.stat().st_size <= before:
                    raise _NoAnswerError(f"{url}: {_short(error)}") from error
                log.warning("%s: %s; resuming where it stopped", url, _short(error))


def _append(session: requests.Session, url: str, part: Path, progress: Progress, task: TaskID) -> None:
    offset = part.stat().st_size
    # identity: a compressed answer would count its range in other bytes than ours.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={offset}-"} if offset else {})}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416 and offset:
            return  # nothing after what we have; the hash tells whether that is all
        if response.status_code not in {200, 206}:
            raise _NoAnswerError(f"{url} answered {response.status_code} {response.reason}")
        kept = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if response.status_code == 206 and not kept:
            raise _NoAnswerError(f"{url} answered with another range than asked for")
        length = response.headers.get("Content-Length", "")
        start = offset if response.status_code == 206 else 0
        progress.update(task, completed=start, total=start + int(length) if length.isdigit() else None)
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for block in response.iter_content(_BLOCK):
                if file.tell() + len(block) > _MAX_BYTES:
                    raise _NoAnswerError(f"{url} sends far more than MP-20 holds")
                file.write(block)
                file.flush()  # what has come stays, also where this process is killed
                progress.advance(task, len(block))


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
