"""Train a property head: `python src/train_predictor.py …` from a checkout is `crystalvae train-predictor …`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["train-predictor", *sys.argv[1:]])
