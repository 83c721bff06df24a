"""A seeded fuzz of everything that reads files: `python tests/fuzz.py --count 1000 --seed 0`.

Each case damages a table, a CIF, a file for ASE, a dataset cache or a checkpoint. It must load what is intact and
report the rest, or raise one of our own errors. Any other exception, a crash, more than 10 s or more than 2 GB is a
failure, printed with the command that repeats it (`--case N`). Cases run in a process of their own.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [entry for entry in (str(REPOSITORY), str(REPOSITORY / "src")) if entry not in sys.path]
SECONDS, BYTES = 10, 2 * 2**30
WEIGHTS = {
    "csv row": 4, "csv table": 3, "csv bytes": 3, "csv.gz": 1, "parquet": 1, "feather": 1, "cif": 5, "extxyz": 1,
    "POSCAR": 1, "db": 1, "cache": 1, "ours": 4, "ours zip": 4, "ours value": 6, "published": 2, "published zip": 4,
}  # fmt: skip
"""How often each kind of file is drawn."""


class HangError(Exception):
    """A case that took too long."""


# ---- the intact files -----------------------------------------------------------------------------------------------


def write_originals(folder: Path) -> None:
    """Write one intact file of each kind."""
    import ase.io
    import pandas as pd
    import torch
    from ase.db import connect

    from crystalvae.data.batch import CrystalBatch
    from crystalvae.data.dataset import CrystalDataset
    from crystalvae.data.dataset_file import save_dataset
    from tests.published import PublishedVAE, save_published
    from tests.samples import random_crystals, rock_salt_and_friends, tiny_module

    folder.mkdir(parents=True, exist_ok=True)
    structures = [*rock_salt_and_friends(), *random_crystals((1, 2, 3, 5, 8), seed=1).to_structure()]
    cifs = [structure.to(fmt="cif", symprec=1e-3 if i < 3 else None) for i, structure in enumerate(structures)]
    for i, text in enumerate(cifs):
        (folder / f"{i}.cif").write_text(text)
    ids = [f"mp-{i}" for i in range(len(cifs))]
    frame = pd.DataFrame({"material_id": ids, "band_gap": 0.5, "formula": "x", "cif": cifs, "spacegroup.number": 1})
    frame.to_csv(folder / "table.csv")
    frame.to_csv(folder / "table.csv.gz")
    frame.to_parquet(folder / "table.parquet")
    frame.to_feather(folder / "table.feather")
    atoms = CrystalBatch.from_structures(structures).to_atoms()
    ase.io.write(folder / "frames.extxyz", atoms)
    ase.io.write(folder / "POSCAR", atoms[0])
    with connect(folder / "rows.db") as database:
        for number, entry in enumerate(atoms):
            database.write(entry, material_id=f"id-{number}", band_gap=0.5)
    save_dataset(CrystalDataset(CrystalBatch.from_structures(structures), ids), folder / "cache.safetensors")
    module = tiny_module(loss_weights={"kl": 0.25}, noise={"mask_ratio": 0.1, "displacement": 0.05})
    module.statistics = {"num_atoms": {2: 5, 8: 1}, "dataset": "fuzz"}
    module.save_checkpoint(folder / "ours.ckpt")
    with torch.random.fork_rng():
        save_published(PublishedVAE(), folder / "published.ckpt")
    (folder / "complete").touch()


# ---- one case -------------------------------------------------------------------------------------------------------


def run_case(seed: int, number: int, originals: Path, folder: Path) -> str:
    """Damage one file and read it; return its kind and "loaded", "partly" or "refused", or raise what went wrong."""
    rng = random.Random(f"{seed}-{number}")
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    path, untouched = damaged_file(kind, rng, originals, folder)
    from crystalvae.errors import CrystalVAEError

    try:
        outcome = load_model(path) if path.suffix == ".ckpt" else load_crystals(path, untouched)
    except CrystalVAEError as error:
        message = str(error)
        if "\n" in message or not 20 < len(message) < 2000:
            raise AssertionError(f"our error is not one readable paragraph: {message!r}") from error
        link: BaseException | None = error
        while link is not None:
            # Arrow reserves what a damaged buffer says it unpacks to, and touches none of it before it is found out.
            reserved = type(link).__name__ == "ArrowMemoryError"
            if (isinstance(link, (MemoryError, HangError)) and not reserved) or "allocate memory" in str(link):
                raise AssertionError(f"asked for too much memory or time before it was refused: {link!r}") from error
            link = link.__cause__
        outcome = "refused"
    return f"{kind}: {outcome}"


def damaged_file(kind: str, rng: random.Random, originals: Path, folder: Path) -> tuple[Path, set[str]]:
    """Write a damaged file; return it and the ids of the rows that were left alone, where that is known."""
    import torch

    from tests import mutations

    source = {
        "csv row": "table.csv", "csv table": "table.csv", "csv bytes": "table.csv", "csv.gz": "table.csv.gz",
        "parquet": "table.parquet", "feather": "table.feather", "extxyz": "frames.extxyz", "POSCAR": "POSCAR",
        "db": "rows.db", "cache": "cache.safetensors", "cif": f"{rng.randrange(9)}.cif",
    }.get(kind, f"{kind.partition(' ')[0]}.ckpt")  # fmt: skip
    content, path, untouched = (originals / source).read_bytes(), folder / source, set[str]()
    if kind == "ours value":
        value = torch.load(originals / source, weights_only=True)
        for _ in range(rng.choice((1, 1, 3))):
            value = mutations.damage_value(value, rng)
        torch.save(value, path)
        return path, untouched
    if kind == "csv row":
        content, row = mutations.damage_row(content, rng)
        untouched = {f"mp-{i}" for i in range(9)} - {f"mp-{row}"}
    for _ in range(0 if kind == "csv row" else rng.choice((1, 1, 1, 2, 5))):
        if kind.endswith((" zip", " table")):
            damage = mutations.damage_archive if kind.endswith("zip") else mutations.damage_table
            try:
                content = damage(content, rng)
            except Exception:  # noqa: BLE001  what was damaged before may be no archive and no table any more
                content = mutations.damage_bytes(content, rng)
        elif kind in {"cif", "extxyz", "POSCAR"} and rng.random() < 0.7:
            content = mutations.damage_text(content.decode(errors="surrogateescape"), rng).encode(
                errors="surrogateescape"
            )
        else:
            content = mutations.damage_bytes(content, rng)
    if kind == "cif":
        path = folder / "cifs" / source
        path.parent.mkdir(exist_ok=True)
        (path.parent / "intact.cif").write_bytes((originals / "3.cif").read_bytes())
        untouched = {"intact"}
    path.write_bytes(content)
    return (path.parent if kind == "cif" else path), untouched


def load_crystals(path: Path, untouched: set[str]) -> str:
    """Read crystals; check that those that come back are sound and that none of the untouched is missing."""
    import torch

    from crystalvae.data.readers import read_crystals

    dataset = read_crystals(path, max_atoms=1000, niggli=True, unique_ids=True)
    crystals = dataset.crystals
    assert len(set(dataset.ids)) == len(dataset.ids) == len(crystals) > 0 or path.suffix == ".safetensors"
    if path.suffix != ".safetensors":  # a cache is our own file, behind a key
        assert torch.isfinite(crystals.lattices).all(), "cells that are not finite"
        assert bool(((crystals.frac_coords >= 0) & (crystals.frac_coords < 1)).all()), "coordinates outside [0, 1)"
        assert 1 <= int(crystals.atom_types.min()) <= int(crystals.atom_types.max()) <= 99, "elements outside 1..99"
        assert bool((crystals.volumes > 0).all()), "flat cells"
    missing = untouched - set(dataset.ids)
    # A damaged row may take the id of another one, which is then reported as a duplicate.
    missing -= {entry.id for entry in dataset.skipped if entry.reason == "duplicate id"}
    assert not missing, f"intact rows are missing: {sorted(missing)}"
    return "partly" if dataset.skipped else "loaded"


def load_model(path: Path) -> str:
    """Load a model; where that succeeds it must also run."""
    from crystalvae.vae_module import VAEModule
    from tests.samples import random_crystals

    vae = VAEModule.load_from_checkpoint(path)
    vae.reconstruct_crystals(random_crystals((2, 3)))
    return "loaded"


# ---- processes ------------------------------------------------------------------------------------------------------


def work(seed: int, numbers: range, originals: Path) -> None:
    """Run cases one after the other under limits of time and memory, one line of JSON before and after each."""
    from crystalvae.data import sources  # noqa: F401  what is imported counts as ours, not as a case's memory
    from crystalvae.vae_module import VAEModule  # noqa: F401
    from tests import samples  # noqa: F401

    def stop(*_: object) -> None:
        raise HangError(f"more than {SECONDS} s")

    warnings.simplefilter("ignore")
    logging.disable()
    if not (originals / "complete").exists():
        write_originals(originals)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGALRM, stop)
    for number in numbers:
        say({"start": number})
        with tempfile.TemporaryDirectory() as folder:
            signal.alarm(SECONDS)
            try:
                result = {"done": number, "outcome": run_case(seed, number, originals, Path(folder))}
            except BaseException as error:  # noqa: BLE001  finding these is what a fuzz is for
                signal.alarm(0)
                result = {"done": number, "failure": repr(error)[:500], "traceback": traceback.format_exc()[-6000:]}
            finally:
                signal.alarm(0)
        say(result)


def say(message: dict[str, object]) -> None:
    os.write(1, (json.dumps(message) + "\n").encode())


def run(count: int, seed: int, *, report: Callable[[str], None], first: int = 0) -> int:
    """Run cases in worker processes, restarting them after a crash; return the number of failures."""
    outcomes: Counter[str] = Counter()
    failures, began, number, stop = 0, time.monotonic(), first, first + count
    with tempfile.TemporaryDirectory() as temporary:
        while number < stop:
            command = [sys.executable, __file__, "--seed", str(seed), "--work", f"{number}:{stop}", temporary]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with subprocess.Popen(
                command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
            ) as worker:
                for line in _lines(worker):
                    message = json.loads(line)
                    if "done" not in message:
                        number = message["start"]
                        continue
                    number = message["done"] + 1
                    outcomes[message.get("outcome", "failed")] += 1
                    if "failure" in message:
                        failures += 1
                        report(f"case {message['done']}: {message['failure']}\n{message['traceback']}")
                        report(f"repeat with: python tests/fuzz.py --seed {seed} --case {message['done']}\n")
                worker.kill()
                errors = worker.stderr.read().decode(errors="replace") if worker.stderr else ""
            if number < stop:
                failures += 1
                report(f"case {number}: the process crashed or hung (exit {worker.returncode})\n{errors[-2000:]}")
                report(f"repeat with: python tests/fuzz.py --seed {seed} --case {number}\n")
                number += 1
    for outcome, found in sorted(outcomes.items()):
        report(f"  {found:5d}  {outcome}")
    took = time.monotonic() - began
    report(f"fuzz: {count} cases, seed {seed}, {failures} failures, {took:.0f} s")
    return failures


def _lines(worker: subprocess.Popen[bytes]) -> Iterator[bytes]:
    assert worker.stdout is not None
    first = True
    while select.select([worker.stdout], [], [], 120 if first else SECONDS + 20)[0]:
        line = worker.stdout.readline()
        if not line:
            return
        first = False
        yield line


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this case alone")
    parser.add_argument("--work", nargs=2, metavar=("FIRST:STOP", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        bounds, folder = arguments.work
        work(arguments.seed, range(*map(int, bounds.split(":"))), Path(folder) / "originals")
        return 0
    first, count = (0, arguments.count) if arguments.case is None else (arguments.case, 1)
    return 1 if run(count, arguments.seed, report=print, first=first) else 0


if __name__ == "__main__":
    sys.exit(main())
