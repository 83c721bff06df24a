"""What `crystalvae --help` and `crystalvae COMMAND --help` say; the words are those of the commands' YAML files."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping

from crystalvae.commands.config_files import Key, config_dir, describe_config

WIDEST = 30
"""Longest name and default of a key that are shown whole."""


def overview(summaries: Mapping[str, str]) -> str:
    """Return the list of commands with what each does."""
    width = max(map(len, summaries)) + 2
    return "\n".join(
        [
            "crystalvae: a continuous latent space of inorganic crystals",
            "",
            "usage: crystalvae COMMAND [KEY=VALUE …]",
            "",
            *(f"  {name:<{width}}{summary}" for name, summary in summaries.items()),
            "",
            "crystalvae COMMAND --help lists the keys of a command; crystalvae --version prints the version.",
            "Shell completion of commands, keys and values: see docs/training.md.",
            "",
        ]
    )


def command_help(name: str, config_name: str) -> str:
    """Return the help of one command: what it does, examples, its groups of parts and its keys with their defaults."""
    found = describe_config(config_name)
    lines = [f"usage: crystalvae {name} [KEY=VALUE …]", "", *_wrapped(found.introduction), ""]
    lines += [f"  {example}" for example in found.examples]
    if found.groups:
        lines += ["", "Groups of parts, GROUP=OPTION (the default first):"]
        width = max(len(group.name) for group in found.groups) + 2
        for group in found.groups:
            others = [option for option in group.options if option != group.default]
            lines += _wrapped(", ".join([group.default, *others]), first=f"  {group.name:<{width}}")
    lines += ["", "Keys, with their defaults:"]
    shown = [_shown(key) for key in found.keys]
    width = max(map(len, shown)) + 2
    for key, text in zip(found.keys, shown, strict=True):
        names = f"{', '.join(key.inner)}"
        comment = f"{key.comment}: {names}" if key.comment and names else key.comment or names
        lines += _wrapped(comment, first=f"  {text:<{width}}")
    lines += [
        "",
        f"All keys and values, including those of the parts: crystalvae {name} --cfg job; with comments: the files",
        f"in {config_dir()}. Further flags (several runs, other configs): crystalvae {name} --hydra-help",
        "",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _shown(key: Key) -> str:
    text = f"{key.name}.…" if key.inner else f"{key.name}={'…' if key.default == '???' else key.default}"
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def _wrapped(text: str, first: str = "") -> list[str]:
    """Wrap a text to the terminal, `first` before it and the following lines as far in."""
    width = min(max(shutil.get_terminal_size().columns, 70), 120)
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=" " * len(first)) or [first]
