"""`data=files` on trajectories: neighbours stay on one side of a split, a smooth motion gives a smooth embedding."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms

from crystalvae import VAEModule
from crystalvae.checkpoints import bundled
from crystalvae.data.file_splits import divide
from crystalvae.data.sources import SPLITS, FileSource
from crystalvae.errors import ConfigError

FRACTIONS = {"val": 0.2, "test": 0.1}


def shear(frames: int, *, seed: int = 0) -> list[Atoms]:
    """CsCl sheared by a whole cell in small steps: the last cell is the first one again, in other vectors."""
    rng = np.random.default_rng(seed)
    cells = [4.12 * np.array([[1, 0, 0], [i / frames, 1, 0], [0, 0, 1]]) for i in range(frames)]
    shift = rng.uniform(0, 0.01)
    return [Atoms("CsCl", scaled_positions=[[shift] * 3, [0.5 + shift] * 3], cell=cell, pbc=True) for cell in cells]


def source(path: Path, tmp_path: Path, **options: Any) -> FileSource:
    return FileSource(name="shear", path=str(path), cache_dir=str(tmp_path / "cache"), **options)


def test_contiguous_parts_of_a_file_are_in_order_and_do_not_mix():
    rows = divide([10, 20], FRACTIONS, split="contiguous", seed=0, source="x")
    assert rows["train"] == [*range(7), *range(10, 24)]
    assert rows["val"] == [7, 8, *range(24, 28)]
    assert rows["test"] == [9, 28, 29]


@pytest.mark.parametrize("seed", range(5))
def test_by_file_no_file_is_in_two_splits(seed: int):
    sizes = [3, 10, 1, 7, 20, 5]
    owner = np.repeat(range(6), sizes)
    rows = divide(sizes, FRACTIONS, split="by_file", seed=seed, source="x")
    files = {name: set(owner[chosen].tolist()) for name, chosen in rows.items()}
    assert sorted(row for chosen in rows.values() for row in chosen) == list(range(46))
    assert sum(map(len, files.values())) == len(set.union(*files.values())) == 6
    assert all(len(rows[name]) == sum(sizes[file] for file in files[name]) for name in rows)
    assert {name: len(chosen) for name, chosen in files.items()} == {"train": 4, "val": 1, "test": 1}


def test_by_file_wants_a_file_for_every_split():
    assert divide([4, 4], {"val": 0.1, "test": 0.0}, split="by_file", seed=0, source="x")["test"] == []
    with pytest.raises(ConfigError, match="x has 2 files; expected at least 3"):
        divide([4, 4], FRACTIONS, split="by_file", seed=0, source="x")


def test_the_random_split_is_the_one_it_always_was():
    order = torch.randperm(30, generator=torch.Generator().manual_seed(7)).tolist()
    rows = divide([30], FRACTIONS, split="random", seed=7, source="x")
    assert rows == {"val": sorted(order[:6]), "test": sorted(order[6:9]), "train": sorted(order[9:])}


def test_a_folder_of_trajectories_is_split_by_whole_files(tmp_path: Path):
    folder = tmp_path / "runs"
    folder.mkdir()
    for i in range(4):
        ase.io.write(folder / f"run{i}.extxyz", shear(5 + i, seed=i))
    data = source(folder, tmp_path, split="by_file", niggli=False)
    files = {split: {name.rpartition("-")[0] for name in data.load(split).ids} for split in SPLITS}
    assert sum(map(len, files.values())) == 4
    assert set.union(*files.values()) == {"run0", "run1", "run2", "run3"}
    assert sum(len(data.load(split)) for split in SPLITS) == 5 + 6 + 7 + 8


def test_ids_that_files_share_are_told_apart(tmp_path: Path):
    folder = tmp_path / "runs"
    folder.mkdir()
    for i in range(3):
        frames = shear(4, seed=i)
        for k, atoms in enumerate(frames):
            atoms.info["id"] = f"frame{k}"
        ase.io.write(folder / f"run{i}.extxyz", frames)
    data = source(folder, tmp_path, split="contiguous", niggli=False, val_fraction=0.25, test_fraction=0.25)
    assert data.load("test").ids == [f"run{i}.extxyz/frame3" for i in range(3)]


def test_frames_of_one_motion_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    ase.io.write(tmp_path / "shear.extxyz", shear(20))
    with caplog.at_level(logging.WARNING):
        source(tmp_path / "shear.extxyz", tmp_path).load("train")
    assert "shear.extxyz: frames of one motion" in caplog.text
    assert "split=contiguous or by_file" in caplog.text
    assert "niggli=false" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        source(tmp_path / "shear.extxyz", tmp_path, split="contiguous", niggli=False).load("train")
        ase.io.write(
            tmp_path / "mixed.extxyz", [Atoms("CsCl", cell=[4] * 3, pbc=True, positions=[[0] * 3, [2] * 3])] * 3
        )
        mixed = [*shear(3), Atoms("NaCl", scaled_positions=[[0] * 3, [0.5] * 3], cell=[3.5] * 3, pbc=True)]
        ase.io.write(tmp_path / "mixed.extxyz", mixed)
        source(tmp_path / "mixed.extxyz", tmp_path).load("train")
    assert "motion" not in caplog.text


@pytest.mark.parametrize(("option", "value"), [("split", "by_frame"), ("niggli", "no")])
@pytest.mark.usefixtures("without_type_checks")
def test_options_that_are_none_are_refused_by_name(tmp_path: Path, option: str, value: str):
    with pytest.raises(ConfigError, match=rf"data\.source\.{option}: got '{value}'"):
        source(tmp_path / "shear.extxyz", tmp_path, **{option: value})


def test_cells_that_are_not_reduced_are_those_of_the_file(tmp_path: Path):
    frames = shear(20)
    ase.io.write(tmp_path / "shear.extxyz", frames)
    data = source(tmp_path / "shear.extxyz", tmp_path, niggli=False, val_fraction=0.0, test_fraction=0.0)
    cells = torch.from_numpy(np.stack([np.array(atoms.cell) for atoms in frames])).float()
    torch.testing.assert_close(data.load("train").crystals.lattices, cells)


def test_a_smooth_shear_gives_a_smooth_embedding(tmp_path: Path):
    ase.io.write(tmp_path / "shear.extxyz", shear(60))
    vae = VAEModule.load_from_checkpoint(bundled.find(Path("mp20-vae-small")), map_location="cpu")
    ratio = {}
    for niggli in (True, False):
        data = source(tmp_path / "shear.extxyz", tmp_path, niggli=niggli, val_fraction=0.0, test_fraction=0.0)
        steps = vae.embed(data.load("train").crystals).diff(dim=0).norm(dim=1)
        ratio[niggli] = float(steps.max() / steps.median())
    assert ratio[False] < 2.0
    assert ratio[True] > 5.0  # which is why there is the option
