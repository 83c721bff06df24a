"""Published latent diffusion checkpoints (also those tuned by reinforcement learning), turned into ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from crystalvae.checkpoints.chemeleon2 import HEADS, Inert, Published, config_of_vae, read_inert, refuse, vae_weights
from crystalvae.data.batch import MAX_ATOMIC_NUMBER

log = logging.getLogger(__name__)

FIRST_WEIGHT = "denoiser.x_embedder.weight"
"""A checkpoint with this tensor holds a latent diffusion and its VAE."""
_NAMES = (
    (r"denoiser\.x_embedder\.", "denoiser.latent_embedder."),
    (r"denoiser\.t_embedder\.mlp\.", "denoiser.time_embedder."),
    (r"denoiser\.blocks\.(\d+)\.attn\.", r"denoiser.blocks.\1.attention."),
    (r"denoiser\.blocks\.(\d+)\.mlp\.fc([12])\.", r"denoiser.blocks.\1.linear\2."),
    (r"denoiser\.blocks\.(\d+)\.adaLN_modulation\.1\.", r"denoiser.blocks.\1.modulation."),
    (r"denoiser\.final_layer\.linear\.", "denoiser.head."),
    (r"denoiser\.final_layer\.adaLN_modulation\.1\.", "denoiser.modulation."),
    (r"condition_module\.encoders\.(\w+)\.embedding\.", r"conditions.embedders.\1."),
    (r"condition_module\.encoders\.(\w+)\.null_embed$", r"conditions.unknown.\1"),
    (r"condition_module\.proj\.", "conditions.joined."),
    (r"latent_std$", "latent_std"),
)
_TARGET = "crystalvae.prior_module.latent_diffusion.LatentDiffusion"


def convert_diffusion(path: Path, content: Mapping[str, Any], *, vae: Path | None) -> Published:
    """Turn a published latent diffusion into a prior of ours.

    The file has the VAE's weights but not its settings: they are those of the published checkpoint `vae`, or else
    follow from the shapes, with the published number of heads, which is said in the log.
    """
    weights, settings = content["state_dict"], content["hyper_parameters"]
    if any("lora_" in str(name) or ".base_model." in str(name) for name in weights):
        refuse(path, "its network has low-rank adapters; merge them in the package that trained it")
    inner = vae_weights(path, {name: value for name, value in weights.items() if str(name).startswith("vae.")})
    inner = {name.removeprefix("vae."): value for name, value in inner.items()}
    plain = {name.removeprefix("vae."): value for name, value in inner.items()}
    vae_settings: Mapping[str, Any] = {}
    if vae is None:
        log.warning(
            "%s: holds the weights of its VAE but not its settings; they follow from the shapes, with %d heads as "
            "published. Give its own checkpoint with `crystalvae convert … vae_ckpt_path=` where it is at hand",
            path, HEADS,
        )  # fmt: skip
    else:
        vae_settings = read_inert(vae).get("hyper_parameters") or {}
    vae_config = config_of_vae(path, plain, vae_settings)
    conditions, classes, numbers = _conditions(path, weights, settings)
    prior = {
        "_target_": _TARGET,
        **_denoiser(path, weights, settings),
        "steps": _steps(path, settings),
        "conditions": list(conditions.values()),
        "classes": classes,
    }
    own = {f"vae_module.prior.{_renamed(path, name, conditions)}": value.clone() for name, value in weights.items()
           if not str(name).startswith("vae.")}  # fmt: skip
    own |= {f"vae_module.prior.conditions.{name}": value for name, value in numbers.items()}
    return Published(
        weights={**{f"vae_module.{name}": value for name, value in inner.items()}, **own},
        config={"vae": vae_config, "prior": prior},
        statistics={"dataset": f"unknown (converted from {path.name})"},
        kind="prior",
    )


def _renamed(path: Path, name: str, conditions: Mapping[str, str]) -> str:
    matches = ((re.match(pattern, name), ours) for pattern, ours in _NAMES)
    found, ours = next(((match, ours) for match, ours in matches if match), (None, ""))
    if found is None:
        refuse(path, f"a latent diffusion with weights that are not known, {name[:80]}")
    parts = (found.expand(ours) + name[found.end() :]).split(".")
    if parts[:2] in (["conditions", "embedders"], ["conditions", "unknown"]):
        parts[2] = conditions.get(parts[2], parts[2])
    return ".".join(parts)


def _denoiser(path: Path, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    d_model, latent_dim = weights[FIRST_WEIGHT].shape
    if weights["denoiser.final_layer.linear.weight"].shape[0] != 2 * latent_dim:
        refuse(path, "a latent diffusion that does not learn its variances, which is not supported")
    module = settings["denoiser"]
    return {
        "d_model": d_model,
        "nhead": int(module.state["num_heads"]),
        "num_layers": len({name.split(".")[2] for name in weights if name.startswith("denoiser.blocks.")}),
        "dim_feedforward": weights["denoiser.blocks.0.mlp.fc1.weight"].shape[0],
    }


def _steps(path: Path, settings: Mapping[str, Any]) -> int:
    options = plain_value(settings.get("diffusion_configs")) or {}
    known = {"predict_xstart": False, "learn_sigma": True, "noise_schedule": "linear"}
    for key, value in known.items():
        if options.get(key, value) != value:
            refuse(path, f"a latent diffusion with {key}={options[key]}; {value} is what is known")
    return int(options.get("diffusion_steps", 1000))


def _conditions(
    path: Path, weights: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, int], dict[str, Any]]:
    """Return our name of each condition, in order, the sizes of classes, and means and deviations of numbers."""
    options = plain_value(settings.get("condition_module"))
    if not options:
        return {}, {}, {}
    names: dict[str, str] = {}
    classes: dict[str, int] = {}
    means, stds = [], []
    for name, kind in options["condition_type"].items():
        if kind in {"composition", "chemical_system"}:
            names[name] = kind
            width = MAX_ATOMIC_NUMBER + 1
        elif kind == "float":
            names[name], width = name, 1
        elif kind == "categorical":
            width = classes[name] = int(options["num_classes"])
            names[name] = name
        else:
            refuse(
                path,
                f"a condition {name} of the kind {kind}; numbers, classes, compositions and chemical systems are known",
            )
        if weights[f"condition_module.encoders.{name}.null_embed"].shape != (1, width):
            refuse(path, f"the condition {name} has an unexpected width")
        known = (options.get("stats") or {}).get(name) or {}
        both = known.get("mean") is not None and known.get("std") is not None
        means.append(float(known["mean"]) if both else 0.0)
        stds.append(float(known["std"]) if both else 1.0)
    reference = weights["latent_std"]
    return names, classes, {"mean": reference.new_tensor(means), "std": reference.new_tensor(stds)}


def plain_value(value: Any) -> Any:
    """Return what a placeholder of an OmegaConf node stands for, as plain data; other values as they are."""
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, Mapping) else {}
        if "_val" in state:
            return plain_value(state["_val"])
        if "_content" in state:
            return plain_value(state["_content"])
        return None
    if isinstance(value, Mapping):
        return {str(key): plain_value(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(entry) for entry in value]
    return value
