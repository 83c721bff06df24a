"""Where the configs stand, and what they say about themselves in their comments."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from crystalvae.errors import ConfigError


def config_dir() -> Path:
    """Return the folder of the configs: inside the installed package, or beside `src` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parents[1] / "configs"):
        if (folder / "train_vae.yaml").is_file():
            return folder
    raise ConfigError(f"no configs found in {package} or beside it: the installation is incomplete, install again")


@dataclass(frozen=True)
class Group:
    """A group of parts: the default, and all that can be chosen."""

    name: str
    default: str
    options: list[str]


@dataclass(frozen=True)
class Key:
    """A key at the top of a config: its default, or the names in it where it is a mapping, and its comment."""

    name: str
    default: str
    inner: list[str]
    comment: str


@dataclass(frozen=True)
class Description:
    """What the YAML file of a command says: an introduction, examples, groups and keys."""

    introduction: str
    examples: list[str]
    groups: list[Group]
    keys: list[Key]


def describe_config(config_name: str) -> Description:
    """Read the comments of a command's YAML file: those at its top, indented ones as examples, and one behind a key."""
    lines = _lines(f"{config_name}.yaml")
    top = [line.removeprefix("#") for line in lines if line.startswith("#")]
    introduction = " ".join(line.strip() for line in top if not line.startswith("  "))
    examples = [line.strip() for line in top if line.startswith("  ")]
    groups = _groups(config_name, prefix="")
    keys: list[Key] = []
    for line in lines:
        if entry := re.match(r"(\w+):(.*?)(?:  # (.*))?$", line):
            name, value, comment = (text.strip() for text in entry.groups(default=""))
            inner = re.findall(r"(\w+): ", value) if value.startswith("{") else []
            keys.append(Key(name, "" if inner else value, inner, comment))
        elif keys and (entry := re.match(r"  (\w+):", line)):
            keys[-1].inner.append(entry[1])
    parts = {group.name for group in groups}
    return Description(
        introduction, examples, groups, [key for key in keys if key.name not in {"defaults", "hydra", *parts}]
    )


def _groups(config: str, prefix: str) -> list[Group]:
    found: list[Group] = []
    for line in _lines(f"{config}.yaml"):
        if entry := re.match(r"  - (\w+): (\w+)", line):
            name, default = f"{prefix}{entry[1]}", entry[2]
            found.append(Group(name, default, group_options(name, of=config)))
            if default != "null":
                found += _groups(f"{name}/{default}", f"{name}/")
    return found


def group_options(group: str, *, of: str | None = None) -> list[str]:
    """Return the options of a group of parts; of the experiments those for the command with the config `of`."""
    folder = config_dir() / group
    if group != "experiment":
        return sorted(path.stem for path in folder.glob("*.yaml"))
    runs = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    if of is None:
        return runs
    known = set(re.findall(r"^(?:  - )?(\w+): *(?=\S|$)", "\n".join(_lines(f"{of}.yaml")), re.MULTILINE))
    return [run for run in runs if _only_names(known, f"experiment/{run}")]


def _only_names(known: set[str], config: str) -> bool:
    """Say whether an experiment, with those that it builds on, is about nothing but keys and groups that are known."""
    text = "\n".join(_lines(f"{config}.yaml"))
    names = {*re.findall(r"^(\w+):", text, re.MULTILINE), *re.findall(r"override /(\w+)", text)} - {"defaults"}
    return names <= known and all(_only_names(known, base) for base in re.findall(r"- /(experiment/[\w/]+)", text))


def _lines(file: str) -> list[str]:
    return (config_dir() / file).read_text(encoding="utf-8").splitlines()
