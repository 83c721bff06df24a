"""From plain config to the objects that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from crystalvae.errors import ConfigError, CrystalVAEError
from crystalvae.former_names import current_name


class Part:
    """Base of parts that a config inside a checkpoint may name although they are no torch modules."""


def to_plain(config: Any) -> Any:
    """Resolve a Hydra config to dicts, lists, strings and numbers; plain values come back as they are."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def build(name: str, config: Any, **arguments: Any) -> Any:
    """Instantiate a config with a `_target_`; objects that are already built come back as they are.

    Raises `ConfigError` naming the part and the reason.
    """
    if not isinstance(config, (Mapping, DictConfig)):
        return config
    if "_target_" not in config:
        raise ConfigError(f"{name}: got keys {sorted(map(str, config))}; expected a _target_ that says what to build")
    try:
        return instantiate(_current(to_plain(config)), **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, CrystalVAEError):
            raise cause from None
        raise ConfigError(f"{name}: {cause or error}") from error


def _current(config: Any) -> Any:
    """Return a config in which every `_target_` has today's name."""
    if isinstance(config, Mapping):
        return {
            key: current_name(value) if key == "_target_" and isinstance(value, str) else _current(value)
            for key, value in config.items()
        }
    return [_current(value) for value in config] if isinstance(config, (list, tuple)) else config
