"""Files are written whole or not at all, and found again by what is in them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from crystalvae.files import (
    arrays_key,
    file_hash,
    files_key,
    installed_versions,
    package_version,
    process_alive,
    remove_stale_partials,
    whole_file,
    write_text,
)


def test_a_file_takes_its_name_when_all_of_it_is_there(tmp_path: Path):
    path = tmp_path / "deep" / "file.txt"
    with whole_file(path) as partial:
        partial.write_text("first")
        assert not path.exists()
        assert partial.parent == path.parent
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
    assert path.read_text() == "first"


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "file.txt"
    write_text(path, "old\n")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of a text \ud800")
    with pytest.raises(FileNotFoundError), whole_file(path):
        pass  # nothing was written
    assert path.read_bytes() == b"old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_in_one_process_do_not_meet(tmp_path: Path):
    path = tmp_path / "file.txt"
    texts = [str(number) * 200_000 for number in range(8)]

    def write(text: str) -> None:
        remove_stale_partials(path)
        write_text(path, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_dead_processes_left_is_removed(tmp_path: Path):
    died = subprocess.Popen([sys.executable, "-c", ""])
    died.wait()
    assert process_alive(os.getppid())
    assert not process_alive(died.pid)
    assert not process_alive(os.getpid())  # what bears our number was left by an earlier process
    names = [f".a.txt.00.{pid}.tmp" for pid in (died.pid, os.getpid(), os.getppid())]
    for name in (*names, f".b.txt.00.{died.pid}.tmp", ".a.txt.mine.tmp"):
        (tmp_path / name).touch()
    remove_stale_partials(tmp_path / "a.txt")
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {names[2], f".b.txt.00.{died.pid}.tmp", ".a.txt.mine.tmp"}


def test_hashes_are_those_of_hashlib(tmp_path: Path):
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    assert file_hash(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    prefixed = file_hash(tmp_path / "file", algorithm="sha1", prefix=b"abc")
    assert prefixed == hashlib.sha1(b"abc" + content).hexdigest()


def test_the_key_of_files_follows_content_options_and_order_but_not_time_or_folder(tmp_path: Path):
    (tmp_path / "copy").mkdir()
    first, second, copy = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "copy" / "a.csv"
    for path in (first, second, copy):
        path.write_bytes(b"cif\nx\n")
    key = files_key([first], max_atoms=20)
    os.utime(first, (0, 0))
    assert key == files_key([copy], max_atoms=20)
    others = [files_key([first], max_atoms=19), files_key([second], max_atoms=20)]
    others += [files_key([first, second], max_atoms=20), files_key([second, first], max_atoms=20)]
    first.write_bytes(b"cif\ny\n")
    others.append(files_key([first], max_atoms=20))
    assert len({key, *others}) == 6


def test_the_key_of_arrays_follows_values_names_types_shapes_and_settings():
    values = np.arange(6.0)
    keys = [
        arrays_key([("a", values)]),
        arrays_key([("b", values)]),
        arrays_key([("a", values + 1)]),
        arrays_key([("a", values.reshape(2, 3))]),
        arrays_key([("a", values.view(np.int64))]),
        arrays_key([("a", values)], settings="x"),
        arrays_key([("a", values), ("b", values)]),
    ]
    assert len(set(keys)) == len(keys)
    assert arrays_key([("a", np.arange(12.0)[::2] / 2)]) == keys[0]  # the layout in memory does not matter


def test_versions_are_those_of_installed_packages():
    assert package_version("numpy") == np.__version__
    assert package_version("no-such-package") is None
    assert installed_versions(["numpy", "no-such-package"]) == {"numpy": np.__version__}
