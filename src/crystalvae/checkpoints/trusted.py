"""Which parts a config inside a checkpoint may name: those of this package, and what the user says to trust."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from inspect import isfunction
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from crystalvae.build import Part
from crystalvae.errors import CheckpointError, ConfigError

TRUSTED_TARGETS = (
    "crystalvae.vae_module.",
    "crystalvae.prior_module.",
    "crystalvae.predictor_module.",
    "crystalvae.sequence_module.",
    "torch.optim.",
)
"""What a config inside a checkpoint may name as `_target_`."""
_PACKAGE = re.compile(r"([^\W\d]\w*\.)+")
_also_trusted: ContextVar[tuple[str, ...]] = ContextVar("also_trusted", default=())


@contextmanager
def trusting(packages: Sequence[str]) -> Iterator[None]:
    """Let checkpoints that are loaded inside name parts of further packages, each given with a dot at its end.

    Raises `ConfigError` for anything else than such names: `"mine"` would also trust `mine_and_others`.
    """
    if isinstance(packages, str) or not all(isinstance(name, str) and _PACKAGE.fullmatch(name) for name in packages):
        raise ConfigError(
            f"trusted_targets: got {packages!r}; expected a list of packages or modules, each with a dot at its end, "
            "such as ['my_package.']"
        )
    token = _also_trusted.set((*_also_trusted.get(), *packages))
    try:
        yield
    finally:
        _also_trusted.reset(token)


def check_targets(config: Any) -> None:
    """Raise `CheckpointError` where a config names a `_target_` outside `TRUSTED_TARGETS` and what is `trusting` now.

    Loading a checkpoint builds what its config names, so a hostile one could otherwise name any callable: also one that
    a trusted module merely imports (`….checkpoint.os.system`), or one that an interpolation makes up.
    """
    trusted = _also_trusted.get()
    allowed = (*TRUSTED_TARGETS, *trusted)
    for key, value in _entries(config):
        if isinstance(value, str) and "${" in value:
            raise CheckpointError(
                f"the checkpoint's config holds an interpolation, {key}: {value!r}; expected plain data"
            )
        if key == "_target_" and not (
            isinstance(value, str) and value.startswith(allowed) and _is_part(value, allowed, trusted)
        ):
            raise CheckpointError(
                f"the checkpoint's config asks for {value!r}, which is not one of this package's parts. If you trust "
                f"where it comes from, pass trusted_targets=[{str(value).rpartition('.')[0] + '.'!r}] when loading, "
                "also on a command line"
            )


def names_foreign_parts(config: Any) -> bool:
    """Say whether a config names a `_target_` outside `TRUSTED_TARGETS`."""
    return any(key == "_target_" and not str(value).startswith(TRUSTED_TARGETS) for key, value in _entries(config))


def _is_part(target: str, allowed: tuple[str, ...], trusted: tuple[str, ...]) -> bool:
    module, _, name = target.rpartition(".")
    try:
        part = getattr(import_module(module), name, None)
    except ImportError:
        return False
    if isfunction(part):  # a schedule of the user's own; none of ours is a part
        return f"{part.__module__}.".startswith(trusted)
    parts = (nn.Module, Optimizer, LRScheduler, Part)
    return isinstance(part, type) and issubclass(part, parts) and f"{part.__module__}.".startswith(allowed)


def _entries(config: Any, name: Any = "") -> Iterator[tuple[Any, Any]]:
    yield name, config
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield "", key
            yield from _entries(value, key)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _entries(value, name)
