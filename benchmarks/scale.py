"""What a data set costs as it grows: memory and time for each crystal, from 10^4 to 2·10^6 crystals.

    python benchmarks/scale.py                                     # up to 2,000,000 crystals, minutes
    python benchmarks/scale.py --counts 10000 100000 --json scale.json

The data sets are synthetic: crystals of `prototypes`, in each of which every element is replaced by one of its group in
the periodic table and the cell rescaled by the covalent radii. They are written part by part and used memory-mapped,
each in a process of its own, which opens the file, takes the first batch, and then random batches of 256 for a while.
Memory is told apart: what belongs to the process (anonymous), and pages of the file, which the system takes back at
will; with `--limit-mib` the process is not allowed more than that of the first kind (on Linux: `RLIMIT_DATA`).
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
import torch

import src  # noqa: F401  # the package of this checkout
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.dataset_file import load_dataset, write_parts
from crystalvae.data.loader import CrystalLoader
from crystalvae.data.sources import PrototypeSource
from crystalvae.evaluation.speed import describe_machine

PART = 50_000
COUNTS = [10_000, 100_000, 500_000, 2_000_000]
BATCH_SIZE = 256


def main() -> None:
    """Measure each size in a process of its own, and print a table."""
    options = parsed()
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    folder = Path(tempfile.mkdtemp(prefix="crystalvae-scale-", dir=options.folder))
    try:
        rows = [grow_and_measure(count, folder, options) for count in options.counts]
    finally:
        shutil.rmtree(folder)
    if options.json:
        text = json.dumps({"machine": describe_machine(), "rows": rows}, indent=1)
        Path(options.json).write_text(text + "\n", encoding="utf-8")


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="crystals")
    parser.add_argument("--batches", type=int, default=400, help="random batches to take of each data set")
    parser.add_argument("--limit-mib", type=int, help="memory that the process may have beside the file's pages")
    parser.add_argument("--in-memory", action="store_true", help="copy the data set into memory, to compare")
    parser.add_argument("--folder", help="where the data sets are written, several hundred bytes per crystal")
    parser.add_argument("--json", help="a file for the results")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def grow_and_measure(
    count: int, folder: Path, options: argparse.Namespace, *, base: CrystalBatch | None = None
) -> dict[str, float]:
    """Write a data set, measure how it is used in a fresh process, and delete it."""
    path = folder / f"{count}.safetensors"
    start = time.perf_counter()
    write_parts(grow(count, base=base), path)
    written = time.perf_counter() - start
    command = [sys.executable, __file__, "--measure", str(path), "--batches", str(options.batches)]
    command += ["--limit-mib", str(options.limit_mib)] if options.limit_mib else []
    command += ["--in-memory"] if options.in_memory else []
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    row = {
        "crystals": count,
        "file_mib": round(path.stat().st_size / 2**20),
        "write_us_per_crystal": round(1e6 * written / count, 2),
        "writer_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        **found,
    }
    path.unlink()
    print(json.dumps(row), flush=True)
    return row


def measure(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Open a data set and take batches; what it costs beyond a process that has only imported everything."""
    torch.set_num_threads(1)
    if options.limit_mib:
        resource.setrlimit(resource.RLIMIT_DATA, (options.limit_mib << 20,) * 2)
    before = memory()["RssAnon"]
    start = time.perf_counter()
    dataset = load_dataset(path)
    crystals = (dataset.in_memory() if options.in_memory else dataset).crystals
    loader = iter(CrystalLoader(crystals, batch_size=BATCH_SIZE, shuffle=True))
    next(loader)
    first = time.perf_counter() - start
    peak, taken, start, cpu = 0, 0, time.perf_counter(), time.process_time()
    for number, batch in zip(range(options.batches), loader, strict=False):
        taken += len(batch.crystals)
        assert len(dataset.ids[int(batch.indices[0])])
        if number % 50 == 0:
            peak = max(peak, memory()["RssAnon"])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    after = memory()
    return {
        "first_batch_s": round(first, 3),
        "us_per_crystal": round(1e6 * seconds / max(taken, 1), 2),
        "cpu_us_per_crystal": round(1e6 * cpu / max(taken, 1), 2),
        "own_mib": round((max(peak, after["RssAnon"]) - before) / 2**10, 1),
        "own_bytes_per_crystal": round(1024 * (max(peak, after["RssAnon"]) - before) / len(dataset), 1),
        "file_pages_mib": round(after["RssFile"] / 2**10),
    }


def memory() -> dict[str, int]:
    """Return what Linux says about this process's memory, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines) if key[:3] == "Rss"}


def grow(count: int, seed: int = 0, *, base: CrystalBatch | None = None) -> Iterator[CrystalDataset]:
    """Yield parts of a synthetic data set: crystals of `base` with elements replaced within their groups.

    None: those of `prototypes`.
    """
    base = PrototypeSource().load("train").crystals if base is None else base
    generator = torch.Generator().manual_seed(seed)
    choices, radii = group_members()
    for start in range(0, count, PART):
        size = min(PART, count - start)
        crystals = base[torch.randint(len(base), (size,), generator=generator)]
        crystals = substituted(crystals, choices, radii, generator)
        yield CrystalDataset(crystals, [f"synthetic-{start + i:07d}" for i in range(size)])


def substituted(
    crystals: CrystalBatch, choices: torch.Tensor, radii: torch.Tensor, generator: torch.Generator
) -> CrystalBatch:
    """Replace each element of each crystal, everywhere alike, by one of its group; cells grow with the radii."""
    draws = torch.randint(choices.shape[1], (len(crystals), 100), generator=generator)
    types = choices[crystals.atom_types, draws[crystals.batch, crystals.atom_types]]
    sums = [
        torch.zeros(len(crystals)).index_add(0, crystals.batch, radii[kinds]) for kinds in (crystals.atom_types, types)
    ]
    return crystals.replace(atom_types=types, lattices=crystals.lattices * (sums[1] / sums[0])[:, None, None])


def group_members() -> tuple[torch.Tensor, torch.Tensor]:
    """Return for each element those of its group (100, 12), repeated to fill the row, and covalent radii in Å."""
    from ase.data import covalent_radii
    from pymatgen.core import Element

    elements = [Element.from_Z(z) for z in range(1, 84) if not Element.from_Z(z).is_noble_gas]
    choices = torch.arange(100)[:, None].repeat(1, 12)
    for element in elements:
        group = [other.Z for other in elements if other.group == element.group]
        choices[element.Z] = torch.tensor([group[i % len(group)] for i in range(12)])
    return choices, torch.from_numpy(covalent_radii[:100]).float()


if __name__ == "__main__":
    main()
