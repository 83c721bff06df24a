"""From the checkpoints of earlier versions to today's: one function a version, run before anything in them is judged.

Each is tested on a checkpoint that the version before wrote (`tests/checkpoints/`). An upgrade gets a whole checkpoint,
as `torch.load` returns it, and returns a new one; it changes plain data only, and builds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crystalvae.former_names import current_name

KEY = "crystalvae"
"""Where in a checkpoint the description stands; beside it Lightning keeps `state_dict` and what resuming needs."""
FORMAT_VERSION = 3


def upgraded(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint in today's format, as far as there is a way from its version to this one."""
    current = dict(checkpoint)
    while isinstance(current.get(KEY), dict):
        version = current[KEY].get("format_version")
        if not isinstance(version, int) or isinstance(version, bool) or version not in UPGRADES:
            break
        current = UPGRADES[version](current)
        current[KEY] = {**current[KEY], "format_version": version + 1}
    return current


def upgrade_v1_v2(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The package is called `crystalvae`, not `src`, and some of its modules moved: rename every `_target_`."""
    meta = checkpoint[KEY]
    return {**checkpoint, KEY: {**meta, "config": _renamed(meta.get("config"))}}


def _renamed(config: Any, depth: int = 0) -> Any:
    if depth > 64:  # nothing of ours is as deep; what refers to itself is refused later
        return config
    if isinstance(config, Mapping):
        return {
            key: current_name(value) if key == "_target_" and isinstance(value, str) else _renamed(value, depth + 1)
            for key, value in config.items()
        }
    return [_renamed(value, depth + 1) for value in config] if isinstance(config, (list, tuple)) else config


def upgrade_v2_v3(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What tells a VAE conditions stands beside encoder and decoder, not around them, and the objective inside the VAE.

    So `vae.encoder.part.…` is `vae.encoder.…` and `vae.encoder.embedder.…` is `vae.encoder_conditions.embedder.…`, for
    the decoder and inside a prior or a predictor alike. The order of the parameters, which optimisers know them by, is
    the same, so that a run of version 2 can be resumed.
    """
    config = checkpoint[KEY].get("config")
    config = config.get("vae", config) if isinstance(config, Mapping) else None
    condition = config.get("condition") if isinstance(config, Mapping) else None
    told = [
        part
        for part in ("encoder", "decoder")
        if isinstance(condition, Mapping) and condition.get("names") and condition.get(part, True)
    ]
    return {
        **checkpoint,
        **{
            kind: {_beside(name, told): value for name, value in checkpoint[kind].items()}
            for kind in ("state_dict", "current_model_state")
            if isinstance(checkpoint.get(kind), Mapping)
        },
    }


def _beside(name: Any, told: Sequence[str]) -> Any:
    if not isinstance(name, str):  # refused later
        return name
    for part in told:
        name = re.sub(rf"^((?:vae_module\.)?vae\.{part})\.part\.", r"\1.", name)
        name = re.sub(rf"^((?:vae_module\.)?vae\.{part})\.(embedder|injection)\.", r"\1_conditions.\2.", name)
    return re.sub(r"^(vae_module\.)?objective\.", r"\1vae.objective.", name)


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: upgrade_v1_v2, 2: upgrade_v2_v3}
"""From a format version to the function that turns such a checkpoint into one of the next version."""
