"""Steps that follow each other, each done once: a state file remembers what is done, and a run goes on from there."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystalvae.checkpoints.format import package_versions
from crystalvae.errors import ConfigError, OutputError
from crystalvae.files import write_text
from crystalvae.output_dir import WRITER, check_writable

log = logging.getLogger(__name__)

STATE_NAME = "pipeline.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Step:
    """A step: its name, the settings that decide its result beside the steps before it, and what runs it.

    `run` is told whether an earlier run with the same settings began it and did not end, writes its results and
    returns their paths.
    """

    name: str
    settings: Mapping[str, Any]
    run: Callable[[bool], Iterable[Path]]


class Pipeline:
    """Steps in a folder of their own, with their state in `pipeline.json`, which is plain data and written whole.

    A step is skipped where it is done, its settings and those of all steps before are what they were, and its files
    are there; what comes after a step that ran runs, too.
    """

    def __init__(self, folder: Path, steps: Sequence[Step]) -> None:
        self.folder, self.steps = folder, list(steps)
        self._state: dict[str, dict[str, Any]] = {}
        self._prints = _fingerprints(self.steps)

    def run(self, *, from_step: str | None = None, overwrite: bool = False) -> list[str]:
        """Run what is not done yet and return the names of the steps that ran.

        `from_step` runs this step and those after it again; `overwrite` runs all of them.
        Raises `ConfigError` for a step that there is not, or where one before `from_step` is not done, and
        `OutputError` where the folder holds something else.
        """
        check_writable(self.folder)
        self._read(overwrite=overwrite)
        first = self._first(from_step)
        self.folder.mkdir(parents=True, exist_ok=True)
        ran: list[str] = []
        for number, step in enumerate(self.steps):
            place = f"step {number + 1} of {len(self.steps)}, {step.name}"
            if number < first:
                log.info("%s: done before", place)
                continue
            entry = self._state.get(step.name, {})
            begun = from_step != step.name and self._same(step) and entry["status"] == "running"
            log.info("%s%s", place, ": going on" if begun else "")
            self._forget_from(number)
            self._note(step, status="running")
            started = time.perf_counter()
            files = [path.relative_to(self.folder).as_posix() for path in step.run(begun)]
            self._note(step, status="done", seconds=round(time.perf_counter() - started, 2), files=files)
            ran.append(step.name)
        return ran

    @property
    def seconds(self) -> dict[str, float]:
        """Time that each step that is done took."""
        return {name: entry["seconds"] for name, entry in self._state.items() if entry["status"] == "done"}

    def _first(self, from_step: str | None) -> int:
        """Return the number of the step to begin with."""
        done = next((i for i, step in enumerate(self.steps) if not self._done(step)), len(self.steps))
        if from_step is None:
            return done
        names = [step.name for step in self.steps]
        if from_step not in names:
            raise ConfigError(f"from_step: got {from_step!r}; expected one of {', '.join(names)}")
        asked = names.index(from_step)
        if asked > done:
            raise ConfigError(
                f"from_step={from_step}: {names[done]} comes before it and is not done in {self.folder}, or not with "
                "these settings; leave from_step out, and what is missing is run"
            )
        return asked

    def _same(self, step: Step) -> bool:
        return self._state.get(step.name, {}).get("fingerprint") == self._prints[step.name]

    def _done(self, step: Step) -> bool:
        entry = self._state.get(step.name, {})
        return (
            self._same(step)
            and entry["status"] == "done"
            and all((self.folder / name).exists() for name in entry["files"])
        )

    def _forget_from(self, number: int) -> None:
        for step in self.steps[number:]:
            self._state.pop(step.name, None)

    def _note(self, step: Step, **entries: Any) -> None:
        self._state[step.name] = {"fingerprint": self._prints[step.name], **entries}
        content = {
            "format_version": FORMAT_VERSION,
            "written_by": WRITER,
            "versions": package_versions(),
            "steps": self._state,
        }
        write_text(self.folder / STATE_NAME, json.dumps(content, indent=1) + "\n")

    def _read(self, *, overwrite: bool) -> None:
        path = self.folder / STATE_NAME
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()) and not overwrite:
                raise OutputError(
                    f"output_dir={self.folder}: holds something else than an earlier run of these steps; give another "
                    "folder, or overwrite=true to write there all the same"
                )
            return
        if overwrite:
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            known = content["format_version"] == FORMAT_VERSION and content["written_by"] == WRITER
            state = {str(name): dict(entry) for name, entry in content["steps"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{path}: not the state of a run ({error}); overwrite=true begins anew") from error
        if not known or not all(_is_entry(entry) for entry in state.values()):
            raise OutputError(f"{path}: not the state of a run, or of another version; overwrite=true begins anew")
        self._state = state


def _is_entry(entry: Mapping[str, Any]) -> bool:
    files = entry.get("files", [])
    done = entry.get("status") == "done" and isinstance(entry.get("seconds"), (int, float)) and "files" in entry
    names = isinstance(files, list) and all(isinstance(name, str) for name in files)
    return isinstance(entry.get("fingerprint"), str) and names and (done or entry.get("status") == "running")


def _fingerprints(steps: Sequence[Step]) -> dict[str, str]:
    """Return for each step what its result depends on, those before it included, as a short text."""
    found: dict[str, str] = {}
    before = ""
    for step in steps:
        text = json.dumps([before, step.name, step.settings], sort_keys=True, default=str)
        before = found[step.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found
