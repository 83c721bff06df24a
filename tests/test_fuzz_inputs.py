"""Each further kind of damaged input, a few cases of each; `tests/fuzz.py` draws them by the thousand."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from crystalvae.errors import CrystalVAEError
from tests.fuzz import load_crystals, write_originals
from tests.fuzz_inputs import KINDS

CASES = 6

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pipes, devices and names of Linux")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write_originals(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_input_is_read_in_part_or_refused(kind: str, originals: Path, tmp_path: Path) -> None:
    """Nothing but our own errors comes out, and what was left alone comes through."""
    for seed in range(CASES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        path, untouched = KINDS[kind](random.Random(f"{kind}-{seed}"), originals, folder)
        refused = None
        try:
            load_crystals(path, untouched)
        except CrystalVAEError as error:
            refused = str(error)
        assert refused is None or ("\n" not in refused and not untouched), f"case {seed}: {refused}"
