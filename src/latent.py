"""Operations on latents: `python src/latent.py …` from a checkout is `crystalvae latent …`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["latent", *sys.argv[1:]])
