"""The cache of parsed crystals: all of it or nothing on disk, rebuilt when damaged, and never out of date."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from crystalvae.data import datamodule, dataset_file
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.datamodule import CrystalDataModule
from crystalvae.data.dataset import CrystalDataset, SkippedRow
from crystalvae.data.dataset_file import StoredIds, cached, load_dataset, save_dataset, write_parts
from crystalvae.data.sources import PrototypeSource
from crystalvae.errors import ConfigError, DataError
from tests.samples import assert_same_crystals, random_crystals

REPOSITORY = Path(__file__).resolve().parents[1]


def some_crystals() -> CrystalDataset:
    return CrystalDataset(random_crystals(), ["mp-1", "mp-2", "ü", "4"], [SkippedRow(4, "mp-5", "no atoms")])


def never() -> CrystalDataset:
    raise AssertionError("built although it was there")


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    before = some_crystals()
    save_dataset(before, tmp_path / "deep" / "set.safetensors")
    after = load_dataset(tmp_path / "deep" / "set.safetensors")
    assert_same_crystals(after.crystals, before.crystals, atol=0.0)
    assert after.crystals.atom_types.dtype == after.crystals.num_atoms.dtype == torch.int64
    assert torch.equal(after.crystals.properties["energy"], before.crystals.properties["energy"])
    assert list(after.ids) == list(before.ids)
    assert list(after.skipped) == list(before.skipped)


def test_a_data_set_is_built_once(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    first = cached(path, some_crystals)
    assert_same_crystals(cached(path, never).crystals, first.crystals, atol=0.0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.safetensors"]


@pytest.mark.parametrize("name", ["lattices", "frac_coords", "atom_types", "num_atoms", "id_text", "properties/energy"])
def test_one_bit_anywhere_is_found_and_mended(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers that are still numbers: only the checksum tells."""
    path = tmp_path / "set.safetensors"
    first = cached(path, some_crystals)
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    start = json.loads(content[8 : 8 + size])[name]["data_offsets"][0]
    content[8 + size + start] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="checksum"):
        load_dataset(path)
    again = cached(path, some_crystals)
    assert "checksum" in caplog.text
    assert "building it again" in caplog.text
    assert_same_crystals(again.crystals, first.crystals, atol=0.0)
    assert_same_crystals(cached(path, never).crystals, first.crystals, atol=0.0)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("lattices", torch.nan, "not finite"), ("frac_coords", torch.inf, "not finite"),
        ("atom_types", 200, "beyond 118"),
        ("num_atoms", 0, "damaged"), ("id_ends", 99, "ids"),
    ],
)  # fmt: skip
def test_a_file_without_a_checksum_is_looked_at(tmp_path: Path, name: str, value: float, reason: str) -> None:
    path = tmp_path / "set.safetensors"
    save_dataset(some_crystals(), path)
    tensors = load_file(path)
    save_file(tensors, path)
    assert len(load_dataset(path)) == 4
    tensors[name].view(-1)[0] = value
    save_file(tensors, path)
    with pytest.raises(DataError, match=reason):
        load_dataset(path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: full"), None])
def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, error: Exception | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "folder" / "set.safetensors"
    if error is None:
        path.parent.touch()  # a file where the folder should be
    else:

        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(dataset_file, "save_file", fail)
    assert_same_crystals(cached(path, some_crystals).crystals, some_crystals().crystals, atol=0.0)
    assert "could not keep the dataset cache" in caplog.text
    assert not path.exists()


def flipped(content: bytes) -> bytes:
    return content[:8] + bytes([content[8] ^ 255]) + content[9:]


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-10], lambda c: b"", lambda c: c[:50], flipped, lambda c: b"\xff" * 100]
)
def test_a_damaged_cache_is_built_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "set.safetensors"
    save_dataset(some_crystals(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="damaged dataset cache"):
        load_dataset(path)
    cached(path, some_crystals)
    assert "building it again" in caplog.text
    cached(path, never)


def test_nothing_is_left_behind_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(b"the disk is full after this")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset_file, "save_file", fail)
    assert len(cached(tmp_path / "set.safetensors", some_crystals)) == 4  # the crystals are there all the same
    assert list(tmp_path.iterdir()) == []


def test_what_dead_processes_left_is_removed_and_no_more(tmp_path: Path) -> None:
    died = subprocess.Popen([sys.executable, "-c", ""])
    died.wait()
    stale = tmp_path / f".set.safetensors.{died.pid}.tmp"
    living = tmp_path / f".set.safetensors.{os.getppid()}.tmp"
    other = tmp_path / f".other.safetensors.{died.pid}.tmp"
    for partial in (stale, living, other):
        partial.write_bytes(b"half")
    cached(tmp_path / "set.safetensors", some_crystals)
    assert not stale.exists()
    assert living.exists()
    assert other.exists()


