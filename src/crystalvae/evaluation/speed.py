"""Speed of sampling, and the machine it was measured on."""

from __future__ import annotations

import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from crystalvae.errors import ConfigError
from crystalvae.evaluation.metric import HERE, Metric, Section

log = logging.getLogger(__name__)

NO_SAMPLER = "the crystals came from files: nothing was sampled here. Evaluate a checkpoint to measure its speed"


@dataclass(frozen=True)
class SamplingTimes:
    """Seconds that each of some equal rounds of sampling took: `samples` crystals per round, on `device`."""

    samples: int
    seconds: Sequence[float]
    device: str

    @property
    def samples_per_second(self) -> float:
        """Crystals per second, in the median round."""
        return self.samples / statistics.median(self.seconds)


def time_sampling(
    sample: Callable[[int], object],
    *,
    samples: int,
    device: torch.device | str,
    repeats: int = 3,
    warmup: int = 1,
) -> SamplingTimes:
    """Time `sample(samples)`, from noise to crystals, `repeats` times after `warmup` warm-up rounds.

    Work that is still under way on an accelerator when `sample` returns is waited for. Raises `ConfigError` for counts
    that are not positive.
    """
    for name, value in (("samples", samples), ("repeats", repeats)):
        if value < 1:
            raise ConfigError(f"speed.{name}={value}: expected 1 or more")
    where = torch.device(device)
    for _ in range(warmup):
        sample(samples)
    seconds = []
    for _ in range(repeats):
        _wait(where)
        start = time.perf_counter()
        sample(samples)
        _wait(where)
        seconds.append(time.perf_counter() - start)
    return SamplingTimes(samples, seconds, str(where))


def speed_section(times: SamplingTimes | None) -> Section:
    """Return samples per second and the machine; skipped where there are no times, as crystals came from files."""
    if times is None:
        return Section(name="speed", title="Speed", skipped=NO_SAMPLER)
    machine = describe_machine(times.device)
    on = f"on {machine['accelerator'] or machine['processor']}"
    return Section(
        name="speed",
        title="Speed",
        metrics={
            "samples_per_second": Metric(
                times.samples_per_second,
                f"crystals sampled per second {on}: median of {len(times.seconds)} rounds of {times.samples}, from "
                "noise to crystals in memory, after a warm-up round; no files are written",
                HERE, "1/s", "higher", times.samples,
            ),
            "seconds_per_1000": Metric(
                1000 / times.samples_per_second, f"seconds for 1000 crystals {on}, from samples_per_second",
                HERE, "s", "lower", times.samples,
            ),
        },
        settings={"rounds_s": [round(value, 4) for value in times.seconds], "machine": machine},
    )  # fmt: skip


def describe_machine(device: torch.device | str = "cpu") -> dict[str, object]:
    """Return what determines speed: processor, cores this process may use, threads, memory, accelerator, system."""
    where = torch.device(device)
    accelerator = torch.cuda.get_device_name(where) if where.type == "cuda" else ""
    if where.type not in {"cpu", "cuda"}:
        accelerator = where.type
    return {
        "processor": _processor(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory(),
        "accelerator": accelerator,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
