"""Motifs of trajectories: `python src/motifs.py …` from a checkout is `crystalvae motifs …`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["motifs", *sys.argv[1:]])