def test_killed_while_building_the_cache_a_rerun_is_undisturbed(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from safetensors.torch import save_file

from crystalvae.data import datamodule, dataset_file
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.datamodule import CrystalDataModule
from tests.samples import random_crystals

def stall(tensors, path, **_):
    path.write_bytes(b"half of the file")
    print("writing", flush=True)
    time.sleep(60)

dataset_file.save_file = stall
dataset_file.cached(Path(sys.argv[1]), lambda: dataset_file.CrystalDataset(random_crystals(), ["a", "b", "c", "d"]))
"""
    path = tmp_path / "set.safetensors"
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'src'}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()  # SIGKILL
    (partial,) = tmp_path.iterdir()
    assert partial.suffix == ".tmp"
    assert list(cached(path, some_crystals).ids) == ["mp-1", "mp-2", "ü", "4"]
    assert list(tmp_path.iterdir()) == [path]


def test_forty_thousand_crystals_come_from_the_cache_in_under_a_second(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    crystals = random_crystals(tuple(int(n) for n in rng.integers(1, 21, 44_476)), rotated=False)
    save_dataset(CrystalDataset(crystals, [f"mp-{i}" for i in range(44_476)]), tmp_path / "set.safetensors")
    start = time.process_time()
    assert len(cached(tmp_path / "set.safetensors", never)) == 44_476
    assert time.process_time() - start < 1.0


def test_files_of_the_first_version_are_still_read(tmp_path: Path) -> None:
    crystals, path = random_crystals(), tmp_path / "old.safetensors"
    tensors = {"frac_coords": crystals.frac_coords, "lattices": crystals.lattices}
    tensors |= {"atom_types": crystals.atom_types.byte(), "num_atoms": crystals.num_atoms.int()}
    texts = {"ids": '["a", "b", "c", "d"]', "skipped": "[]"}
    tensors |= {name: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) for name, text in texts.items()}
    save_file(tensors, path)
    after = load_dataset(path)
    assert_same_crystals(after.crystals, crystals, atol=0.0)
    assert list(after.ids) == ["a", "b", "c", "d"]


def test_stored_ids_are_a_sequence(tmp_path: Path) -> None:
    save_dataset(some_crystals(), tmp_path / "set.safetensors")
    ids, expected = load_dataset(tmp_path / "set.safetensors").ids, ["mp-1", "mp-2", "ü", "4"]
    assert isinstance(ids, StoredIds)
    assert ids == list(ids)
    assert list(ids) == ids
    assert ids != list(ids)[:-1]
    assert ids != [*list(ids)[:-1], "another"]
    assert ids != "ids"
    assert list(ids) == ids[:] == expected
    assert [ids[i] for i in range(-4, 4)] == 2 * expected
    assert ids[1::2] == expected[1::2]
    assert "mp-2" in ids
    for beyond in (4, -5):
        with pytest.raises(IndexError):
            ids[beyond]


def test_parts_written_one_by_one_are_the_same_file_as_all_at_once(tmp_path: Path) -> None:
    parts = [
        CrystalDataset(random_crystals((3, 1), seed=1), ["a", "bc"], [SkippedRow(2, "x", "bad")]),
        CrystalDataset(random_crystals((2,), seed=2), ["ü"]),
        CrystalDataset(random_crystals((5, 4), seed=3), ["", "e"], [SkippedRow(8, "y", "worse")]),
    ]
    assert write_parts(iter(parts), tmp_path / "deep" / "set.safetensors") == 5
    after = load_dataset(tmp_path / "deep" / "set.safetensors")
    assert_same_crystals(after.crystals, CrystalBatch.cat([part.crystals for part in parts]), atol=0.0)
    assert torch.equal(
        after.crystals.properties["energy"], torch.cat([part.crystals.properties["energy"] for part in parts])
    )
    assert list(after.ids) == ["a", "bc", "ü", "", "e"]
    assert [row.reason for row in after.skipped] == ["bad", "worse"]
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["set.safetensors"]


def test_parts_that_cannot_be_joined_leave_nothing(tmp_path: Path) -> None:
    other = CrystalDataset(random_crystals((2,)).replace(properties={}), ["x"])
    for parts in ([some_crystals(), other], []):
        with pytest.raises(ValueError, match="write_parts: expected"):
            write_parts(iter(parts), tmp_path / "set.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_set_shares_the_file_and_a_copy_in_memory_does_not(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    save_dataset(some_crystals(), path)
    mapped = load_dataset(path)
    copied = load_dataset(path).in_memory()
    with path.open("r+b") as file:  # what lies in memory cannot change with the file
        file.seek(8)
        start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        file.seek(start)
        file.write(b"\0" * (path.stat().st_size - start))
    assert not any(getattr(mapped.crystals, name).any() for name in ("atom_types", "frac_coords", "lattices"))
    assert_same_crystals(copied.crystals, some_crystals().crystals, atol=0.0)
    assert copied.ids == ["mp-1", "mp-2", "ü", "4"]


@pytest.mark.parametrize(
    ("memory_map", "share", "mapped"), [(True, 1, True), (False, 0, False), ("auto", 0, True), ("auto", 1, False)]
)
def test_data_modules_map_what_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_map: bool | str, share: float, mapped: bool
) -> None:
    class Stored:
        name = "stored"

        def load(self, split: str) -> CrystalDataset:
            return cached(tmp_path / f"{split}.safetensors", some_crystals)

    monkeypatch.setattr(datamodule, "MAPPED_SHARE", share)
    Stored().load("train")
    module = CrystalDataModule(source=Stored(), batch_size=2, memory_map=memory_map)
    assert isinstance(module.dataset("train").ids, StoredIds) is mapped


def test_memory_map_knows_three_answers() -> None:
    with pytest.raises(ConfigError, match=r"data\.memory_map: got 'maybe'; expected auto, true or false"):
        CrystalDataModule(source=PrototypeSource(), batch_size=2, memory_map="maybe")
