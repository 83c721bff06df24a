"""What resuming believes of a checkpoint: plain data of the kind that a run holds itself, finite, and no paths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from crystalvae.checkpoints.format import KEY, check_finite_weights
from crystalvae.errors import CheckpointError

LIGHTNING = "pytorch-lightning_version"
STATE = (
    "epoch", "global_step", LIGHTNING, "state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers",
    "current_model_state", "averaging_state", "CrystalDataModule", "MixedPrecision", KEY,
)  # fmt: skip
"""What a checkpoint of a run is made of; nothing else of it is handed to Lightning."""
MAX_COUNT = 2**53


def state_of_training(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a checkpoint that a run goes on from; `CheckpointError` where they cannot be.

    Weights, averages and the optimiser's state have to be finite: a run that diverged cannot go on.
    """
    if not isinstance(content.get("optimizer_states"), list):
        raise CheckpointError(f"{path}: holds a model without its optimiser; fine-tune from it with ckpt_path=")
    version = content.get(LIGHTNING)
    if not isinstance(version, str) or not version[:2].rstrip(".").isdigit() or len(version) > 40:
        raise CheckpointError(f"{path}: damaged checkpoint: {LIGHTNING} is {str(version)[:80]!r}")
    for name in ("epoch", "global_step"):
        if not _is_count(content.get(name)):
            raise CheckpointError(f"{path}: damaged checkpoint: {name} is {str(content.get(name))[:80]!r}")
    for name, kind in (("loops", dict), ("callbacks", dict), ("lr_schedulers", list)):
        if not isinstance(content.get(name), kind):
            raise CheckpointError(f"{path}: damaged checkpoint: expected {name}, a {kind.__name__}")
    loop = content["loops"].get("fit_loop")
    if not isinstance(loop, Mapping) or not {"epoch_progress", "epoch_loop.batch_progress"} <= set(loop):
        raise CheckpointError(f"{path}: damaged checkpoint: loops do not say how far training has come")
    _check_counters("loops", content["loops"])
    for name in ("state_dict", "current_model_state", "averaging_state"):
        if name in content and not isinstance(content[name], Mapping):
            raise CheckpointError(f"{path}: damaged checkpoint: {name} is a {type(content[name]).__name__}")
        check_finite_weights(content.get(name, {}))
    return {name: content[name] for name in STATE if name in content}


def check_optimizer_state(state: Any, now: Sequence[Mapping[str, Any]]) -> None:
    """Raise `CheckpointError` unless an optimiser's saved state is one of parameters in the groups that it has now.

    Fused optimisers do not look: a moment of another shape makes them write beyond their memory. The state of an
    optimiser that is put together of others holds theirs as `parts`, whose groups follow each other.
    """
    parts = state.get("parts", [state]) if isinstance(state, Mapping) else [state]
    if not isinstance(parts, list):
        raise CheckpointError("damaged checkpoint: the parts of the optimiser's state are no list")
    left = list(now)
    for part in parts:
        groups = part.get("param_groups") if isinstance(part, Mapping) else None
        count = len(groups) if isinstance(groups, list) else len(left)
        _check_part(part, left[:count])
        left = left[count:]
    if left:
        raise CheckpointError(f"damaged checkpoint: its optimiser lacks {len(left)} groups of parameters")


def _check_part(state: Any, now: Sequence[Mapping[str, Any]]) -> None:
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    moments = state.get("state") if isinstance(state, Mapping) else None
    if not isinstance(groups, list) or not isinstance(moments, Mapping):
        raise CheckpointError("damaged checkpoint: the optimiser's state has no groups of parameters")
    sizes = [len(entry["params"]) if _is_group(entry) else -1 for entry in groups]
    expected = [len(group["params"]) for group in now]
    if sizes != expected:
        raise CheckpointError(
            f"damaged checkpoint: its optimiser has groups of {sizes} parameters; this run's of {expected}"
        )
    shapes: dict[int, torch.Size] = {}
    for entry, group in zip(groups, now, strict=True):
        like("the optimiser's settings", entry, {name: value for name, value in group.items() if name != "params"})
        shapes |= {number: value.shape for number, value in zip(entry["params"], group["params"], strict=True)}
    for number, values in moments.items():
        if number not in shapes or not isinstance(values, Mapping):
            raise CheckpointError(f"damaged checkpoint: an optimiser's state of parameter {str(number)[:40]!r}")
        for name, value in values.items():
            fits = _is_number(value) or (isinstance(value, Tensor) and value.shape in {shapes[number], torch.Size([])})
            if not fits or (isinstance(value, Tensor) and not value.is_floating_point()):
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise CheckpointError(
                    f"damaged checkpoint: the optimiser's {str(name)[:40]} of parameter {number} is {found}; expected "
                    f"the shape {tuple(shapes[number])}"
                )
            if isinstance(value, Tensor):
                check_finite_weights({f"parameter {number}": value}, f"the optimiser's {str(name)[:40]}")


