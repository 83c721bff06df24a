"""What this machine can do at best: matrix products and memory, measured; and clocks and counts of what work takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

DATASHEET = {
    "H200": {torch.bfloat16: 989e12, "tf32": 495e12},
    "H100 PCIe": {torch.bfloat16: 756e12, "tf32": 378e12},
    "H100 NVL": {torch.bfloat16: 835e12, "tf32": 418e12},
    "H100": {torch.bfloat16: 989e12, "tf32": 495e12},
    "A100": {torch.bfloat16: 312e12, "tf32": 156e12},
    "L40S": {torch.bfloat16: 362e12, "tf32": 183e12},
    "A10": {torch.bfloat16: 125e12, "tf32": 62.5e12},
    "RTX 4090": {torch.bfloat16: 165e12, "tf32": 82.6e12},
}
"""Dense matrix products in FLOP/s, of NVIDIA's data sheets, by what a device's name contains; the first that fits."""


@dataclass(frozen=True)
class Times:
    """Seconds of each round of some work: on the wall, and added up over this process's threads."""

    wall: list[float]
    cpu: list[float]

    def median(self, clock: str = "wall") -> float:
        """Return the median round by "wall" or "cpu" time."""
        return statistics.median(self.wall if clock == "wall" else self.cpu)


def take_turns(
    works: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1, device: torch.device | str = "cpu"
) -> dict[str, Times]:
    """Time pieces of work that take turns, so that whatever else the machine does hits all of them alike."""
    where = torch.device(device)
    times = {name: Times([], []) for name in works}
    for number in range(warmup + rounds):
        for name, work in works.items():
            _wait(where)
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            _wait(where)
            if number >= warmup:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
    return times


def once(work: Callable[[], object]) -> tuple[float, float, object]:
    """Return the wall and CPU seconds of a piece of work, and what it returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def matrix_rate(dtype: torch.dtype, device: torch.device | str = "cpu", *, clock: str = "wall") -> float:
    """Return the best FLOP/s of a linear layer of 1024 numbers to 1024 for 2048 rows (16,384 on a GPU)."""
    where = torch.device(device)
    rows, repeats = (2048, 4) if where.type == "cpu" else (16384, 50)
    x, w = (torch.randn(n, 1024, device=where, dtype=dtype) for n in (rows, 1024))

    def work() -> None:
        for _ in range(repeats):
            F.linear(x, w)

    times = take_turns({"": work}, rounds=5, device=where)[""]
    return repeats * 2 * rows * 1024**2 / min(times.wall if clock == "wall" else times.cpu)


def datasheet_rate(kind: torch.dtype | str, device: torch.device | str) -> float | None:
    """Return what the data sheet of a GPU says of `kind` (bfloat16, "tf32"); None where it is not known here."""
    where = torch.device(device)
    if where.type != "cuda":
        return None
    name = torch.cuda.get_device_name(where)
    return next((rates.get(kind) for part, rates in DATASHEET.items() if part in name), None)


def counted_flops(work: Callable[[], object]) -> int:
    """Return the operations of all matrix products and attention that some work did, padding included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_mib(work: Callable[[], object], device: torch.device | str) -> float | None:
    """Return the most memory that a piece of work had on a GPU; None elsewhere."""
    where = torch.device(device)
    if where.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(where)
    work()
    _wait(where)
    return round(torch.cuda.max_memory_allocated(where) / 2**20, 1)


def bandwidth(device: torch.device | str = "cpu", *, clock: str = "wall") -> float:
    """Return bytes per second, read and written, of copying 256 MB."""
    source = torch.zeros(64_000_000, device=device)
    target = torch.empty_like(source)
    times = take_turns({"": lambda: target.copy_(source)}, rounds=5, device=device)[""]
    return 2 * source.nbytes / min(times.wall if clock == "wall" else times.cpu)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
