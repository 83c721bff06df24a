"""Variants of an experiment side by side: each is trained with the same budget, sampled and evaluated; one table.

    python benchmarks/variants.py benchmarks/variants/prior.yaml
    python benchmarks/variants.py benchmarks/variants/prior.yaml --only base velocity --output runs/levers

A file of variants names the overrides common to all (`common`), the evaluations (`evaluate`: a list of overrides each,
of `src/evaluate.py`) and the table's columns (`columns`: heading → metric of evaluation.json, or of the training log as
`log:val/loss`). A variant has a `command` (train_vae, train_prior, or none where only sampling differs), its
`overrides` (where nothing is trained, of its evaluations), and maybe `needs`, the variant whose checkpoint it starts
from; `{needs}` in an override becomes its path. What is done is not done again: delete a variant's
folder to repeat it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("train_vae", "train_prior")


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    name: str
    change: str
    command: str | None = None
    overrides: list[str] = field(default_factory=list)
    needs: str | None = None
    checkpoint: str | None = None
    evaluate: list[list[str]] | None = None

    def __post_init__(self) -> None:
        if (self.command is None) == (self.checkpoint is None):
            raise SystemExit(f"{self.name}: expected either a command that trains or a checkpoint")
        if self.command is not None and self.command not in COMMANDS:
            raise SystemExit(f"{self.name}: command {self.command!r}; expected one of {', '.join(COMMANDS)}")


@dataclass(frozen=True)
class Table:
    """A file of variants."""

    variants: list[Variant]
    columns: dict[str, str]
    evaluate: list[list[str]]
    common: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read it; unknown keys are refused."""
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        variants = [Variant(name=name, **entry) for name, entry in content.pop("variants").items()]
        return cls(variants=variants, **content)


def main() -> None:
    """Run what is missing and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", help="variants; others are shown where they have results already")
    parser.add_argument("--output", type=Path, help="folder of the runs; default: runs/<name of the file>")
    options = parser.parse_args()
    table = Table.read(options.file)
    output = (options.output or ROOT / "runs" / options.file.stem).resolve()
    names = [variant.name for variant in table.variants]
    if unknown := set(options.only or []) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; the file has {', '.join(names)}")
    for variant in table.variants:
        if options.only is None or variant.name in options.only:
            run(variant, table, output)
    show(table, output)


def run(variant: Variant, table: Table, output: Path) -> None:
    """Train and evaluate one variant, as far as that is not done."""
    folder = output / variant.name
    checkpoint = variant.checkpoint or str(folder / "training/checkpoints/last.ckpt")
    if variant.command is not None and not (folder / "seconds.json").exists():
        given = [entry.replace("{needs}", str(output / f"{variant.needs}/training/checkpoints/last.ckpt"))
                 for entry in variant.overrides]  # fmt: skip
        start = time.perf_counter()
        run_folder = [f"output_dir={folder}/training", "overwrite=true"]
        call(variant.command, [*table.common[variant.command], *given, *run_folder], folder)
        (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - start), encoding="utf-8")
    for number, evaluation in enumerate(table.evaluate if variant.evaluate is None else variant.evaluate):
        target = folder / f"evaluation_{number}"
        if not (target / "evaluation.json").exists():
            given = variant.overrides if variant.command is None else []
            call("evaluate", [f"ckpt_path={checkpoint}", *evaluation, *given, f"output_dir={target}"], folder)


def call(command: str, overrides: list[str], folder: Path) -> None:
    """Run a command of the package; its output goes to a log, and an error stops the benchmark."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{command}.log"
    print(f"{folder.name}: {command} {' '.join(overrides)}", file=sys.stderr, flush=True)
    with log.open("w", encoding="utf-8") as stream:
        line = [sys.executable, str(ROOT / f"src/{command}.py"), *overrides]
        done = subprocess.run(line, stdout=stream, stderr=subprocess.STDOUT, check=False, env={**os.environ})
    if done.returncode:
        raise SystemExit(f"{folder.name}: {command} failed, see {log}")


def values(folder: Path) -> dict[str, Any]:
    """Return all that was measured of a variant: metrics of its evaluations, last values of its log, seconds."""
    found: dict[str, Any] = {}
    for log in sorted(folder.glob("training/csv/*/metrics.csv")):
        with log.open(encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                found |= {f"log:{name}": float(value) for name, value in row.items() if value}
    for report in sorted(folder.glob("evaluation_*/evaluation.json")):
        found |= json.loads(report.read_text(encoding="utf-8"))["metrics"]
    if (folder / "seconds.json").exists():
        found["seconds"] = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
    return found


def show(table: Table, output: Path) -> None:
    """Print a line for each variant that has results; a dash stands where a column does not apply."""
    print(f"| change | {' | '.join(table.columns)} |")
    print("|---" * (len(table.columns) + 1) + "|")
    for variant in table.variants:
        found = values(output / variant.name)
        if found:
            cells = [shown(heading, found.get(key)) for heading, key in table.columns.items()]
            print(f"| {variant.change} | {' | '.join(cells)} |")


def shown(heading: str, value: float | None) -> str:
    """Return a number as text; headings that end in % hold shares."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if heading.endswith("%") else f"{value:.4g}"


if __name__ == "__main__":
    main()
