"""Train a prior over latents: `python src/train_prior.py …` from a checkout is `crystalvae train-prior …`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["train-prior", *sys.argv[1:]])