def like(name: str, saved: Any, current: Any) -> Any:
    """Return a saved state in the form of the one that a run has now; `CheckpointError` naming what is another.

    Mappings keep the keys that there are now, values are of the same type, tensors of the same shape. An empty mapping
    or list, which a run may have yet to fill, takes numbers.
    """
    if isinstance(current, Mapping) and isinstance(saved, Mapping):
        if not current:
            _check_plain_numbers(name, saved)
            return dict(saved)
        if not any(key in saved for key in current):
            raise CheckpointError(f"damaged checkpoint: {name} has none of {', '.join(map(str, current))}")
        return {
            key: like(f"{name}.{key}", saved[key], value) if key in saved else value for key, value in current.items()
        }
    if isinstance(current, (list, tuple)) and isinstance(saved, (list, tuple)):
        _check_plain_numbers(name, saved)
        return type(current)(saved)
    if isinstance(current, Tensor) and isinstance(saved, Tensor) and current.shape == saved.shape:
        return saved
    if current is None:
        if not (isinstance(saved, str) and len(saved) < 1000):  # a remark
            _check_plain_numbers(name, saved)
        return saved
    same = type(saved) is type(current) or (_is_number(saved) and _is_number(current))
    if not same or isinstance(current, (Mapping, Tensor)):
        raise CheckpointError(
            f"damaged checkpoint: {name} is {str(saved)[:80]!r}; expected a {type(current).__name__} as {current!r:.80}"
        )
    return saved


def file_here(saved: Any, folder: str | Path | None) -> str:
    """Return the file of a saved path's name in this folder, an empty text where there is none.

    Only the name counts: where a checkpoint says that its file was is nobody's business, and may be anywhere.
    """
    if not isinstance(saved, str) or folder is None:
        return ""
    name = file_name(saved)
    path = Path(folder) / name if name else None
    return str(path) if path is not None and path.is_file() and not path.is_symlink() else ""


def file_name(saved: str) -> str:
    """Return the last part of a path of any system, an empty text where that is no name."""
    if "\0" in saved or len(saved) > 4096:
        return ""
    name = PureWindowsPath(PurePosixPath(saved).name).name
    return "" if name in {"", ".", ".."} else name


def _is_group(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("params"), list) and _all_counts(entry["params"])


def _all_counts(values: list[Any]) -> bool:
    return all(_is_count(value) for value in values)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_counters(name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _check_counters(f"{name}.{key}", entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _check_counters(name, entry)
    elif not (value is None or isinstance(value, (bool, Tensor)) or _is_count(value)):
        raise CheckpointError(f"damaged checkpoint: {name} is {str(value)[:80]!r}; expected a count")


def _check_plain_numbers(name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, (str, int)):
                raise CheckpointError(f"damaged checkpoint: {name} has a key {str(key)[:80]!r}")
            _check_plain_numbers(f"{name}.{key}", entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _check_plain_numbers(name, entry)
    elif isinstance(value, Tensor):
        if value.numel() > 1:
            raise CheckpointError(f"damaged checkpoint: {name} is a tensor of shape {tuple(value.shape)}")
    elif not (value is None or isinstance(value, (bool, int, float))) or (
        isinstance(value, float) and math.isnan(value)
    ):
        raise CheckpointError(f"damaged checkpoint: {name} is {str(value)[:80]!r}; expected numbers")
