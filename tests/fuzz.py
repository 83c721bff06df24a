"""A seeded fuzz of everything that reads files: `python tests/fuzz.py --count 1000 --seed 0`.

Each case damages a table, a CIF, JSON, a zip, a file for ASE, a dataset cache or a checkpoint, which is then loaded,
fine-tuned from or resumed. It must load what is intact and report the rest, or raise one of our own errors; what is not
its own it must leave as it is. Any other exception, a crash, more than 20 s of the processor or more than 4 GB is a
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
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crystalvae.data.dataset import CrystalDataset

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [entry for entry in (str(REPOSITORY), str(REPOSITORY / "src")) if entry not in sys.path]
SECONDS, BYTES = 20, 4 * 2**30
WEIGHTS = {
    "csv row": 4, "csv table": 3, "csv bytes": 3, "csv.gz": 1, "parquet": 1, "feather": 1, "cif": 5, "extxyz": 1,
    "POSCAR": 1, "db": 1, "traj": 1, "json": 4, "zip": 3, "cache": 1,
    "ours": 4, "ours zip": 4, "ours value": 6, "published": 2, "published zip": 4,
    "resume value": 5, "resume zip": 1, "tune value": 2,
    "input objects": 2, "input zip": 2, "input frames": 2, "input json.gz": 1, "input table": 1, "input cells": 2,
    "input left-handed": 2,
}  # fmt: skip
"""How often each kind of file is drawn; those of "input" are in `fuzz_inputs.py`."""


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
    ase.io.write(folder / "frames.traj", atoms)
    (folder / "crystals.json").write_text(json.dumps([json.loads(structure.to_json()) for structure in structures]))
    with zipfile.ZipFile(folder / "crystals.zip", "w") as archive:
        for i, text in enumerate(cifs):
            archive.writestr(f"mp-{i}.cif", text)
    train_a_little(folder / "run")
    (folder / "run" / "checkpoints" / "last.ckpt").replace(folder / "resume.ckpt")
    with torch.random.fork_rng():
        save_published(PublishedVAE(), folder / "published.ckpt")
    (folder / "complete").touch()


class Few:
    """A source of a few crystals."""

    name = "few"

    def load(self, split: str) -> CrystalDataset:
        """Return the same crystals for every split."""
        from crystalvae.data.dataset import CrystalDataset
        from tests.samples import random_crystals

        crystals = random_crystals((2, 3, 1, 4), seed=len(split))
        return CrystalDataset(crystals, [str(i) for i in range(len(crystals))])


def train_a_little(folder: Path, resumed_from: Path | None = None) -> None:
    """Train a tiny VAE for an epoch, or for one more."""
    import lightning as L
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    from crystalvae.commands.run_folder import check_same_model
    from crystalvae.commands.train import MODEL_KEYS, fit
    from crystalvae.data.datamodule import CrystalDataModule
    from crystalvae.vae_module.weight_averaging import AveragedWeights
    from tests.samples import tiny_module

    here = {"dirpath": folder / "checkpoints", "enable_version_counter": False}
    module = tiny_module(optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-3, "fused": True})
    if resumed_from is not None:
        check_same_model(module, resumed_from, "vae", MODEL_KEYS)
    trainer = L.Trainer(
        max_epochs=1 if resumed_from is None else 2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False, default_root_dir=folder,
        callbacks=[
            ModelCheckpoint(**here, filename="best", monitor="val/loss"), ModelCheckpoint(**here, filename="last"),
            EarlyStopping("val/loss"), AveragedWeights(decay=0.9),
        ],
    )  # fmt: skip
    fit(trainer, module, CrystalDataModule(source=Few(), batch_size=2), resumed_from=resumed_from)


# ---- one case -------------------------------------------------------------------------------------------------------


def run_case(seed: int, number: int, originals: Path, folder: Path) -> str:
    """Damage one file and read it; return its kind and "loaded", "partly" or "refused", or raise what went wrong."""
    rng = random.Random(f"{seed}-{number}")
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    from tests.fuzz_inputs import KINDS

    further = kind.removeprefix("input ")
    damage = partial(damaged_file, kind) if further == kind else KINDS[further]
    path, untouched = damage(rng, originals, folder)
    precious = folder / "precious" / "deep"
    precious.mkdir(parents=True)
    (precious / "file").write_text("mine")
    os.chdir(folder)  # where a name that leads to a file is looked for
    from crystalvae.errors import CrystalVAEError

    try:
        outcome = use(kind, path, untouched)
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
    finally:
        os.chdir(originals)
    assert (precious / "file").read_text() == "mine", "another's file was changed"
    assert not (folder / "trace").exists(), "something ran"
    return f"{kind}: {outcome}"


def use(kind: str, path: Path, untouched: set[str]) -> str:
    """Read a file, and go on with what it holds as a user would."""
    if kind.startswith("resume"):
        train_a_little(path.parents[1], resumed_from=path)
        return "loaded"
    if kind.startswith("tune"):
        from crystalvae.commands.train import start_from
        from tests.samples import tiny_module

        start_from(tiny_module(), path)
        return "loaded"
    return load_model(path) if path.suffix == ".ckpt" else load_crystals(path, untouched)


def damaged_file(kind: str, rng: random.Random, originals: Path, folder: Path) -> tuple[Path, set[str]]:
    """Write a damaged file; return it and the ids of the rows that were left alone, where that is known."""
    import torch

    from tests import mutations

    source = {
        "csv row": "table.csv", "csv table": "table.csv", "csv bytes": "table.csv", "csv.gz": "table.csv.gz",
        "parquet": "table.parquet", "feather": "table.feather", "extxyz": "frames.extxyz", "POSCAR": "POSCAR",
        "db": "rows.db", "traj": "frames.traj", "json": "crystals.json", "zip": "crystals.zip",
        "cache": "cache.safetensors", "cif": f"{rng.randrange(9)}.cif",
        "tune value": "ours.ckpt",
    }.get(kind, f"{kind.partition(' ')[0]}.ckpt")  # fmt: skip
    content, path, untouched = (originals / source).read_bytes(), folder / source, set[str]()
    if kind.startswith("resume"):
        path = folder / "run" / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        path.with_name("best.ckpt").write_bytes(content)
    if kind.endswith(" value"):
        value = torch.load(originals / source, weights_only=True)
        for _ in range(rng.choice((1, 1, 3))):
            value = mutations.damage_value(value, rng)
        torch.save(value, path)
        return path, untouched
    if kind == "csv row":
        content, row = mutations.damage_row(content, rng)
        untouched = {f"mp-{i}" for i in range(9)} - {f"mp-{row}"}
    for _ in range(0 if kind == "csv row" else rng.choice((1, 1, 1, 2, 5))):
        if kind in {"json", "zip"} or kind.endswith((" zip", " table")):
            damage = {"json": mutations.damage_json, "zip": mutations.damage_zip}.get(kind, mutations.damage_table)
            damage = mutations.damage_archive if kind.endswith(" zip") else damage
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
    """Load a model; where that succeeds it must also encode, decode, sample, embed and be saved."""
    import torch

    from crystalvae.data.batch import CrystalBatch
    from crystalvae.vae_module import VAEModule
    from tests.samples import random_crystals

    vae = VAEModule.load_from_checkpoint(path)
    crystals = random_crystals((2, 3))
    vae.reconstruct_crystals(crystals)
    vae.embed(crystals)
    template = crystals if not vae.atom_type_predict else CrystalBatch.empty([2, 3])
    vae.sample_crystals(template, generator=torch.Generator().manual_seed(0))
    vae.save_checkpoint(path.with_name("again.ckpt"))
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
    signal.signal(signal.SIGPROF, stop)
    for number in numbers:
        say({"start": number})
        with tempfile.TemporaryDirectory() as folder:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor, which others may use too
            try:
                result = {"done": number, "outcome": run_case(seed, number, originals, Path(folder))}
            except BaseException as error:  # noqa: BLE001  finding these is what a fuzz is for
                signal.setitimer(signal.ITIMER_PROF, 0)
                result = {"done": number, "failure": repr(error)[:500], "traceback": traceback.format_exc()[-6000:]}
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
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
    while select.select([worker.stdout], [], [], 900 if first else 30 * SECONDS)[0]:
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
