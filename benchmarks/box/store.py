"""What a step of the box has found so far, in a file that is whole at all times; and the time that is left."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crystalvae.evaluation.speed import describe_machine
from crystalvae.files import write_text

log = logging.getLogger(__name__)

Row = dict[str, Any]
GRACE = 30.0
"""Seconds that a command has to end in order when its time is up."""


class Budget:
    """Seconds from now on."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self.end - time.monotonic())

    def part(self, share: float) -> Budget:
        """Return a budget of a share of what is left."""
        return Budget(share * self.left)


class Store:
    """Named results of a step, each a list of rows, kept in `folder`/results.json as soon as it is there."""

    def __init__(self, folder: Path, device: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "results.json"
        self.found: dict[str, list[Row]] = {}
        self.missing: dict[str, str] = {}
        if self.path.is_file():
            self.found = json.loads(self.path.read_text(encoding="utf-8"))["found"]
        self._machine = describe_machine(device)

    def measure(self, name: str, work: Callable[[], list[Row]], budget: Budget, *, seconds: float) -> list[Row] | None:
        """Return the rows of that name: those of an earlier job, else what `work` gives, if `seconds` are left for it.

        None where they are not, or where it failed, which is said and tried again next time.
        """
        if name in self.found:
            return self.found[name]
        if budget.left < seconds:
            self._miss(name, f"left for the next job: it wants about {seconds:.0f} s")
            return None
        log.info("%s …", name)
        start = time.monotonic()
        try:
            rows = work()
        except TimeoutError as error:
            self._miss(name, f"left for the next job: {error}")
            return None
        except Exception as error:
            log.exception("%s failed", name)
            self._miss(name, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return None
        log.info("%s: %.1f s", name, time.monotonic() - start)
        self.missing.pop(name, None)
        self.found[name] = rows
        self.write()
        return rows

    def _miss(self, name: str, why: str) -> None:
        log.warning("%s: %s", name, why)
        self.missing[name] = why
        self.write()

    def write(self) -> None:
        """Write everything to the file."""
        content = {"machine": self._machine, "found": self.found, "missing": self.missing}
        write_text(self.path, json.dumps(content, indent=1) + "\n")

    def rows(self) -> list[Row]:
        """Return all rows in order."""
        return [row for rows in self.found.values() for row in rows]


def run_command(arguments: Sequence[str], log_file: Path, budget: Budget, **options: Any) -> int | None:
    """Run a command with its output in a log, asked to end (SIGTERM) when the time is up; None where it had to be.

    Raises `RuntimeError` with the end of the log where the command failed.
    """
    with log_file.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {' '.join(arguments)}\n")
        stream.flush()
        start = stream.tell()
        process = subprocess.Popen(arguments, stdout=stream, stderr=subprocess.STDOUT, **options)
        try:
            status = process.wait(timeout=budget.left)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return None
    if status:
        end = log_file.read_bytes()[start:].decode(errors="replace")[-1500:]
        raise RuntimeError(f"{' '.join(arguments[1:3])} failed ({status}): {end}")
    return status


def python(script: Path | str, *arguments: str) -> list[str]:
    """Return the command line of a script with this interpreter."""
    return [sys.executable, str(script), *arguments]
