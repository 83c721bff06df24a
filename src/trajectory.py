"""Run dynamics and keep the frames: `python src/trajectory.py …` from a checkout is `crystalvae trajectory …`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["trajectory", *sys.argv[1:]])
