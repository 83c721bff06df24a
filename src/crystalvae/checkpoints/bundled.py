"""The models that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

from crystalvae.errors import CheckpointError
from crystalvae.files import file_hash

MANIFEST = "sha256.json"
"""Beside the bundled models: name to sha256."""


def folder() -> Path:
    """Return where the bundled checkpoints are: inside the installed package, or beside `src` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "bundled"
    return inside if inside.is_dir() else package.parents[1] / "checkpoints"


def models() -> dict[str, str]:
    """Return the bundled models: name to sha256 of the file."""
    path = folder() / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def find(name_or_path: str | Path) -> Path:
    """Return the file of a bundled model, checked against its sha256, or the path that was given.

    Raises `CheckpointError` where a bundled file is not what was published.
    """
    name = str(name_or_path)
    path = Path(name_or_path).expanduser()
    hashes = models()
    if name not in hashes and not path.is_file():
        known = f"; bundled are {', '.join(sorted(hashes))}" if hashes else ""
        raise CheckpointError(f"{path}: no such checkpoint{known}")
    if name not in hashes or path.is_file():
        return path
    path = folder() / f"{name}.ckpt"
    if not path.is_file():
        raise CheckpointError(f"the bundled model {name} is missing: no file {path}; install again")
    if file_hash(path) != hashes[name]:
        raise CheckpointError(f"{path}: not the bundled model {name}, its sha256 differs; install again")
    return path
