"""Train a VAE: `python src/train_vae.py …` from a checkout is `crystalvae train-vae …`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["train-vae", *sys.argv[1:]])
