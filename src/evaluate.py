"""Measure a model, or crystals from anywhere: `python src/evaluate.py …` from a checkout is `crystalvae evaluate …`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
