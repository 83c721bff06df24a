"""How crystals of one's own files are divided into train, val and test, so that frames of one motion do not mislead."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import CrystalDataset
from crystalvae.errors import ConfigError, DataError

log = logging.getLogger(__name__)

FileSplit = Literal["random", "contiguous", "by_file"]
FILE_SPLITS: tuple[FileSplit, ...] = ("random", "contiguous", "by_file")
FEWEST_FRAMES = 3
"""So many crystals of the same atoms in one file are taken for the frames of one motion."""


def divide(
    sizes: Sequence[int], fractions: Mapping[str, float], *, split: FileSplit, seed: int, source: str
) -> dict[str, list[int]]:
    """Return the rows of train, val and test, in order, of files with so many crystals one after the other.

    `fractions` are the shares of val and test. `random` takes crystals at random; `contiguous` takes of each file the
    first for train, then val, then test; `by_file` takes whole files at random, at least one for each share above 0.

    Raises `ConfigError` where there are fewer files than `by_file` needs.
    """
    total = sum(sizes)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    generator = torch.Generator().manual_seed(seed)
    if split == "random":
        return _in_order(_shares(torch.randperm(total, generator=generator).tolist(), fractions))
    rows = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    if split == "contiguous":
        from_the_end = dict(reversed(list(fractions.items())))
        parts = [_shares(file[::-1], from_the_end) for file in rows]
        return _in_order({name: [row for part in parts for row in part[name]] for name in ("train", *fractions)})
    needed = 1 + sum(share > 0 for share in fractions.values())
    if len(rows) < needed:
        raise ConfigError(
            f"data.source.split=by_file: {source} has {len(rows)} files; expected at least {needed}, one per split. "
            "Use contiguous, or a folder with more"
        )
    order = torch.randperm(len(rows), generator=generator).tolist()
    files = _shares(order, fractions, at_least_one=True)
    return _in_order({name: [row for file in chosen for row in rows[file]] for name, chosen in files.items()})


def _shares(items: list[int], fractions: Mapping[str, float], *, at_least_one: bool = False) -> dict[str, list[int]]:
    """Return the first items for the first share, the next for the next, and the rest for train."""
    chosen: dict[str, list[int]] = {}
    first = 0
    for name, share in fractions.items():
        count = max(round(share * len(items)), int(at_least_one and share > 0))
        chosen[name] = items[first : first + count]
        first += count
    return {**chosen, "train": items[first:]}


def _in_order(chosen: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {name: sorted(rows) for name, rows in chosen.items()}


def frame_files(folder: Path) -> list[Path]:
    """Return the trajectories in a folder without CIFs, in the order of their names; `DataError` where none are."""
    from crystalvae.data.trajectories.formats import COMPRESSED, TRAJECTORY_PATTERNS

    found = {
        path
        for pattern in TRAJECTORY_PATTERNS
        for ending in COMPRESSED
        for path in folder.glob(pattern + ending)
        if path.is_file() and not path.name.startswith(".")
    }
    if not found:
        raise DataError(
            f"{folder}: expected a folder with *.cif files, or with {', '.join(TRAJECTORY_PATTERNS)}; found none"
        )
    return sorted(found)


def joined(datasets: Sequence[CrystalDataset], files: Sequence[Path]) -> CrystalDataset:
    """Return the crystals of several files as one; where ids are not unique the names of their files go before them."""
    if len(datasets) == 1:
        return datasets[0]
    ids = [name for dataset in datasets for name in dataset.ids]
    if len(set(ids)) < len(ids):
        ids = [f"{path.name}/{name}" for dataset, path in zip(datasets, files, strict=True) for name in dataset.ids]
    skipped = [row for dataset in datasets for row in dataset.skipped]
    return CrystalDataset(CrystalBatch.cat(dataset.crystals for dataset in datasets), ids, skipped)


def warn_of_motion(
    datasets: Sequence[CrystalDataset], files: Sequence[Path], *, split: FileSplit, niggli: bool
) -> None:
    """Log a warning where crystals of one file look like frames of one motion and are not treated as such."""
    moving = [path.name for path, dataset in zip(files, datasets, strict=True) if _same_atoms(dataset.crystals)]
    if not moving:
        return
    problems = []
    if split == "random":
        problems.append(
            "frames next to each other come to lie in different splits, so that what is held out is known: set "
            "data.source.split=contiguous or by_file"
        )
    if niggli:
        problems.append("every frame is reduced on its own, and cells jump: set data.source.niggli=false")
    if problems:
        some = ", ".join(moving[:3]) + (", …" if len(moving) > 3 else "")
        log.warning("%s: frames of one motion, by their atoms. As it is, %s", some, "; and ".join(problems))


def _same_atoms(crystals: CrystalBatch) -> bool:
    if len(crystals) < FEWEST_FRAMES or bool((crystals.num_atoms != crystals.num_atoms[0]).any()):
        return False
    atom_types = crystals.atom_types.view(len(crystals), -1).sort(dim=1).values
    return bool((atom_types == atom_types[0]).all())
