"""A composed config, checked against its command's schema: every key known, every value of its type, and read-only."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import Field, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from crystalvae.build import to_plain
from crystalvae.commands.schemas import SCHEMAS
from crystalvae.errors import ConfigError


def checked(name: str, config: DictConfig) -> DictConfig:
    """Return the config of the command `name`, typed by its schema and read-only; `config` stays as it is.

    Raises `ConfigError` naming the key, its value and what is expected: for keys that no command reads, for values of
    another type or beyond their limits, and for what has no value yet.
    """
    schema = SCHEMAS[name]
    _check(schema, config)
    hints = get_type_hints(schema)
    absent = {key: None for key in hints if key not in config and NoneType in get_args(hints[key])}  # data=null
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config, absent)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {' '.join(str(error.msg or error).split())}") from error
    if missing := sorted(OmegaConf.missing_keys(merged)):
        raise ConfigError(f"missing on the command line: {', '.join(f'{key}=…' for key in missing)}")
    OmegaConf.set_readonly(merged, True)
    assert isinstance(merged, DictConfig)  # noqa: S101  a schema is no list
    return merged


def with_values(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """Return a config with other values under some keys, such as `trainer.precision`; resolved, and read-only."""
    changed = config.copy()
    OmegaConf.set_readonly(changed, False)
    for key, value in values.items():
        OmegaConf.update(changed, key, value)
    OmegaConf.resolve(changed)
    OmegaConf.set_readonly(changed, True)
    return changed


def unknown_key(key: str, known: Collection[str]) -> ConfigError:
    """Return the error for a key that is none of those known beside it."""
    within, _, name = key.rpartition(".")
    prefix = f"{within}." if within else ""
    return ConfigError(f"{key}: the command has no such key; {meant(name, known, prefix)}")


def meant(name: str, known: Collection[str], prefix: str = "") -> str:
    """Return what to say after a name that is none of those known: the one that is like it, or all."""
    close = get_close_matches(name, known, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else f"expected one of {', '.join(sorted(known))}"


def _check(schema: type, config: DictConfig, within: str = "") -> None:
    hints, known = get_type_hints(schema), {entry.name: entry for entry in fields(schema)}
    for key in map(str, config):
        if key not in known:
            raise unknown_key(f"{within}{key}", known)
        if OmegaConf.is_missing(config, key):
            continue
        value = _value(config, key, f"{within}{key}")
        part = next((hint for hint in _alternatives(hints[key]) if is_dataclass(hint)), None)
        if isinstance(part, type) and isinstance(value, DictConfig):
            _check(part, value, f"{within}{key}.")
        elif not _fits(schema, key, hints[key], known[key], value):
            expected = _expected(f"{within}{key}", hints[key], known[key])
            raise ConfigError(f"{within}{key}: got {_told(value)}; expected {expected}")


def _value(config: DictConfig, key: str, full_key: str) -> Any:
    try:
        return config[key]
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise ConfigError(f"{full_key}: {' '.join(str(error.msg or error).split())}") from error


def _told(value: Any) -> str:
    plain = to_plain(value)
    return "null" if plain is None else str(plain).lower() if isinstance(plain, bool) else repr(plain)


def _fits(schema: type, key: str, hint: Any, described: Field[Any], value: Any) -> bool:
    if bool in _alternatives(hint):  # OmegaConf would take `no`, `off` and any number
        return isinstance(value, bool) or (value is None and NoneType in get_args(hint))
    try:
        taken = OmegaConf.select(OmegaConf.merge(OmegaConf.structured(schema), {key: value}), key)
    except ValidationError:
        return False
    limits = described.metadata
    numbers = [entry for entry in (taken if OmegaConf.is_list(taken) else [taken]) if isinstance(entry, (int, float))]
    if not all(math.isfinite(entry) for entry in numbers):
        return False
    if "least" in limits and not all(_within(entry, limits) for entry in numbers):
        return False
    return not (limits.get("path") and taken == "")


def _within(number: float, limits: Mapping[str, Any]) -> bool:
    most = limits.get("most")
    return number == limits.get("or") or (number >= limits["least"] and (most is None or number <= most))


def _expected(key: str, hint: Any, described: Field[Any]) -> str:
    words = " or ".join(_words(key, _alternatives(hint), described.metadata))
    return f"{words}, or null" if NoneType in get_args(hint) else words


def _words(key: str, alternatives: Collection[Any], limits: Mapping[str, Any]) -> list[str]:
    limit = f", at least {limits['least']}" if "least" in limits else ""
    limit += f" and at most {limits['most']}" if limits.get("most") is not None else ""
    limit += f", or {limits['or']}" if "or" in limits else ""
    if set(alternatives) == {int, float}:
        return [f"a number{limit}"]
    words: list[str] = []
    for hint in alternatives:
        if is_dataclass(hint):
            words.append(f"its keys one by one, such as {key}.{fields(hint)[0].name}=…")
        elif get_origin(hint) is list:
            entry = _words(key, _alternatives(get_args(hint)[0]), limits)[0]
            words.append(f"a list, such as [{'a,b' if get_args(hint)[0] is str else '1,2'}], each {entry}")
        elif get_origin(hint) is dict:
            words.append(f"names with values, such as {key}.NAME=VALUE")
        else:
            name = "the name of a file or folder" if limits.get("path") else "a text"
            words.append({bool: "true or false", int: f"a whole number{limit}"}.get(hint, name))
    return words


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return what a type allows besides null."""
    if get_origin(hint) in {Union, UnionType}:
        return tuple(entry for entry in get_args(hint) if entry is not NoneType)
    return (hint,)
