"""Steps that are done once: what runs again, and when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crystalvae.commands.pipeline import STATE_NAME, Pipeline, Step
from crystalvae.errors import ConfigError, OutputError


def steps(folder: Path, said: list[str], *, failing: str = "", **settings: int) -> list[Step]:
    """Three steps that write a file each and say that they ran, and whether they were begun before."""

    def make(name: str) -> Step:
        def run(begun: bool) -> list[Path]:
            said.append(f"{name} goes on" if begun else name)
            if name == failing:
                raise KeyboardInterrupt
            (folder / f"{name}.txt").write_text(name, encoding="utf-8")
            return [folder / f"{name}.txt"]

        return Step(name, {"value": settings.get(name, 0)}, run)

    return [make(name) for name in ("first", "second", "third")]


def run(folder: Path, *, from_step: str | None = None, overwrite: bool = False, **options) -> list[str]:
    said: list[str] = []
    assert Pipeline(folder, steps(folder, said, **options)).run(from_step=from_step, overwrite=overwrite) == [
        entry.removesuffix(" goes on") for entry in said
    ]
    return said


def test_what_is_done_is_not_done_again(tmp_path: Path):
    assert run(tmp_path / "run") == ["first", "second", "third"]
    assert run(tmp_path / "run") == []
    content = json.loads((tmp_path / "run" / STATE_NAME).read_text(encoding="utf-8"))
    assert [entry["status"] for entry in content["steps"].values()] == ["done"] * 3
    assert content["steps"]["second"]["files"] == ["second.txt"]


def test_a_changed_step_is_run_with_all_that_come_after_it(tmp_path: Path):
    run(tmp_path)
    assert run(tmp_path, second=1) == ["second", "third"]
    assert run(tmp_path, second=1) == []
    assert run(tmp_path) == ["second", "third"]
    assert run(tmp_path, first=1) == ["first", "second", "third"]


def test_lost_files_are_made_again(tmp_path: Path):
    run(tmp_path)
    (tmp_path / "second.txt").unlink()
    assert run(tmp_path) == ["second", "third"]


def test_a_step_that_was_interrupted_is_told_so(tmp_path: Path):
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        Pipeline(tmp_path, steps(tmp_path, said, failing="second")).run()
    assert said == ["first", "second"]
    assert run(tmp_path, second=1) == ["second", "third"]  # with other settings it begins anew
    with pytest.raises(KeyboardInterrupt):
        Pipeline(tmp_path, steps(tmp_path, said, failing="second")).run()
    assert run(tmp_path) == ["second goes on", "third"]


def test_from_step(tmp_path: Path):
    with pytest.raises(ConfigError, match="first comes before it and is not done"):
        run(tmp_path, from_step="second")
    run(tmp_path)
    assert run(tmp_path, from_step="second") == ["second", "third"]
    with pytest.raises(ConfigError, match=r"first comes before it and is not done in .*, or not with these"):
        run(tmp_path, from_step="third", first=1)
    with pytest.raises(ConfigError, match="got 'fourth'; expected one of first, second, third"):
        run(tmp_path, from_step="fourth")
    assert run(tmp_path) == []


def test_overwrite_runs_everything(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="holds something else than an earlier run"):
        run(tmp_path)
    assert run(tmp_path, overwrite=True) == ["first", "second", "third"]
    assert run(tmp_path, overwrite=True) == ["first", "second", "third"]
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format_version": 2, "written_by": "crystalvae", "steps": {}}',
        '{"format_version": 1, "written_by": "crystalvae", "steps": {"first": {"status": "done"}}}',
        '{"format_version": 1, "written_by": "crystalvae", "steps": {"first": 3}}',
    ],
)
def test_a_damaged_state_is_said(tmp_path: Path, content: str):
    (tmp_path / STATE_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(OutputError, match="overwrite=true begins anew"):
        run(tmp_path)
    assert run(tmp_path, overwrite=True) == ["first", "second", "third"]
