"""Train a sequence VAE: `python src/train_sequence.py …` from a checkout is `crystalvae train-sequence …`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["train-sequence", *sys.argv[1:]])
