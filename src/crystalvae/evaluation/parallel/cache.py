"""Results kept between runs, found by the content they were computed from.

Worker processes may import this module, so it stays clear of torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

FILE_NAME = "evaluation-v2.sqlite"
_SEAL = 16
_AT_ONCE = 500
_SCHEMA = "CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"


class ResultCache:
    """JSON texts by key in one SQLite file; several evaluations may use it at once.

    A file that is damaged is set aside with a warning, and one that cannot be written to is done without: a cache only
    saves time.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder).expanduser() / FILE_NAME
        self._usable = True

    def __repr__(self) -> str:
        return f"ResultCache({str(self.path.parent)!r})"

    def get(self, keys: Iterable[bytes]) -> dict[bytes, str]:
        """Return the texts that are known, by key."""
        wanted = list(dict.fromkeys(keys))
        found: dict[bytes, str] = {}
        if not (self._usable and wanted):
            return found
        try:
            if not self.path.is_file():
                return found
            with closing(self._connect()) as connection:
                for start in range(0, len(wanted), _AT_ONCE):
                    part = wanted[start : start + _AT_ONCE]
                    marks = ",".join("?" * len(part))
                    query = f"SELECT key, value FROM results WHERE key IN ({marks})"  # noqa: S608  only question marks
                    for key, value in connection.execute(query, part):
                        text = _opened(bytes(key), value)
                        if text is not None:
                            found[bytes(key)] = text
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
        return found

    def put(self, results: Mapping[bytes, str]) -> None:
        """Keep texts by key; what is asked for and known is not computed again, so these are new or replace junk."""
        if not (self._usable and results):
            return
        sealed = [(key, _sealed(key, text)) for key, text in results.items()]
        try:
            with closing(self._connect()) as connection, connection:
                connection.executemany("INSERT OR REPLACE INTO results VALUES (?, ?)", sealed)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=60)
        try:
            connection.execute("PRAGMA synchronous=OFF")  # a crash of the machine costs the cache, nothing else
            connection.execute(_SCHEMA)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _give_up(self, error: Exception) -> None:
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if damaged and self.path.is_file():
            aside = self.path.with_name(f"{self.path.name}.damaged")
            try:
                self.path.replace(aside)
            except OSError:
                damaged = False
            else:
                log.warning("%s was damaged (%s); it is now %s and a new one is begun", self.path, error, aside.name)
                return
        self._usable = False
        log.warning("results are not kept: %s cannot be used (%s)", self.path, error)


def _sealed(key: bytes, text: str) -> str:
    """Return a text behind its checksum."""
    return hashlib.blake2b(key + text.encode(), digest_size=_SEAL // 2).hexdigest() + text


def _opened(key: bytes, value: object) -> str | None:
    """Return the text that was kept for a key, None where it is another's or junk, which is then computed again."""
    text = value[_SEAL:] if isinstance(value, str) else ""
    return text if value == _sealed(key, text) else None


def content_hash(*parts: object) -> bytes:
    """Return a hash of plain data: None, numbers, texts, bytes, arrays, and sequences and mappings of these.

    Equal content gives equal hashes on every machine; types count (1 is not 1.0, a list is not an array). Raises
    `TypeError` for anything else, whose content is not known.
    """
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        _feed(digest, part)
    return digest.digest()


def dump(value: object) -> str:
    """Return a result as JSON text; NaN and infinities are kept in Python's spelling."""
    return json.dumps(value, separators=(",", ":"))


def load(text: str) -> object:
    """Return the result that `dump` wrote."""
    return json.loads(text)


def _feed(digest: hashlib.blake2b, value: object) -> None:
    if isinstance(value, Mapping):
        digest.update(f"m{len(value)}:".encode())
        for key in sorted(value):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        digest.update(f"l{len(value)}:".encode())
        for entry in value:
            _feed(digest, entry)
    else:
        digest.update(_encoded(value))


def _encoded(value: object) -> bytes:
    if value is None:
        return b"n"
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        array = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("<"), copy=False))
        return f"a{array.dtype.str}{value.shape}:".encode() + array.tobytes()
    if isinstance(value, (bool, np.bool_)):
        return b"b1" if value else b"b0"
    if isinstance(value, (int, np.integer)):
        return f"i{int(value)};".encode()
    if isinstance(value, (float, np.floating)):
        return b"f" + struct.pack("<d", float(value))
    if isinstance(value, (str, bytes)):
        kind, data = (b"y", value) if isinstance(value, bytes) else (b"s", value.encode("utf-8", "surrogatepass"))
        return kind + f"{len(data)}:".encode() + data
    raise TypeError(f"cannot hash the content of a {type(value).__name__}; expected plain data")
