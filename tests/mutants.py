"""Hand-made mutants: each changes what the package computes in one place, and must be noticed by the tests it names.

    python tests/mutants.py            # all of tests/mutants.toml: a table of what killed each
    python tests/mutants.py kl wrap    # those with one of the words in their names

Exits with 1 where a mutant survives, where it breaks something else than a test, and where the code it changes is no
longer there. Works on temporary copies of the repository, one a worker; the unchanged code is tested first.
"""

from __future__ import annotations

import ast
import itertools
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import pytest
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = ("src", "tests", "configs", "pyproject.toml")
TIMEOUT = 240.0
"""Seconds after which a run counts as broken."""
PRELOAD = ["ase", "hydra.utils", "lightning", "pymatgen.analysis.structure_matcher", "torch", "torch_geometric.data"]
"""What takes seconds to import: loaded once, in a server that each run is forked from (where the system can fork)."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change: inside the function or class `within`, `original` becomes `replacement`; one of `tests` must fail.

    `within` is a name such as `ELBO.forward`, wherever in the package it is defined: moving code needs no change here.
    What stands in no function is found by its `file` instead. Either way `original` has to be there exactly once.
    """

    name: str
    original: str
    replacement: str
    tests: str
    within: str = ""
    file: str = ""

    def places(self, folder: Path) -> list[tuple[Path, int]]:
        """Return where the original stands in a copy of the repository: files and offsets."""
        if self.file:
            path = folder / self.file
            return occurrences(path, self.original, 0, None) if path.is_file() else []
        found: set[tuple[Path, int]] = set()
        for path in sorted((folder / "src" / "crystalvae").rglob("*.py")):
            for start, end in definitions(path, self.within):
                found |= set(occurrences(path, self.original, start, end))
        return sorted(found)

    @property
    def target(self) -> str:
        """What pytest takes for the tests."""
        return f"tests/{self.tests}" if "::" in self.tests else f"tests/{self.tests}.py"


def read_mutants() -> list[Mutant]:
    """Return the mutants of tests/mutants.toml."""
    content = tomllib.loads((REPOSITORY / "tests" / "mutants.toml").read_text(encoding="utf-8"))
    return [Mutant(**entry) for entry in content["mutant"]]


def run_pytest(folder: Path, targets: list[str], output: Path) -> None:
    """Run tests in a copy of the repository, in a process of its own; exits with pytest's status."""
    with output.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.chdir(folder)
    sys.dont_write_bytecode = True  # a mutant of the same size and second would pass for the original
    own = {REPOSITORY, REPOSITORY / "src"}
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() not in own]
    sys.path[:] = [str(folder), str(folder / "src"), *elsewhere]
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-o", "addopts=-rfE"]
    loaded_before = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    status = pytest.main([*options, *loaded_before, *targets])
    sys.stdout.flush()
    os._exit(int(status))


class Runner:
    """Runs tests in processes that start with the heavy libraries loaded."""

    def __init__(self) -> None:
        fork = "forkserver" in multiprocessing.get_all_start_methods()
        self.context = multiprocessing.get_context("forkserver" if fork else "spawn")
        if fork:
            self.context.set_forkserver_preload(PRELOAD)

    def run(self, folder: Path, targets: list[str]) -> tuple[int, str]:
        """Return pytest's exit status (124: out of time) and what it said."""
        output = folder / "output.txt"
        process = self.context.Process(target=run_pytest, args=(folder, targets, output))
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            return 124, f"no end within {TIMEOUT:.0f} s"
        return process.exitcode, output.read_text(encoding="utf-8", errors="replace")


def definitions(path: Path, name: str) -> Iterator[tuple[int, int]]:
    """Yield the offsets of the first character of each definition of a dotted name in a file, and of the one after."""
    text = path.read_text(encoding="utf-8")
    if name.rpartition(".")[2] not in text:
        return
    lines = [0, *itertools.accumulate(len(line) for line in text.splitlines(keepends=True))]
    waiting: list[tuple[ast.AST, str]] = [(ast.parse(text), "")]
    while waiting:
        node, prefix = waiting.pop()
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                inner = f"{prefix}{child.name}."
                if inner == f"{name}." and child.end_lineno is not None:
                    yield lines[child.lineno - 1], lines[child.end_lineno]
            waiting.append((child, inner))


def occurrences(path: Path, text: str, start: int, end: int | None) -> list[tuple[Path, int]]:
    """Return where a text stands in a part of a file."""
    part = path.read_text(encoding="utf-8")[start:end]
    return [(path, start + found.start()) for found in re.finditer(re.escape(text), part)]


@contextmanager
def mutated(path: Path, offset: int, mutant: Mutant) -> Iterator[None]:
    """Apply a mutant to a file for as long as the context lasts."""
    text = path.read_text(encoding="utf-8")
    changed = text[:offset] + mutant.replacement + text[offset + len(mutant.original) :]
    path.write_text(changed, encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def judge(mutant: Mutant, folder: Path, runner: Runner) -> tuple[str, str]:
    """Return the fate of a mutant and what decided it."""
    places = mutant.places(folder)
    if len(places) != 1:
        return "NOT FOUND", f"the code it changes is there {len(places)} times: bring tests/mutants.toml up to date"
    with mutated(*places[0], mutant):
        status, output = runner.run(folder, [mutant.target])
    if status == 0:
        return "SURVIVED", mutant.tests
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\w+)\.py::(\w+)", output, flags=re.MULTILINE)
    if status == 1 and failed:
        return "killed", f"{failed.group(1)}: {failed.group(2)}"
    return "BROKEN", f"pytest ended with {status}: {output.strip().splitlines()[-1] if output.strip() else 'no output'}"


def copy_repository(folder: Path) -> Path:
    """Copy what the tests need."""
    folder.mkdir()
    for name in PARTS:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def main(words: list[str]) -> int:
    """Judge all mutants, or those with one of the words in their names; return the exit status."""
    console, start, runner = Console(), time.monotonic(), Runner()
    mutants = read_mutants()
    chosen = [mutant for mutant in mutants if not words or any(word.lower() in mutant.name.lower() for word in words)]
    if not chosen:
        console.print(f"no mutant is named like {' or '.join(words)}", markup=False)
        return 1
    workers = min(len(chosen), os.cpu_count() or 1, 8)
    with tempfile.TemporaryDirectory(prefix="mutants_") as name:
        folders: SimpleQueue[Path] = SimpleQueue()
        for number in range(workers):
            folders.put(copy_repository(Path(name) / str(number)))

        def one(mutant: Mutant) -> tuple[str, str]:
            folder = folders.get()
            try:
                return judge(mutant, folder, runner)
            finally:
                folders.put(folder)

        status, output = runner.run(Path(name) / "0", sorted({mutant.target for mutant in chosen}))
        if status != 0:
            console.print(f"the unchanged code fails these tests:\n{output}", highlight=False, markup=False)
            return 1
        with ThreadPoolExecutor(workers) as pool:
            fates = list(track(pool.map(one, chosen), total=len(chosen), description="mutants", console=console))
    table = Table("mutant", "fate", "by", title=f"{len(chosen)} mutants, {time.monotonic() - start:.0f} s")
    for mutant, (fate, reason) in zip(chosen, fates, strict=True):
        table.add_row(escape(mutant.name), fate if fate == "killed" else f"[bold red]{fate}[/]", escape(reason))
    console.print(table)
    killed = sum(fate == "killed" for fate, _ in fates)
    console.print(f"{killed} of {len(chosen)} killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main(sys.argv[1:]))
