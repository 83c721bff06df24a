"""Make a bundled model of a training checkpoint: weights alone, in fewer bits, with its sha256."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from omegaconf import DictConfig
from torch import Tensor

from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.checks import check_choice, check_path
from crystalvae.errors import CheckpointError, ConfigError, OutputError
from crystalvae.files import file_hash, write_text
from crystalvae.predictor_module.predictor import LatentPredictor
from crystalvae.vae_module.vae_module import VAEModule

PriorStorage = Literal["half", "int8"]
SMALL = 1024
"""Tensors of up to so many numbers (statistics, biases, norms) stay in single precision; they cost nothing."""


def publish(config: DictConfig) -> str:
    """Write `name`.ckpt and its hash into `output_dir`; returns what to tell the user."""
    name = str(config.name)
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise ConfigError(f"name: got {name!r}; expected lower-case letters, digits and hyphens, such as mp20-small")
    source = check_path("ckpt_path", config.ckpt_path)
    folder = check_path("output_dir", config.output_dir)
    path = folder / f"{name}.ckpt"
    if path.exists() and not config.overwrite:
        raise OutputError(f"{path}: there is such a model already; give another name or output_dir, or overwrite=true")
    check_choice("prior_storage", config.prior_storage, get_args(PriorStorage))
    hashes = _known_hashes(folder / bundled.MANIFEST)
    content = checkpoints.read(bundled.find(source), plain_data_only=True)
    meta = checkpoints.check_metadata(content, "vae|prior|predictor")
    weights: dict[str, Tensor] = content["state_dict"]
    _check_model(meta, weights)
    packed = {}
    if config.prior_storage == "int8":
        matrices = {key: value for key, value in weights.items() if ".prior." in key and _is_large_matrix(value)}
        packed = {key: checkpoints.pack_rows(value.float()) for key, value in matrices.items()}
    published = {
        "state_dict": {key: _halved(key, value) for key, value in weights.items() if key not in packed},
        checkpoints.KEY: meta,
    }
    checkpoints.write({**published, checkpoints.PACKED: packed} if packed else published, path)
    digest = file_hash(path)
    text = json.dumps(dict(sorted({**hashes, name: digest}.items())), indent=1)
    write_text(folder / bundled.MANIFEST, text + "\n")
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {digest}"


def _check_model(meta: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Raise `CheckpointError` unless what is published loads as the model that it says it is."""
    if meta["kind"] == "predictor":
        checkpoints.rebuild(LatentPredictor, meta["config"], weights)
        return
    config, own = meta["config"], weights
    if meta["kind"] == "prior":
        config, own = checkpoints.vae_within("prior", config, weights)
    checkpoints.rebuild(VAEModule, config, own)


def _known_hashes(manifest: Path) -> dict[str, str]:
    """Return the hashes of the models that are published beside this one; `OutputError` for a list that is none."""
    if not manifest.is_file():
        return {}
    try:
        hashes = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(
            f"{manifest}: cannot be read ({' '.join(str(error).split())[:200]}); mend or remove it"
        ) from error
    right = isinstance(hashes, dict) and all(
        isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) for value in hashes.values()
    )
    if not right:
        raise OutputError(f"{manifest}: holds something else than names with a sha256 each; mend or remove it")
    return hashes


def _is_large_matrix(value: Tensor) -> bool:
    return value.ndim == 2 and value.is_floating_point() and value.numel() > SMALL


def _halved(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point() or value.numel() <= SMALL:
        return value.clone()
    half = value.half()
    if not bool(torch.isfinite(half).all()):
        raise CheckpointError(f"{name}: holds numbers beyond half precision's range")
    return half
