"""Sample crystals: `python src/sample.py …` from a checkout is `crystalvae sample …`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
