"""Make a bundled model of a checkpoint: `python src/publish.py …` from a checkout is `crystalvae publish …`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["publish", *sys.argv[1:]])
