"""Limits that a checkpoint's content is held against before anything of it is copied, upgraded or built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crystalvae.errors import CheckpointError

MAX_DEPTH, MAX_VALUES = 48, 1_000_000
"""How deep a checkpoint may be nested, and how many values it may have; shared ones count as often as they appear."""
MAX_WIDTH = 65_536
"""No width, count or number of steps in a model's config is larger; a published model's widest is 2,048."""
MAX_STEPS = 10_000
"""Nor has a sampler more steps."""
MAX_ATOMS = 10_000
"""Nor has a crystal of a training set more atoms."""
MAX_SHARING = 8
"""Tensors may claim so many times the bytes of their file, as averaged weights share some with the others."""
_PARTS = ("encoder", "decoder", "bottleneck", "latent_dim", "prior", "head", "condition")
"""Sections of a config in which numbers are sizes; elsewhere they may be steps of training."""


def check_content(path: Path, content: Any) -> None:
    """Raise `CheckpointError` for what is nested too deeply or in itself, too large, or claims more than is there.

    Tensors have to be dense, with as many numbers in their storage as their shape says: one number that is shown a
    billion times costs nothing on the disk, and all the memory when it is copied.
    """
    waiting, count, claimed = [(content, 0)], 0, 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise CheckpointError(
                f"{path}: damaged checkpoint, nested more than {MAX_DEPTH} levels deep or with more than "
                f"{MAX_VALUES:,} values"
            )
        if isinstance(value, Tensor):
            claimed += _bytes(path, value)
        elif isinstance(value, Mapping):
            waiting.extend((entry, depth + 1) for entry in value.values())
            count += sum(isinstance(key, (tuple, frozenset)) for key in value)
        elif isinstance(value, (list, tuple, set, frozenset)):
            if len(value) > MAX_VALUES:
                count += len(value)
            waiting.extend((entry, depth + 1) for entry in list(value)[: MAX_VALUES + 1])
    if claimed > MAX_SHARING * max(path.stat().st_size, 2**16):
        raise CheckpointError(f"{path}: damaged checkpoint, tensors that claim {claimed:,} bytes")


def _bytes(path: Path, value: Tensor) -> int:
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        raise CheckpointError(f"{path}: damaged checkpoint, a tensor that is not dense ({value.layout})")
    size = value.numel() * value.element_size()
    if size > value.untyped_storage().nbytes():
        raise CheckpointError(
            f"{path}: damaged checkpoint, a tensor of shape {tuple(value.shape)} in "
            f"{value.untyped_storage().nbytes()} bytes"
        )
    return size


def check_sizes(config: Mapping[str, Any], *, tensors: int) -> None:
    """Raise `CheckpointError` for sizes in a model's config that no model of ours has.

    A model of n layers has at least n tensors, so `tensors`, the number of those in the checkpoint, bounds its layers.
    """
    for key in _PARTS:
        if key in config:
            _check_part(key, config[key], max(tensors, 1))
    if isinstance(config.get("vae"), Mapping):
        check_sizes(config["vae"], tensors=tensors)


def _check_part(name: str, value: Any, tensors: int) -> None:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _check_part(f"{name}.{key}", entry, tensors)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _check_part(name, entry, tensors)
    elif isinstance(value, int) and not isinstance(value, bool):
        last = name.rpartition(".")[2]
        most = MAX_STEPS if "steps" in last else tensors if "layers" in last or last == "depth" else MAX_WIDTH
        if abs(value) > most:
            raise CheckpointError(f"damaged checkpoint: its config has {name}={value}; expected at most {most}")


def checked_statistics(statistics: Any) -> dict[str, Any]:
    """Return what a checkpoint says of its training set; `CheckpointError` where that cannot be.

    `num_atoms` is {atoms: crystals}; `dataset` is a name, never a path.
    """
    if not isinstance(statistics, Mapping):
        raise CheckpointError("damaged checkpoint: 'crystalvae' holds no statistics")
    counts = statistics.get("num_atoms")
    if counts is not None and not (isinstance(counts, Mapping) and all(map(_is_count, counts, counts.values()))):
        raise CheckpointError(
            f"damaged checkpoint: statistics.num_atoms is {str(counts)[:80]!r}; expected the number of crystals for "
            f"each number of atoms, 1 to {MAX_ATOMS}"
        )
    if counts is not None and counts and not sum(counts.values()):
        raise CheckpointError("damaged checkpoint: statistics.num_atoms says that there are no crystals")
    if "dataset" in statistics and not isinstance(statistics["dataset"], str):
        raise CheckpointError(f"damaged checkpoint: statistics.dataset is {str(statistics['dataset'])[:80]!r}, no name")
    return dict(statistics)


def _is_count(atoms: Any, crystals: Any) -> bool:
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (atoms, crystals))
    return whole and 1 <= atoms <= MAX_ATOMS and 0 <= crystals < 2**53
