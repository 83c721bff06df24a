"""Trajectories in one safetensors file, exactly as they are in memory: for caches."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from crystalvae.data.trajectories.trajectory import Trajectory
from crystalvae.errors import DataError

_FIELDS = ("atom_types", "frac_coords", "lattices", "times", "energies", "forces")


def save_trajectories(trajectories: Sequence[Trajectory], path: Path) -> None:
    """Write trajectories under a temporary name and rename it, so that a reader sees all of it or nothing."""
    tensors = {}
    for i, entry in enumerate(trajectories):
        fields = {name: getattr(entry, name) for name in _FIELDS}
        fields |= {f"properties/{name}": values for name, values in entry.properties.items()}
        tensors |= {f"{i}/{name}": values.contiguous() for name, values in fields.items() if values is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, partial, {"ids": json.dumps([entry.id for entry in trajectories])})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_trajectories(path: Path) -> list[Trajectory]:
    """Read what `save_trajectories` wrote; `DataError` where the file is damaged, or another."""
    try:
        with safe_open(path, framework="pt") as file:
            ids = json.loads(file.metadata()["ids"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return [
            Trajectory(
                id=name,
                **{field: tensors[f"{i}/{field}"] for field in _FIELDS if f"{i}/{field}" in tensors},
                properties={
                    key.removeprefix(f"{i}/properties/"): values
                    for key, values in tensors.items()
                    if key.startswith(f"{i}/properties/")
                },
            )
            for i, name in enumerate(ids)
        ]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: no trajectories, or a damaged file ({reason}); delete it and run again") from error
