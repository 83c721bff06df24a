"""From plain config to the objects that it describes, and the one list of what a config may name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from inspect import isfunction
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from crystalvae.errors import ConfigError, CrystalVAEError
from crystalvae.former_names import current_name

MODEL_PARTS = (
    "crystalvae.vae_module.", "crystalvae.prior_module.", "crystalvae.predictor_module.", "crystalvae.sequence_module.",
    "torch.optim.",
)  # fmt: skip
"""Where the parts of models are that a config may name as `_target_`, also one inside a checkpoint."""
RUN_PARTS = ("crystalvae.", "lightning.")
"""Where data modules, trainers, callbacks and loggers are, which configs of runs may name besides."""
NAMED_PARTS = {
    "ase.calculators.emt.EMT", "ase.calculators.lj.LennardJones", "ase.calculators.morse.MorsePotential",
    "crystalvae.evaluation.stability.potentials.chgnet",
    *(f"crystalvae.evaluation.stability.calculators.{name}" for name in ("sevennet", "mace", "orb", "mattersim")),
}  # fmt: skip
"""Functions and classes from elsewhere: these alone, by their whole names."""
SOURCE_MODULES = ("crystalvae.data.sources", "crystalvae.data.canonical", "crystalvae.sequence_module.sources")
"""Modules whose classes are sources of crystals, which have no base that says so."""
MAX_DEPTH, MAX_ENTRIES = 32, 20_000
"""A config nested deeper, or with more entries, is none: entries that are shared count as often as they appear."""
_PACKAGE = re.compile(r"([^\W\d]\w*\.)+")
_also_trusted: ContextVar[tuple[str, ...]] = ContextVar("also_trusted", default=())


class Part:
    """Base of parts that a config inside a checkpoint may name although they are no torch modules."""


@contextmanager
def trusting(packages: Sequence[str]) -> Iterator[None]:
    """Let configs inside name parts of further packages as `_target_`, each given with a dot at its end.

    That holds for what is built in Python, for YAML and command lines, and for checkpoints that are loaded. Raises
    `ConfigError` for anything else than such names: `"mine"` would also trust `mine_and_others`.
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


def to_plain(config: Any) -> Any:
    """Resolve a Hydra config to dicts, lists, strings and numbers; plain values come back as they are."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def build(name: str, config: Any, **arguments: Any) -> Any:
    """Instantiate a config with a `_target_`; objects that are already built come back as they are.

    Raises `ConfigError` naming the part and the reason, also where a `_target_` is not to be trusted (`check_config`).
    """
    if not isinstance(config, (Mapping, DictConfig)):
        return config
    if "_target_" not in config:
        raise ConfigError(f"{name}: got keys {sorted(map(str, config))}; expected a _target_ that says what to build")
    plain = to_plain(config)
    check_config(name, plain)
    try:
        return instantiate(_current(plain), **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, CrystalVAEError):
            raise cause from None
        raise ConfigError(f"{name}: {cause or error}") from error


def check_config(name: str, config: Any) -> None:
    """Raise `ConfigError` where a plain config names a `_target_` that is not allowed, or hides one.

    Allowed are parts of models (`MODEL_PARTS`) and of runs (`RUN_PARTS`, `NAMED_PARTS`), and what is `trusting` now. A
    `_target_` could otherwise be any callable; so could one that a trusted module merely imports.
    """
    for key, value in entries(config):
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{name}: {key} is an interpolation, {value!r}; expected plain data")
        if key == "_target_" and not is_allowed(value):
            raise ConfigError(
                f"{name}: its _target_ {value!r} is none of the parts that a config may name. If it is a part of a "
                f"package that you trust, say so: trusted_targets=[{str(value).rpartition('.')[0] + '.'}] on a command "
                "line, `with crystalvae.build.trusting([…])` in Python"
            )


def is_allowed(target: Any, *, of_runs: bool = True) -> bool:
    """Say whether a config may name `target` as its `_target_`; without `of_runs`, whether one in a checkpoint may."""
    if not isinstance(target, str):
        return False
    trusted = _also_trusted.get()
    target = current_name(target)
    if of_runs and target in NAMED_PARTS:
        return True
    allowed = (*MODEL_PARTS, *(RUN_PARTS if of_runs else ()), *trusted)
    if not target.startswith(allowed):
        return False
    module, _, name = target.rpartition(".")
    try:
        part = getattr(import_module(module), name, None)
    except ImportError:
        return of_runs and target.startswith(trusted) and find_spec(target.partition(".")[0]) is None  # said later
    if isfunction(part):  # a schedule of the user's own; none of ours is a part
        return f"{part.__module__}.".startswith(trusted)
    if not isinstance(part, type):
        return False
    ours = issubclass(part, _bases(of_runs=of_runs)) and f"{part.__module__}.".startswith(allowed)
    source = part.__module__ in SOURCE_MODULES and module == part.__module__
    return ours or (of_runs and (source or f"{part.__module__}.".startswith(trusted)))


def is_foreign(target: Any) -> bool:
    """Say whether a `_target_` lies outside this package and PyTorch."""
    return not str(target).startswith(MODEL_PARTS)


def entries(config: Any) -> Iterator[tuple[Any, Any]]:
    """Give each key (again as a value of its own) and value of a nested config, with the key it stands under.

    Raises `ConfigError` for what is nested too deeply, or within itself, or too large.
    """
    waiting, count = [("", config, 0)], 0
    while waiting:
        name, value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_ENTRIES:
            raise ConfigError(
                f"the config is nested more than {MAX_DEPTH} levels deep, or has more than {MAX_ENTRIES} entries"
            )
        yield name, value
        if isinstance(value, Mapping):
            for key, entry in value.items():
                yield "", key
                waiting.append((key, entry, depth + 1))
        elif isinstance(value, (list, tuple)):
            waiting.extend((name, entry, depth + 1) for entry in value[: MAX_ENTRIES + 1])


def _bases(*, of_runs: bool) -> tuple[type, ...]:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    models = (nn.Module, Optimizer, LRScheduler, Part)
    if not of_runs:
        return models
    import lightning as L
    from lightning.pytorch.loggers import Logger

    return (*models, L.LightningDataModule, L.Callback, L.Trainer, Logger)


def _current(config: Any) -> Any:
    """Return a config in which every `_target_` has today's name."""
    if isinstance(config, Mapping):
        return {
            key: current_name(value) if key == "_target_" and isinstance(value, str) else _current(value)
            for key, value in config.items()
        }
    return [_current(value) for value in config] if isinstance(config, (list, tuple)) else config
