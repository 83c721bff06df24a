"""Where the whole story of an unexpected error goes: a file, so that the terminal shows one paragraph."""

from __future__ import annotations

import shlex
import sys
import tempfile
import traceback

from crystalvae.errors import printable

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's environment variable; where the user sets it to 1, every error comes with its whole traceback."""
_LONGEST = 500


def our_mistake(error: BaseException) -> str:
    """Return the paragraph about an error that nobody raised on purpose, having written its traceback to a file."""
    reason = " ".join(printable(str(error)).split())[:_LONGEST]
    return f"a mistake of crystalvae, please report it: {type(error).__name__}: {reason}; {_kept(error)}"


def _kept(error: BaseException) -> str:
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix="crystalvae-", suffix=".txt", delete=False
        ) as file:
            file.write(f"# {shlex.join(sys.orig_argv)}\n")
            traceback.print_exception(error, file=file)
    except OSError:
        return f"{FULL_ERROR}=1 shows the traceback"
    return f"the traceback is in {file.name}"
