"""Checkpoints as plain data: what is in them, and how they are read without running anything."""

from __future__ import annotations

import pickle
import platform
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.checkpoints import limits, published
from crystalvae.checkpoints.trusted import check_targets, names_foreign_parts
from crystalvae.checkpoints.upgrades import FORMAT_VERSION, KEY, upgraded
from crystalvae.errors import CheckpointError, ConfigError
from crystalvae.files import package_version, whole_file

PACKED = "int8"
"""Where a published checkpoint keeps weight matrices of 8 bits per number, beside `state_dict`; see `pack_rows`."""
ModuleType = TypeVar("ModuleType", bound=nn.Module)
_PACKAGES = ("crystalvae", "torch", "lightning", "pymatgen", "ase", "gemmi", "spglib", "numpy")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {name: package_version(name) or "not installed" for name in _PACKAGES}
    return {"python": platform.python_version(), **found}


def metadata(kind: str, config: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a model of a `kind`: all that rebuilding it needs, as plain data.

    Raises `ConfigError` where the model was built of objects that its config does not describe.
    """
    foreign = _not_plain("", config)
    if foreign is not None:
        name, value = foreign
        raise ConfigError(
            f"{name}: is a {type(value).__name__}, and a checkpoint holds plain data; to save this model, give it a "
            "config with a _target_ that builds it"
        )
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": dict(config),
        "statistics": dict(statistics),
        "versions": package_versions(),
    }


def read(path: Path, *, plain_data_only: bool, vae: Path | None = None) -> dict[str, Any]:
    """Read a checkpoint without executing anything from it, converting the published format unless `plain_data_only`.

    `vae` is the published VAE checkpoint that has the settings of the VAE inside a published latent diffusion.
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
        found = published.convert(path, vae=vae)
        limits.check_content(path, [found.weights, found.config])
        return {"state_dict": found.weights, KEY: metadata(found.kind, found.config, found.statistics)}
    except Exception as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({' '.join(str(error).split())[:200]})") from error
    limits.check_content(path, content)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict) or KEY not in content:
        keys = ", ".join(map(str, content))[:200] if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: not a crystalvae checkpoint; expected {KEY!r} and 'state_dict', found {keys}")
    packed = content.pop(PACKED, {})
    if not isinstance(packed, dict):
        raise CheckpointError(f"{path}: damaged checkpoint: {PACKED!r} is a {type(packed).__name__}")
    for name, value in content["state_dict"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: damaged checkpoint: weights {str(name)[:80]!r} are a {type(value).__name__}"
            )
    content["state_dict"] |= {name: unpack_rows(name, entry) for name, entry in packed.items()}
    return upgraded(content)


def pack_rows(weight: Float[Tensor, "R C"]) -> dict[str, Tensor]:
    """Return a matrix as {"values": int8 (R, C), "scales": (R,)}; value · scale is off by at most half a scale.

    The scale of a row is its largest magnitude / 127.
    """
    scales = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return {"values": (weight / scales[:, None]).round().to(torch.int8), "scales": scales}


def unpack_rows(name: str, entry: Any) -> Float[Tensor, "R C"]:
    """Return the matrix that `pack_rows` packed; `CheckpointError` where it is not one."""
    parts = [entry.get(key) for key in ("values", "scales")] if isinstance(entry, dict) else []
    match parts:
        case [Tensor() as values, Tensor() as scales] if (
            values.dtype == torch.int8 and values.ndim == 2 and scales.shape == values.shape[:1]
        ):
            return values.float() * scales.float()[:, None]
    raise CheckpointError(f"damaged checkpoint: {name} is not a matrix of 8-bit integers with a scale per row")


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


