"""Checkpoints as plain data: what is in them, and how they are read without running anything."""

from __future__ import annotations

import os
import pickle
import platform
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from src.errors import CheckpointError, ConfigError
from src.vae_module.build import check_targets

KEY = "crystalvae"
"""Where in a checkpoint the description stands; beside it Lightning keeps `state_dict` and what resuming needs."""
FORMAT_VERSION = 1
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From a format version to the function that turns such a checkpoint into one of the next version."""
ModuleType = TypeVar("ModuleType", bound=nn.Module)
_PACKAGES = ("crystalvae", "torch", "lightning", "pymatgen", "ase", "gemmi", "spglib", "numpy")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def metadata(kind: str, config: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a model of a `kind`: all that rebuilding it needs, as plain data."""
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": dict(config),
        "statistics": dict(statistics),
        "versions": package_versions(),
    }


def read(path: Path, *, plain_data_only: bool) -> dict[str, Any]:
    """Read a checkpoint without executing anything from it, converting the published format unless `plain_data_only`.

    Raises `CheckpointError` for a file that is missing, damaged, or neither of the two formats.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not _is_archive(path):
        raise CheckpointError(f"{path}: not a checkpoint, or cut short ({path.stat().st_size} bytes)")
    _check_sizes(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if plain_data_only:
            message = (
                f"{path}: holds pickled objects, and weights_only=True accepts plain data only. A published Chemeleon2 "
                "checkpoint loads with weights_only=False, through a reader that executes nothing"
            )
            raise CheckpointError(message) from error
        from src.vae_module.chemeleon2 import convert

        return convert(path)
    except Exception as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict) or KEY not in content:
        keys = ", ".join(map(str, content))[:200] if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: not a crystalvae checkpoint; expected {KEY!r} and 'state_dict', found {keys}")
    return content


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, OSError):  # it may also raise on an end record that is damaged
        return False


def _check_sizes(path: Path) -> None:
    # torch.save never compresses; an archive that unpacks to more than it is could be made to fill the memory.
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({' '.join(str(error).split())[:200]})") from error
    if claimed > path.stat().st_size:
        raise CheckpointError(f"{path}: damaged checkpoint, {path.stat().st_size} bytes that claim to hold {claimed}")


def check_metadata(content: dict[str, Any], kind: str, *, trusted_targets: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a checkpoint's description, upgraded to this version; `CheckpointError` where it cannot be used."""
    meta = content.get(KEY)
    if not isinstance(meta, dict) or not isinstance(meta.get("config"), dict):
        raise CheckpointError(f"damaged checkpoint: {KEY!r} holds no config")
    found = meta.get("format_version")
    while isinstance(found, int) and found in UPGRADES:
        meta = UPGRADES[found](meta)
        found = meta["format_version"]
    if not isinstance(found, int) or found != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint format version {found!r}, written by crystalvae {_written_by(meta)}; this crystalvae reads "
            f"version {FORMAT_VERSION}: install a crystalvae at least as new as the one that wrote it"
        )
    if not isinstance(meta.get("kind"), str) or meta["kind"] != kind:
        raise CheckpointError(f"the checkpoint holds a {meta.get('kind')!r} model; expected {kind!r}")
    if not isinstance(meta.get("statistics"), dict):
        raise CheckpointError(f"damaged checkpoint: {KEY!r} holds no statistics")
    check_targets(meta["config"], trusted=trusted_targets)
    _check_plain("config", meta["config"])
    return meta


def _check_plain(name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_plain(f"{name}.{key}", entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _check_plain(name, entry)
    elif not isinstance(value, (bool, int, float, str, type(None))):
        raise CheckpointError(f"damaged checkpoint: {name} is a {type(value).__name__}; expected plain values")


def _written_by(meta: Mapping[str, Any]) -> str:
    versions = meta.get("versions")
    return str(versions.get(KEY, "of unknown version")) if isinstance(versions, dict) else "of unknown version"


def rebuild(
    kind: type[ModuleType], config: Mapping[str, Any], weights: Mapping[str, Tensor], *, trusted: bool = False
) -> ModuleType:
    """Build a model from a checkpoint's config and load its weights; `CheckpointError` where that cannot be done.

    Unless `trusted`, it is first built without memory (torch's meta device) to see whether the weights fit, so that a
    damaged width does not fill the machine. That asks of parts from elsewhere that they can be built so.
    """
    try:
        if not trusted:
            with torch.device("meta"):
                outline = kind(**config)
            load_weights(outline, weights, assign=True)
        module = kind(**config)
    except CheckpointError:
        raise
    except (ConfigError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(
            f"damaged checkpoint: its config does not describe a {kind.__name__} ({reason})"
        ) from error
    load_weights(module, weights)
    broken = [name for name, value in module.state_dict().items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise CheckpointError(f"damaged checkpoint: weights that are NaN or infinite in {', '.join(broken[:3])}")
    return module


def load_weights(module: nn.Module, state_dict: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Load weights, all of them and no others; `CheckpointError` lists what does not fit.

    With `assign` the module takes the given tensors themselves instead of copying them.
    """
    try:
        module.load_state_dict(state_dict, assign=assign)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(f"the checkpoint's weights do not fit its config: {reason}") from error


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(dict(content), partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
