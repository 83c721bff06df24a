"""Completion in a shell: the names of the commands and experiments here, keys and values by Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from crystalvae.commands.config_files import group_options

FLAGS = ("-sc", "--shell-completion")


def command_to_complete(arguments: Sequence[str], commands: Mapping[str, str]) -> str | None:
    """Return the command whose keys `crystalvae -sc query=SHELL` asks for, which Hydra then completes.

    `commands` are those there are, each with the name of its config. The shell says in `COMP_LINE` what has been typed,
    up to `COMP_POINT`; from here on Hydra sees that without the command's name. The command's name itself is completed
    here, and so are experiments, which stand in folders that Hydra does not look into: then None is returned.
    """
    line, point = os.environ.get("COMP_LINE", ""), os.environ.get("COMP_POINT", "")
    typed = line[: int(point)] if point.isdecimal() else line
    separator = "\n" if arguments[-1].endswith("fish") else " "
    if arguments[0] in commands:  # by way of a script, which the shell calls by its path
        name, rest = arguments[0], typed
    else:
        program, _, rest = typed.lstrip().partition(" ")
        words = rest.split()
        if not words or (len(words) == 1 and not rest.endswith(" ")):
            start = words[0].replace("_", "-") if words else ""
            sys.stdout.write(separator.join(name for name in commands if name.startswith(start)) + "\n")
            return None
        name = words[0].replace("_", "-")
        rest = f"{program} {rest.lstrip().removeprefix(words[0]).lstrip()}"
    last = rest.rpartition(" ")[2]
    if name in commands and last.startswith("experiment="):
        runs = (f"experiment={run}" for run in group_options("experiment", of=commands[name]))
        sys.stdout.write(separator.join(run for run in runs if run.startswith(last)) + "\n")
        return None
    os.environ["COMP_LINE"] = rest
    return name
