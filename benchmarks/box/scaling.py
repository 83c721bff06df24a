"""How far: larger batches, wider models, data sets of up to two million crystals, and several devices."""

from __future__ import annotations

import itertools
import json
import re
from functools import partial
from typing import Any

import torch

from benchmarks import scale, training
from benchmarks.box.sizes import Sizes
from benchmarks.box.speed import shape, step_options
from benchmarks.box.store import Budget, Row, Store, python, run_command
from benchmarks.box.works import ROOT
from benchmarks.machine import peak_mib, take_turns
from crystalvae.data.batch import CrystalBatch


def run(store: Store, budget: Budget, sizes: Sizes, *, device: str, data: list[str]) -> None:
    """Measure what has not been measured in an earlier job, as far as the time goes."""
    crystals = training.load_crystals(step_options(sizes, device, data))
    pairs = [(sizes.widths[0], batch_size) for batch_size in sizes.batches]
    pairs += [(size, sizes.batch_size) for size in sizes.widths]
    for size, batch_size in dict.fromkeys(pairs):
        work = partial(step_rows, crystals, size, batch_size, device)
        store.measure(f"step {size}, batch {batch_size}", work, budget, seconds=10 if device != "cpu" else 1)
    for processes in sizes.devices or device_counts():
        work = partial(device_rows, store, budget, sizes.steps[0], sizes.batch_size, processes, device, data)
        store.measure(f"{processes} processes", work, budget, seconds=10)
    for count in sizes.counts:
        work = partial(data_rows, store, count, crystals)
        store.measure(f"{count} crystals", work, budget, seconds=5 + count * 5e-5)


def step_rows(crystals: CrystalBatch, size: str, batch_size: int, device: str) -> list[Row]:
    """Time a training step; a device that is too small for it is a result, too."""
    row: Row = {"what": f"step {size}", "batch": batch_size}
    module, crystals = training.make_module(*shape(size)), repeated(crystals, batch_size)
    work = training.our_step(module, crystals, batch_size, torch.device(device), torch.bfloat16)
    try:
        seconds = take_turns({"": work}, rounds=3 if device == "cpu" else 10, device=device)[""].median()
    except torch.OutOfMemoryError:
        return [{**row, "how": "out of memory"}]
    return [{**row, "per_second": round(batch_size / seconds, 1), "peak_mib": peak_mib(work, device)}]


def repeated(crystals: CrystalBatch, batch_size: int) -> CrystalBatch:
    """Return crystals that fill at least one batch, the same again where there are too few."""
    return CrystalBatch.cat([crystals] * -(-batch_size // len(crystals)))


def device_counts() -> list[int]:
    """Return 1, 2, 4, … up to the number of GPUs."""
    count = max(1, torch.cuda.device_count())
    return [2**power for power in itertools.takewhile(lambda power: 2**power <= count, itertools.count())]


def device_rows(
    store: Store, budget: Budget, size: str, batch_size: int, processes: int, device: str, data: list[str]
) -> list[Row]:
    """Time a step that several processes share, each with a batch of its own: on GPUs by NCCL, on CPUs by gloo."""
    log = store.folder / f"processes_{processes}.log"
    log.unlink(missing_ok=True)
    command = python("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    command += [str(ROOT / "benchmarks/box/shared_step.py"), "--device", torch.device(device).type, "--sizes", size]
    command += ["--batch-size", str(batch_size), "--rounds", "3" if device == "cpu" else "20", *data]
    if run_command(command, log, budget, cwd=ROOT) is None:
        raise TimeoutError("the time was up")
    found = re.findall(r"^\{.*\}$", log.read_text(encoding="utf-8"), re.MULTILINE)
    return [json.loads(found[-1])]


def data_rows(store: Store, count: int, crystals: CrystalBatch) -> list[Row]:
    """Grow a data set of that many crystals, and take batches of it, memory-mapped, in a process of its own."""
    options: Any = scale.parsed(["--batches", "100", "--folder", str(store.folder)])
    return [{"what": f"{count} crystals", **scale.grow_and_measure(count, store.folder, options, base=crystals)}]
