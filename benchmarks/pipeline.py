"""Everything beside the training step, against the plain way in the same run: reading, sampling to files, matching.

    python benchmarks/pipeline.py                                # all rows at full size: some ten minutes on two cores
    python benchmarks/pipeline.py --rows read first_batch write --csv-rows 2000 --samples 2000 --json pipeline.json

The plain way is timed on some of the same crystals and scaled to all. Floors: bytes over the machine's measured
bandwidth, and operations over its measured rate of matrix products.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
import torch  # noqa: E402
from pymatgen.io.cif import CifWriter  # noqa: E402

import src  # noqa: E402, F401  # the package of this checkout
from benchmarks.machine import bandwidth, matrix_rate, once  # noqa: E402
from benchmarks.reference import parse_cif  # noqa: E402
from benchmarks.training import LATENT_DIM, Row, as_table, load_crystals, make_module  # noqa: E402
from crystalvae.data.batch import CrystalBatch  # noqa: E402
from crystalvae.data.datamodule import CrystalDataModule  # noqa: E402
from crystalvae.data.readers import read_crystals  # noqa: E402
from crystalvae.data.sources import MP20  # noqa: E402
from crystalvae.data.writers import write_crystals  # noqa: E402
from crystalvae.evaluation.matching.pairs import match_pairs  # noqa: E402
from crystalvae.evaluation.parallel.runner import Runner  # noqa: E402
from crystalvae.evaluation.speed import describe_machine  # noqa: E402
from crystalvae.evaluation.validity.structure import describe  # noqa: E402


def main() -> None:
    """Measure the rows asked for, print a table, and keep it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--json", help="a file for the results")
    options = parser.parse_args()
    rows = [ROWS[name](options) for name in options.rows]
    print(as_table(rows))
    if options.json:
        text = json.dumps({"machine": describe_machine(), "rows": rows}, indent=1)
        Path(options.json).write_text(text + "\n", encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark asks for."""
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--data", choices=["mp_20", "prototypes"], default="mp_20", help="of the crystals to match")
    parser.add_argument("--data-dir", default=os.environ.get("CRYSTALVAE_MP20_DIR"), help="folder of MP-20's CSVs")
    parser.add_argument("--csv-rows", type=int, default=9047, help="rows of val.csv to read")
    parser.add_argument("--samples", type=int, default=10_000, help="CIF files to write")
    parser.add_argument("--pairs", type=int, default=9047, help="crystals to match with a reconstruction")
    parser.add_argument("--plain", type=int, default=100, help="crystals that the plain way is timed on")
    parser.add_argument("--jobs", type=int, default=2, help="processes for matching")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a busy machine")


def read(options: argparse.Namespace) -> Row:
    """CSV to tensors: gemmi, spglib and flat tensors, against pymatgen crystal by crystal."""
    source = Path(options.data_dir or ".") / "val.csv"
    with source.open(encoding="utf-8", newline="") as file:
        lines = [row for row, _ in zip(csv.reader(file), range(options.csv_rows + 1), strict=False)]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "val.csv"
        with table.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(lines)
        read_crystals(table, max_atoms=20, niggli=True, unique_ids=True)  # imports, caches of the libraries
        wall, cpu, _ = once(lambda: read_crystals(table, max_atoms=20, niggli=True, unique_ids=True))
        size = table.stat().st_size
    texts = [row[lines[0].index("cif")] for row in lines[1 : options.plain + 1]]
    parse_cif(texts[0])
    slow_wall, slow_cpu, _ = once(lambda: [parse_cif(text) for text in texts])
    scale = (len(lines) - 1) / len(texts)
    return compared(
        f"CSV to tensors, {len(lines) - 1} crystals", (wall, cpu), (slow_wall * scale, slow_cpu * scale), options,
        floor=size / bandwidth(clock=options.clock),
    )  # fmt: skip


def first_batch(options: argparse.Namespace) -> Row:
    """Cached data set to first batch, in a process that has imported everything."""
    source = MP20(data_dir=options.data_dir)
    source.load("train")

    def work() -> CrystalDataModule:
        module = CrystalDataModule(source=MP20(data_dir=options.data_dir), batch_size=256)
        next(iter(module.train_dataloader()))
        return module

    wall, cpu, module = once(work)
    assert isinstance(module, CrystalDataModule)
    tables = source.path("train").stat().st_size  # its hash is the cache's key
    size = module.dataset("train").crystals.num_bytes + tables
    return compared(
        "cached MP-20 to first batch", (wall, cpu), None, options, floor=size / bandwidth(clock=options.clock)
    )


def write(options: argparse.Namespace) -> Row:
    """Latents to CIF files, in batches and with the package's writer, against one by one and pymatgen's."""
    module, generator = make_module(128, 4).eval(), torch.Generator().manual_seed(0)
    counts = load_crystals(options).num_atoms
    counts = counts[torch.randint(len(counts), (options.samples,), generator=generator)]
    template = CrystalBatch.empty(counts)
    latents = torch.randn(template.num_nodes, LATENT_DIM, generator=generator)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():

        def ours() -> None:
            parts = []
            for rows, values in zip(torch.arange(len(template)).split(500), split(latents, counts, 500), strict=True):
                part = template[rows]
                parts.append(module.vae.to_crystals(module.vae.decode(values, part), part))
            crystals = CrystalBatch.cat(parts)
            write_crystals(crystals, Path(folder) / "ours", table=describe(crystals))

        def plain() -> None:
            (Path(folder) / "plain").mkdir()
            for i, values in enumerate(split(latents, counts[: options.plain], 1)):
                one = template[i]
                (structure,) = module.vae.to_crystals(module.vae.decode(values, one), one).to_structure()
                CifWriter(structure).write_file(Path(folder) / "plain" / f"{i}.cif")

        wall, cpu, _ = once(ours)
        slow_wall, slow_cpu, _ = once(plain)
        size = sum(path.stat().st_size for path in (Path(folder) / "ours").iterdir())
    scale = options.samples / options.plain
    pairs = float(counts.double().square().sum()) / template.num_nodes
    flops = template.num_nodes * 4 * (24 * 128**2 + 4 * 128 * pairs)
    floor = flops / matrix_rate(torch.float32, clock=options.clock) + size / bandwidth(clock=options.clock)
    return compared(
        f"z to {options.samples} CIF files", (wall, cpu), (slow_wall * scale, slow_cpu * scale), options, floor=floor
    )


def match(options: argparse.Namespace) -> Row:
    """Matching of reconstructions in several processes against one: the same results."""
    targets = MP20(data_dir=options.data_dir).load("val").crystals[: options.pairs]
    generator = torch.Generator().manual_seed(0)
    shift = 0.02 * torch.randn(targets.frac_coords.shape, generator=generator)
    pairs = targets.to_arrays(), targets.replace(frac_coords=targets.frac_coords + shift).to_arrays()
    several = Runner(n_jobs=options.jobs, progress=False)
    match_pairs(pairs[0][:64], pairs[1][:64], runner=several)  # starts the worker processes
    start = time.perf_counter()
    many = match_pairs(*pairs, runner=several)
    middle = time.perf_counter()
    one = match_pairs(*pairs, runner=Runner(n_jobs=1, progress=False))
    seconds, plain = middle - start, time.perf_counter() - middle
    assert many == one, "several processes gave other results"
    row = compared(
        f"matching of {len(targets)} reconstructions, {options.jobs} processes", (seconds, seconds), (plain, plain),
        options, floor=plain / min(options.jobs, os.cpu_count() or 1),
    )  # fmt: skip
    return {**row, "clock": "wall", "identical": True}


def compared(
    what: str,
    ours: tuple[float, float],
    plain: tuple[float, float] | None,
    options: argparse.Namespace,
    *,
    floor: float,
) -> Row:
    """Return both (wall, CPU) times, the floor, and how many times longer the plain way takes."""
    clock = 0 if options.clock == "wall" else 1
    row: Row = {
        "what": what,
        "seconds": round(ours[clock], 3),
        "floor_seconds": round(floor, 4),
        "clock": options.clock,
    }
    if plain is not None:
        row |= {"plain_seconds": round(plain[clock], 2), "ratio": round(plain[clock] / ours[clock], 2)}
    return row


def split(latents: torch.Tensor, counts: torch.Tensor, crystals: int) -> list[torch.Tensor]:
    """Return the latents of each so many crystals."""
    sizes = [int(part.sum()) for part in counts.split(crystals)]
    return list(latents[: sum(sizes)].split(sizes))


ROWS = {"read": read, "first_batch": first_batch, "write": write, "match": match}

if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="No Pauling electronegativity")
    main()
