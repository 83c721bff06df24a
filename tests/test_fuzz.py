"""A short run of the fuzz; `make fuzz` is the long one."""

from __future__ import annotations

import pytest

pytest.importorskip("resource", reason="the fuzz limits memory and time as POSIX systems do")

from tests import fuzz


def test_damaged_files_load_in_part_or_are_refused() -> None:
    lines: list[str] = []
    failures = fuzz.run(60, seed=7, report=lines.append)
    assert failures == 0, "\n".join(lines)
    assert lines[-1].startswith("fuzz: 60 cases, seed 7, 0 failures")


def test_what_goes_wrong_is_counted_and_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that cannot even start stands for one that crashes."""
    monkeypatch.setattr(fuzz.sys, "executable", "false")
    lines: list[str] = []
    assert fuzz.run(2, seed=3, report=lines.append, first=5) == 2
    assert "repeat with: python tests/fuzz.py --seed 3 --case 6\n" in lines
