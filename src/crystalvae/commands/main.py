"""`crystalvae COMMAND key=value …`: which commands there are, and the one entry to all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module


@dataclass(frozen=True)
class Command:
    """A command: its config (`configs/NAME.yaml`), where its function stands, and what it does in a few words."""

    config: str
    module: str
    function: str
    summary: str


COMMANDS = {
    "train-vae": Command("train_vae", "train", "train", "train a VAE: on MP-20, on your own crystals, on prototypes"),
    "train-prior": Command("train_prior", "train_prior", "train_prior", "train a prior over the latents of a VAE"),
    "train-predictor": Command(
        "train_predictor", "train_predictor", "train_predictor", "train a property head on the latents of a VAE"
    ),
    "train-sequence": Command(
        "train_sequence", "train_sequence", "train_sequence", "train a sequence VAE on windows of trajectories"
    ),
    "sample": Command("sample", "sample", "sample", "sample new crystals and write them as CIF and more"),
    "evaluate": Command(
        "evaluate", "evaluate", "evaluate", "measure a model, or crystals from anywhere; with a report"
    ),
    "latent": Command("latent", "latent", "latent", "walk through a latent space: interpolate, embed, search, map"),
    "cluster": Command("cluster", "cluster", "cluster", "group crystals in a latent space, and say what each group is"),
    "trajectory": Command(
        "trajectory", "trajectory", "trajectory", "run dynamics or a relaxation, and keep the frames"
    ),
    "publish": Command("publish", "publish", "publish", "make a bundled model of a training checkpoint"),
}

_COMMAND = "CRYSTALVAE_COMMAND"
"""Environment variable that tells processes started beside this one, with its options alone, which command it runs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names, with the others as Hydra's overrides and flags.

    Without arguments, or with `--help` alone, lists the commands; ends with status 2 where there is no such command.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help", "help"}:
        sys.stdout.write(_overview())
        return
    if given[0] in {"-V", "--version"}:
        import crystalvae

        sys.stdout.write(f"crystalvae {crystalvae.__version__}\n")
        return
    if "LOCAL_RANK" in os.environ and given[0] not in COMMANDS:  # a process that Lightning starts beside the first
        given = [os.environ.get(_COMMAND, ""), *given]
    name = given[0].replace("_", "-")
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}"
        sys.stderr.write(f"error: crystalvae has no command {given[0]!r}; {meant}\n")
        sys.exit(2)
    command = COMMANDS[name]
    from crystalvae.commands.cli import run_command

    os.environ[_COMMAND] = name
    sys.argv = [sys.argv[0], *given[1:]]  # what Hydra reads
    function = getattr(import_module(f"crystalvae.commands.{command.module}"), command.function)
    run_command(command.config, function)


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "crystalvae: a continuous latent space of inorganic crystals",
            "",
            "usage: crystalvae COMMAND [key=value …]",
            "",
            *lines,
            "",
            "crystalvae COMMAND --help lists the keys of a command and their values.",
            "",
        ]
    )
