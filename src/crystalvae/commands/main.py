"""`crystalvae COMMAND key=value …`: which commands there are, and the one entry to all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

from crystalvae.commands.completion import FLAGS, command_to_complete
from crystalvae.commands.help import command_help, overview
from crystalvae.commands.trace_file import FULL_ERROR, our_mistake
from crystalvae.errors import CrystalVAEError, printable


@dataclass(frozen=True)
class Command:
    """A command: its config (`configs/NAME.yaml`), where its function stands, and what it does in a few words."""

    config: str
    module: str
    function: str
    summary: str

    def load(self) -> Callable[[Any], str]:
        """Import the command's function, which takes seconds."""
        return getattr(import_module(f"crystalvae.commands.{self.module}"), self.function)


COMMANDS = {
    "train-vae": Command("train_vae", "train", "train", "train a VAE: on MP-20, on your own crystals, on prototypes"),
    "train-prior": Command("train_prior", "train_prior", "train_prior", "train a prior over the latents of a VAE"),
    "train-predictor": Command(
        "train_predictor", "train_predictor", "train_predictor", "train a property head on the latents of a VAE"
    ),
    "train-sequence": Command(
        "train_sequence", "train_sequence", "train_sequence", "train a sequence VAE on windows of trajectories"
    ),
    "motifs": Command("motifs", "motifs", "motifs", "find the motifs of trajectories; with a report that plays them"),
    "sample": Command("sample", "sample", "sample", "sample new crystals and write them as CIF and more"),
    "evaluate": Command(
        "evaluate", "evaluate", "evaluate", "measure a model, or crystals from anywhere; with a report"
    ),
    "latent": Command("latent", "latent", "latent", "walk through a latent space: interpolate, embed, search, map"),
    "cluster": Command("cluster", "cluster", "cluster", "group crystals in a latent space, and say what each group is"),
    "trajectory": Command(
        "trajectory", "trajectory", "trajectory", "run dynamics or a relaxation, and keep the frames"
    ),
    "convert": Command("convert", "convert", "convert", "turn a published checkpoint into one of ours"),
    "doctor": Command("doctor", "doctor", "doctor", "say what is installed, what the caches hold, and what is wrong"),
    "publish": Command("publish", "publish", "publish", "make a bundled model of a training checkpoint"),
}

_COMMAND = "CRYSTALVAE_COMMAND"
"""Environment variable that tells processes started beside this one, with its options alone, which command it runs."""
_HELP = {"-h", "--help"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names, with the others as Hydra's overrides and flags.

    Without arguments, or with `--help` alone, lists the commands; ends with status 2 where there is no such command,
    and with 130 after Ctrl-C.
    """
    try:
        _main(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:  # while modules are imported; a command that runs says so itself
        sys.stderr.write("stopped\n")
        sys.exit(130)
    except CrystalVAEError as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        sys.exit(1)
    except BrokenPipeError:  # … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get(FULL_ERROR) == "1":
            raise
        sys.stderr.write(f"error: {our_mistake(error)}\n")
        sys.exit(1)


def _main(given: list[str]) -> None:
    if given[:1] == ["help"]:
        given = [*given[1:2], "--help"]
    if not given or given[0] in _HELP:
        sys.stdout.write(overview({name: command.summary for name, command in COMMANDS.items()}))
        return
    if given[0] in {"-V", "--version"}:
        import crystalvae

        sys.stdout.write(f"crystalvae {crystalvae.__version__}\n")
        return
    if set(FLAGS) & set(given):
        _complete(given)
        return
    if "LOCAL_RANK" in os.environ and given[0] not in COMMANDS:  # a process that Lightning starts beside the first
        given = [os.environ.get(_COMMAND, ""), *given]
    name = given[0].replace("_", "-")
    if name not in COMMANDS:
        _refuse(given[0])
    if _HELP & set(given[1:]):
        sys.stdout.write(command_help(name, COMMANDS[name].config))
        return
    _run(name, given[1:])


def _complete(given: list[str]) -> None:
    flags = given[1:] if given[0] in COMMANDS else given
    name: str | None = "train-vae"  # any: what `install` prints is for the whole program
    if any(entry.startswith("query=") for entry in flags):
        name = command_to_complete(given, {name: command.config for name, command in COMMANDS.items()})
    if name in COMMANDS:
        _run(name, flags)


def _run(name: str, arguments: Sequence[str]) -> None:
    from crystalvae.commands.cli import run_command

    os.environ[_COMMAND] = name
    sys.argv = [sys.argv[0], *arguments]  # what Hydra reads
    run_command(COMMANDS[name].config, COMMANDS[name].load)


def _refuse(given: str) -> NoReturn:
    close = get_close_matches(given.replace("_", "-"), COMMANDS, n=1)
    meant = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}"
    if "=" in given or given.startswith("-"):
        meant = f"the command comes first, such as crystalvae sample {given}"
    sys.stderr.write(f"error: crystalvae has no command {given!r}; {meant}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
