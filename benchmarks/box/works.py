"""Does it work: the tests that want a GPU, one line each; without one those of their parts that a CPU can do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from benchmarks.box.sizes import Sizes
from benchmarks.box.store import Budget, Row, Store, python, run_command

ROOT = Path(__file__).resolve().parents[2]
_LINE = re.compile(r"^(?P<test>\S+::\S+) (?P<outcome>PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)", re.MULTILINE)
DONE = {"PASSED", "SKIPPED"}


def run(store: Store, budget: Budget, sizes: Sizes, *, device: str, tests: str | None = None) -> None:
    """Run the tests that have not passed in an earlier job; `tests` is an expression of pytest's -k."""
    del sizes
    log = store.folder / "pytest.log"
    passed = {row["test"] for row in store.rows() if row["outcome"] in DONE}
    command = python("-m", "pytest", "tests/test_cuda.py", "-v", "-ra", "-p", "no:cacheprovider")
    command += ["-m", "cuda"] if device.startswith("cuda") else []
    command += ["-k", tests] if tests else []
    command += [f"--deselect={name}" for name in sorted(passed)]
    start = log.stat().st_size if log.is_file() else 0
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads()))}
    try:
        ended = run_command(command, log, budget, cwd=ROOT, env=environment) is not None
        why = "" if ended else "left for the next job: the time was up"
    except RuntimeError as error:  # of tests that failed, or of pytest itself
        why = str(error)[:600]
    with log.open(encoding="utf-8", errors="replace") as stream:
        stream.seek(start)
        outcomes: list[Row] = [match.groupdict() for match in _LINE.finditer(stream.read())]
    known = {row["test"]: row for row in [*store.rows(), *outcomes]}
    store.found = {"tests": list(known.values())} if known else {}
    failed = [row["test"] for row in known.values() if row["outcome"] not in DONE]
    store.missing = dict.fromkeys(failed, f"failed: see {log.name}")
    if why and not failed:
        store.missing["pytest"] = why
    store.write()
