"""Imported first by the scripts of a checkout: they run the checkout's own package, and shadow no library.

Python puts a script's folder first on the path, where `src/evaluate.py` would be found before a library of that name.
"""

import sys
from importlib import import_module
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
sys.path[:] = [str(_HERE), *_elsewhere]
import_module("crystalvae")  # from here, also where another version is installed
sys.path[:] = [*_elsewhere, str(_HERE)]
