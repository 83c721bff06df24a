"""MP-20's download: whole, resumed, retried, refused; against a server on this machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from crystalvae.data import mp20 as download
from crystalvae.data.mp20 import fetch_mp20, git_blob_sha1
from crystalvae.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[1]
CONTENT = b"material_id,cif\n" + b"".join(b"row %06d\n" % number for number in range(60_000))
BLOCK = download._BLOCK  # what is not a whole block when a connection breaks is asked for again
HASH = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()


class Mirror(ThreadingHTTPServer):
    """A mirror of one file with the faults a test asks for, and a record of what was asked of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.statuses: list[int] = []  # answered in turn before anything is sent
        self.cuts: list[int] = []  # bytes sent before the connection is dropped, in turn
        self.ranges = True
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data/mp_20"

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay quiet when a client goes away."""


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append(asked)
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
            return
        content, start = self.server.content, 0
        if asked and self.server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:stop])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    server = Mirror()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv(download.URL_VARIABLE, server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setitem(download.MP20_SHA1, "val", HASH)
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def only_file(folder: Path) -> Path:
    (found,) = (entry for entry in folder.iterdir() if entry.suffix != ".lock")
    return found


def test_the_hash_is_gits(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"test content\n")
    assert git_blob_sha1(tmp_path / "file") == "d670460b4b4aece5915caf5c68d12f560a9fe3e4"  # from git's own book


def test_the_published_hashes_are_those_of_mp20(mp20_dir: Path) -> None:
    assert len(set(download.MP20_SHA1.values())) == 3
    readme = mp20_dir / "README.md"
    if readme.is_file():
        assert all(f"| {split}.csv | {sha1} |" in readme.read_text() for split, sha1 in download.MP20_SHA1.items())


def test_a_whole_download_is_one_request_and_the_next_call_none(mirror: Mirror, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    assert fetch_mp20(folder, ["val"]) == {"val": folder / "val.csv"}
    assert only_file(folder).read_bytes() == CONTENT
    assert mirror.requests == [None]
    fetch_mp20(folder, ["val"])
    assert mirror.requests == [None]


def test_a_dropped_connection_is_resumed_where_it_stopped(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = [3 * BLOCK + 1, BLOCK + 1]
    fetch_mp20(tmp_path, ["val"])
    assert only_file(tmp_path).read_bytes() == CONTENT
    first, second, third = mirror.requests
    assert (first, second, third) == (None, f"bytes={3 * BLOCK}-", f"bytes={4 * BLOCK}-")


def test_a_server_that_ignores_ranges_sends_everything_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts, mirror.ranges = [3 * BLOCK], False
    fetch_mp20(tmp_path, ["val"])
    assert only_file(tmp_path).read_bytes() == CONTENT
    assert mirror.requests == [None, f"bytes={3 * BLOCK}-"]


def test_busy_servers_are_asked_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.statuses = [500, 503, 429]
    fetch_mp20(tmp_path, ["val"])
    assert only_file(tmp_path).read_bytes() == CONTENT


def test_each_bit_of_progress_earns_new_attempts(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = [70_000] * 8
    fetch_mp20(tmp_path, ["val"])
    assert only_file(tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><title>Sign in</title>", b"", CONTENT[:-1], CONTENT + b"x"])
def test_wrong_content_is_deleted_and_refused(mirror: Mirror, tmp_path: Path, content: bytes) -> None:
    mirror.content = content
    with pytest.raises(DataError, match="not the published MP-20 file"):
        fetch_mp20(tmp_path, ["val"])
    assert [entry.name for entry in tmp_path.iterdir()] == [".val.csv.lock"]


def test_a_missing_file_is_not_asked_for_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.statuses = [404]
    with pytest.raises(DataError, match="404 Not Found"):
        fetch_mp20(tmp_path, ["val"])
    assert len(mirror.requests) == 1


def test_no_server_and_no_files_names_the_three_ways(mirror: Mirror, tmp_path: Path) -> None:
    mirror.shutdown()
    mirror.server_close()
    with pytest.raises(DataError) as caught:
        fetch_mp20(tmp_path, ["train", "val"])
    message = str(caught.value)
    assert "\n" not in message
    for part in ("(a) connect", "(b) set", "CRYSTALVAE_MP20_DIR", "data.source.data_dir=", "(c) fetch", str(tmp_path)):
        assert part in message
    assert f"{mirror.url}/train.csv, {mirror.url}/val.csv" in message


@pytest.mark.parametrize("url", ["nonsense", "file:///data", "http://", "http://[/"])
def test_an_address_that_is_none_is_our_error(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv(download.URL_VARIABLE, url)
    with pytest.raises(DataError, match="could not be downloaded"):
        fetch_mp20(tmp_path, ["val"])


def test_the_public_home_is_asked_unless_a_mirror_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(download.URL_VARIABLE, raising=False)
    assert download._url("test") == "https://raw.githubusercontent.com/txie-93/cdvae/main/data/mp_20/test.csv"
    monkeypatch.setenv(download.URL_VARIABLE, "https://mirror.example/mp/")
    assert download._url("test") == "https://mirror.example/mp/test.csv"


def test_files_put_there_by_hand_need_no_server(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_bytes(CONTENT)
    assert fetch_mp20(tmp_path, ["val"]) == {"val": tmp_path / "val.csv"}
    assert mirror.requests == []


def test_other_files_put_there_by_hand_are_neither_used_nor_overwritten(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"Delete it to download it again, or.*data_dir"):
        fetch_mp20(tmp_path, ["val"])
    assert (tmp_path / "val.csv").read_bytes() == b"mine"


def test_unknown_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'validation': expected one of train, val, test"):
        fetch_mp20(tmp_path, ["validation"])


def test_a_folder_that_cannot_be_made_is_our_error(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="CRYSTALVAE_CACHE_DIR"):
        fetch_mp20(tmp_path / "file" / "mp_20", ["val"])


# ---- parts that earlier runs and other processes left ---------------------------------------------------------------


def test_after_giving_up_a_later_call_goes_on(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = [4 * BLOCK, 0]
    with pytest.raises(DataError, match=r"broke off|no connection"):
        fetch_mp20(tmp_path, ["val"])
    assert only_file(tmp_path).name == ".val.csv.part"
    fetch_mp20(tmp_path, ["val"])
    assert mirror.requests == [None, *[f"bytes={4 * BLOCK}-"] * 2]
    assert only_file(tmp_path).read_bytes() == CONTENT


def test_a_killed_process_is_succeeded_by_the_next(mirror: Mirror, tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
import requests
from crystalvae.data import mp20 as download
whole = requests.Response.iter_content
def four_blocks(response, size):
    for number, block in enumerate(whole(response, size)):
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        yield block
requests.Response.iter_content = four_blocks
download.fetch_mp20(Path(sys.argv[1]), ["val"])
"""
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'src'}", "OMP_NUM_THREADS": "1"}
    died = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, timeout=60, check=False
    )
    assert died.returncode == -9, died.stderr.decode()
    assert only_file(tmp_path).stat().st_size == 4 * BLOCK
    fetch_mp20(tmp_path, ["val"])
    assert mirror.requests == [None, f"bytes={4 * BLOCK}-"]
    assert only_file(tmp_path).read_bytes() == CONTENT


def test_a_damaged_part_costs_a_new_start_and_no_more(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / ".val.csv.part").write_bytes(b"?" * 100_000)
    fetch_mp20(tmp_path, ["val"])
    assert mirror.requests == ["bytes=100000-", None]
    assert only_file(tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_already_complete_is_only_checked(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / ".val.csv.part").write_bytes(CONTENT)
    fetch_mp20(tmp_path, ["val"])
    assert mirror.requests == [f"bytes={len(CONTENT)}-"]
    assert only_file(tmp_path).read_bytes() == CONTENT


def test_two_at_once_both_get_the_file(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = [100_000, 150_000]
    results: list[dict[str, Path]] = []
    threads = [threading.Thread(target=lambda: results.append(fetch_mp20(tmp_path, ["val"]))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert [request for request in mirror.requests if request is None] == [None]  # only one of them began
    assert only_file(tmp_path).read_bytes() == CONTENT
