"""Cluster crystals by their latents: `python src/cluster.py …` from a checkout is `crystalvae cluster …`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["cluster", *sys.argv[1:]])
