"""Imported first by the entry points when run as `python src/NAME.py`: puts the repository root on the path.

Python puts the script's own folder there, so that `import src` fails and any `src/NAME.py` shadows a library.
"""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != _HERE)]
