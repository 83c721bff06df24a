"""An hour on a GPU, in a box: does it work, how quick, how good, how far. Each step goes on where the last job stopped.

    make gpu                                                          # all steps within 45 minutes, into runs/gpu
    python benchmarks/gpu.py --out runs/gpu --minutes 10              # a job of ten minutes: as much as fits
    python benchmarks/gpu.py --out runs/gpu --minutes 10 quality      # the next one: only training, which goes on
    python benchmarks/gpu.py --out runs/rehearsal --minutes 2 --rehearsal --device cpu --data prototypes

Steps: works (the tests that want a GPU), speed (steps against the plain reference, sampling, a plan for 10, 30 and 45
minutes), quality (a sweep, mp20-base's VAE and prior, the card's evaluations) and scaling (batches, widths, up to
2,000,000 crystals, devices). Every step runs in a process of its own and never longer than its share of the minutes; it
leaves results.json, logs and checkpoints in a folder of its name, and all of them together a README.md with tables.
What has a result is not done again. No network is needed but for MP-20, which is brought along (CRYSTALVAE_MP20_DIR).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
import torch

import src  # noqa: F401  # the package of this checkout
from benchmarks import training
from benchmarks.box import quality, scaling, speed, works
from benchmarks.box.sizes import REHEARSAL, Sizes
from benchmarks.box.store import GRACE, Budget, Row, Store, python, run_command
from crystalvae.files import write_text

log = logging.getLogger("box")

STEPS = {"works": 1.0, "speed": 2.0, "quality": 5.0, "scaling": 2.0}
"""Steps in order, and their shares of the time: what one leaves over goes to those after it."""

MOST_COLUMNS = 14
"""Of a table; wider ones are turned."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps that are asked for, and write what all of them have found."""
    options = parsed(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options.out.mkdir(parents=True, exist_ok=True)
    budget, steps = Budget(60 * options.minutes), options.steps or list(STEPS)
    for position, step in enumerate(steps):
        part = budget.part(STEPS[step] / sum(STEPS[later] for later in steps[position:]))
        if len(steps) == 1:
            run_step(step, part, options)
        else:
            in_a_process(step, part, options)
    text = summary(options.out)
    write_text(options.out / "README.md", text)
    print(text)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], metavar="STEP", help="by default all")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="the folder of everything")
    parser.add_argument("--minutes", type=float, default=45.0, help="of this job")
    parser.add_argument("--all-minutes", type=float, help="of all jobs together, for the length of trainings")
    parser.add_argument("--rehearsal", action="store_true", help="tiny models, to try the box itself")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", choices=["mp_20", "prototypes", "table"], default="mp_20")
    parser.add_argument("--data-dir", help="folder of the CSVs, for mp_20 else as the package finds them")
    parser.add_argument("--tests", help="step works: only tests that match (pytest -k)")
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    return options


def in_a_process(step: str, budget: Budget, options: argparse.Namespace) -> None:
    """Run a step in a process of its own, so that an error of the device ends with it."""
    given = [step, "--out", str(options.out), "--minutes", f"{budget.left / 60:.3f}", "--device", options.device]
    given += ["--all-minutes", str(options.all_minutes or options.minutes), "--data", options.data]
    for name in ("data_dir", "tests"):
        if getattr(options, name) is not None:
            given += [f"--{name.replace('_', '-')}", getattr(options, name)]
    given += ["--rehearsal"] if options.rehearsal else []
    try:
        run_command(python(__file__, *given), options.out / f"{step}.log", Budget(budget.left + 2 * GRACE))
    except RuntimeError:
        log.exception("%s", step)


def run_step(step: str, budget: Budget, options: argparse.Namespace) -> None:
    """Run a step here."""
    store = Store(options.out / step, options.device)
    sizes = REHEARSAL if options.rehearsal else Sizes()
    given = ["--data", options.data, *(["--data-dir", options.data_dir] if options.data_dir else [])]
    overrides = [f"data={options.data}", *([f"data.source.data_dir={options.data_dir}"] if options.data_dir else [])]
    minutes = (options.all_minutes or options.minutes) * STEPS["quality"] / sum(STEPS.values())
    runs: dict[str, Callable[..., None]] = {
        "works": partial(works.run, tests=options.tests),
        "speed": partial(speed.run, data=given),
        "quality": partial(quality.run, data=overrides, minutes=minutes),
        "scaling": partial(scaling.run, data=given),
    }
    start = time.monotonic()
    store.missing.clear()
    runs[step](store, budget, sizes, device=options.device)
    found, missing = len(store.found), len(store.missing)
    log.info("%s: %.0f s; %d results, %d missing", step, time.monotonic() - start, found, missing)
    store.write()


def summary(folder: Path) -> str:
    """Return the tables of all steps as a page."""
    lines = ["# What the box found", ""]
    for step in STEPS:
        path = folder / step / "results.json"
        if not path.is_file():
            lines += [f"## {step}", "", "Not run yet.", ""]
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        machine = content["machine"]
        on = machine["accelerator"] or f"{machine['processor']}, {machine['threads']} threads; no GPU"
        lines += [f"## {step}", "", f"On {on}; torch {machine['torch']}.", ""]
        for table in grouped([row for rows in content["found"].values() for row in rows]):
            lines += [as_text(table), ""]
        lines += [f"- {name}: {why}" for name, why in content["missing"].items()]
        lines += [""] if content["missing"] else []
    return "\n".join(lines)


def as_text(rows: list[Row]) -> str:
    """Return rows as a table, turned where they have many columns."""
    if max(len(row) for row in rows) <= MOST_COLUMNS:
        return training.as_table(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "what"))
    return training.as_table([{"": key, **{str(row["what"]): row.get(key, "") for row in rows}} for key in keys])


def grouped(rows: list[Row]) -> list[list[Row]]:
    """Return rows of one kind, by the first word of what they are of, together: each kind is a table."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        shown = {key: value for key, value in row.items() if value is not None and not isinstance(value, dict)}
        groups.setdefault(str(row.get("what", "")).split(" ")[0], []).append(shown)
    return list(groups.values())


if __name__ == "__main__":
    main()