def check_metadata(content: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a checkpoint's description, upgraded to this version; `CheckpointError` where it cannot be used.

    `kind` is the kind of model expected, or several with "|" between them.
    """
    meta = upgraded(content).get(KEY)
    if not isinstance(meta, dict) or not isinstance(meta.get("config"), dict):
        raise CheckpointError(f"damaged checkpoint: {KEY!r} holds no config")
    found = meta.get("format_version")
    if not isinstance(found, int) or found != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint format version {found!r}, written by crystalvae {_written_by(meta)}; this crystalvae reads "
            f"version {FORMAT_VERSION}: install a crystalvae at least as new as the one that wrote it"
        )
    if not isinstance(meta.get("kind"), str) or meta["kind"] not in kind.split("|"):
        expected = " or ".join(map(repr, kind.split("|")))
        raise CheckpointError(f"the checkpoint holds a {meta.get('kind')!r} model; expected {expected}")
    check_targets(meta["config"])
    _check_plain("config", meta["config"])
    limits.check_sizes(meta["config"], tensors=_count_tensors(content.get("state_dict")))
    return {**meta, "statistics": limits.checked_statistics(meta.get("statistics"))}


def _count_tensors(weights: Any) -> int:
    return len(weights) if isinstance(weights, Mapping) else 0


def _check_plain(name: str, value: Any) -> None:
    foreign = _not_plain(name, value)
    if foreign is not None:
        where, what = foreign
        raise CheckpointError(f"damaged checkpoint: {where} is a {type(what).__name__}; expected plain values")


def _not_plain(name: str, value: Any) -> tuple[str, Any] | None:
    """Return where something other than plain data stands, and what it is."""
    if isinstance(value, Mapping):
        strange = next((key for key in value if not isinstance(key, str)), None)
        if strange is not None:
            return f"{name}: the key {strange!r:.80}", strange
        entries = [(f"{name}.{key}" if name else str(key), entry) for key, entry in value.items()]
    elif isinstance(value, (list, tuple)):
        entries = [(f"{name}[{position}]", entry) for position, entry in enumerate(value)]
    else:
        return None if isinstance(value, (bool, int, float, str, type(None))) else (name, value)
    return next((found for entry in entries if (found := _not_plain(*entry)) is not None), None)


def _written_by(meta: Mapping[str, Any]) -> str:
    versions = meta.get("versions")
    return str(versions.get(KEY, "of unknown version")) if isinstance(versions, dict) else "of unknown version"


def rebuild(kind: type[ModuleType], config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ModuleType:
    """Build a model from a checkpoint's config and load its weights; `CheckpointError` where that cannot be done.

    It is first built without memory (torch's meta device) to see whether the weights fit, so that a damaged width does
    not fill the machine. That is not asked of parts from elsewhere, which may not be built for it.
    """
    try:
        if not names_foreign_parts(config):
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
    check_finite_weights(module.state_dict())
    return module


def check_finite_weights(weights: Mapping[str, Any], kind: str = "weights") -> None:
    """Raise `CheckpointError` naming the first few tensors that hold NaN or infinite numbers."""
    broken = [str(name) for name, value in weights.items() if not _is_finite(value)]
    if broken:
        raise CheckpointError(f"damaged checkpoint: {kind} that are NaN or infinite in {', '.join(broken[:3])}")


def _is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())


def load_weights(module: nn.Module, state_dict: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Load weights, all of them and no others; `CheckpointError` lists what does not fit.

    With `assign` the module takes the given tensors themselves instead of copying them.
    """
    try:
        module.load_state_dict(state_dict, assign=assign)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(f"the checkpoint's weights do not fit its config: {reason}") from error


def load_shared_weights(module: nn.Module, state_dict: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Load the weights that a model has in common with another, for fine-tuning into a model with other parts.

    Returns the model's parameters that had no counterpart, and the given ones that were not used. Raises
    `CheckpointError` where nothing is shared, or a shared name has another shape.
    """
    own = module.state_dict()
    check_finite_weights(state_dict)
    shared = {name: value for name, value in state_dict.items() if name in own}
    if not shared:
        raise CheckpointError("the checkpoint has no weights in common with this model")
    try:
        module.load_state_dict(shared, strict=False)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(f"the checkpoint's weights have other shapes than this model's: {reason}") from error
    return sorted(set(own) - set(shared)), sorted(set(state_dict) - set(shared))


def vae_within(
    kind: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and weights of the `VAEModule` that the checkpoint of a prior or a predictor holds.

    That of a prior keeps the prior, that of a predictor has none.
    """
    if not isinstance(config.get("vae"), dict) or (kind == "prior" and not isinstance(config.get("prior"), dict)):
        raise CheckpointError(f"damaged checkpoint: the config of the {kind} has no VAE")
    prefix = "vae_module."
    own = "head." if kind == "predictor" else None  # a predictor's other part
    entries = {str(name): value for name, value in weights.items()}
    inner = {
        name.removeprefix(prefix): value for name, value in entries.items() if own is None or not name.startswith(own)
    }
    return {**config["vae"], "prior": config["prior"] if kind == "prior" else None}, inner


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint under a temporary name and rename it."""
    with whole_file(path) as partial, partial.open("wb") as file:  # of a path, torch would keep the name
        torch.save(dict(content), file)
