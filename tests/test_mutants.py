"""The mutants of `make mutants` find the code they change, by the name of what it stands in."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY

from tests.mutants import Mutant, read_mutants


@pytest.mark.parametrize("mutant", read_mutants(), ids=lambda mutant: mutant.name)
def test_every_mutant_finds_its_code_and_its_tests(mutant: Mutant):
    assert len(mutant.places(REPOSITORY)) == 1
    file, _, test = mutant.target.partition("::")
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    assert not test or f"def {test.partition('[')[0]}(" in text
