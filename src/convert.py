"""Turn a published checkpoint into one of ours: `python src/convert.py …` from a checkout is `crystalvae convert …`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
