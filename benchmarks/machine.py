"""What this machine can do at best: matrix products and memory, measured; and a clock that takes turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F


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


def bandwidth(device: torch.device | str = "cpu", *, clock: str = "wall") -> float:
    """Return bytes per second, read and written, of copying 256 MB."""
    source = torch.zeros(64_000_000, device=device)
    target = torch.empty_like(source)
    times = take_turns({"": lambda: target.copy_(source)}, rounds=5, device=device)[""]
    return 2 * source.nbytes / min(times.wall if clock == "wall" else times.cpu)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
