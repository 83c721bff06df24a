"""Completion in a shell: the names of the commands here, their keys and values by Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

SHELLS = ("bash", "zsh", "fish")
FLAGS = ("-sc", "--shell-completion")


def command_to_complete(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the command whose keys `crystalvae -sc query=SHELL` asks for, which Hydra then completes.

    The shell says in `COMP_LINE` what has been typed, up to `COMP_POINT`; from here on Hydra sees that without the
    command's name. While the name itself is being typed, the names that fit are printed and None is returned.
    """
    line = os.environ.get("COMP_LINE", "")
    point = os.environ.get("COMP_POINT", "")
    typed = line[: int(point)] if point.isdecimal() else line
    program, _, rest = typed.lstrip().partition(" ")
    words = rest.split()
    if not words or (len(words) == 1 and not rest.endswith(" ")):
        start = words[0] if words else ""
        separator = "\n" if arguments[-1].endswith("fish") else " "
        sys.stdout.write(separator.join(name for name in names if name.startswith(start.replace("_", "-"))) + "\n")
        return None
    os.environ["COMP_LINE"] = f"{program} {rest.lstrip().removeprefix(words[0]).lstrip()}"
    return words[0].replace("_", "-")
