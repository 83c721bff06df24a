"""Say what is installed and what is wrong: `python src/doctor.py` from a checkout is `crystalvae doctor`."""

import sys

import _script_path  # noqa: F401  # first: it puts this checkout's package on the path
from crystalvae.commands.main import main

if __name__ == "__main__":
    main(["doctor", *sys.argv[1:]])
