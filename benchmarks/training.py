"""How quick a training step is, against the published way (`reference.py`) in the same run.

    python benchmarks/training.py                              # 128 × (4 + 4) and 512 × (8 + 8), batch 256, on MP-20
    python benchmarks/training.py --sizes 128x4 --rounds 20 --profile --json step.json

A step is everything from the choice of 256 crystals to new weights: batch, augmentation, loss, gradient, clipping,
AdamW. The two take turns, each with its own batches of the same crystals; the result is the median. The floor is the
arithmetic of the step (three times the matrix products of the forward pass, for real atoms only) over the machine's
measured rate. On CUDA the reference runs with TF32 off and on, and ours in both precisions, compiled, and with larger
batches too; `mfu`, model FLOP utilisation, is that arithmetic over what the device's data sheet promises in the time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
import torch
from torch_geometric.loader import DataLoader

import src  # noqa: F401  # the package of this checkout
from benchmarks.machine import counted_flops, datasheet_rate, matrix_rate, peak_mib, take_turns
from benchmarks.reference import Reference, to_data_list
from crystalvae.commands.train import compile_layers
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.loader import CrystalLoader
from crystalvae.data.sources import MP20, PrototypeSource, TableSource
from crystalvae.evaluation.speed import describe_machine
from crystalvae.vae_module import VAEModule

Row = dict[str, object]
LATENT_DIM = 8
CLIP = 1.0


def main() -> None:
    """Time the steps, print a table, and keep it where asked."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = training_rows(options)
    print(as_table(rows))
    if options.json:
        text = json.dumps({"machine": describe_machine(options.device), "rows": rows}, indent=1)
        Path(options.json).write_text(text + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--json", help="a file for the results")
    return parser.parse_args()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark asks for."""
    parser.add_argument("--sizes", nargs="+", default=["128x4", "512x8"], help="width x layers of encoder and decoder")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, help="timed steps; by default 12 for narrow models, 3 for wide ones")
    parser.add_argument("--data", choices=["mp_20", "prototypes", "table"], default="mp_20")
    parser.add_argument("--data-dir", help="folder of the CSVs, for mp_20 else as the package finds them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of PyTorch, else its own choice")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a busy machine")
    parser.add_argument("--best-batch", type=int, nargs="*", default=[1024, 4096], help="also tried on a GPU")
    parser.add_argument("--profile", action="store_true", help="print where the time of a step goes")


def training_rows(options: argparse.Namespace) -> list[Row]:
    """Return one row for each size and each way of doing a step."""
    crystals = load_crystals(options)
    rows = []
    for size in options.sizes:
        d_model, layers = map(int, size.split("x"))
        rows += measure(crystals, d_model, layers, options)
    return rows


def load_crystals(options: argparse.Namespace) -> CrystalBatch:
    """Return the training crystals."""
    import os

    if options.data == "prototypes":
        return PrototypeSource().load("train").crystals
    if options.data == "table":
        return TableSource(name="table", data_dir=options.data_dir).load("train").crystals
    return MP20(data_dir=options.data_dir or os.environ.get("CRYSTALVAE_MP20_DIR")).load("train").crystals


def make_module(d_model: int, layers: int, **options: Any) -> VAEModule:
    """Return our VAE of that size: pre-norm transformers with d / 32 heads, 8 at most; `options` are its own."""
    size = {"d_model": d_model, "nhead": min(8, max(1, d_model // 32)), "num_layers": layers}
    torch.manual_seed(0)
    return VAEModule(
        encoder={"_target_": "crystalvae.vae_module.encoders.transformer.TransformerEncoder", **size},
        decoder={"_target_": "crystalvae.vae_module.decoders.transformer.TransformerDecoder", **size},
        latent_dim=LATENT_DIM,
        augmentation={"translate": True},
        **options,
    )


def measure(crystals: CrystalBatch, d_model: int, layers: int, options: argparse.Namespace) -> list[Row]:
    """Time a step of the reference and of ours, side by side."""
    device = torch.device(options.device)
    works = ways(make_module(d_model, layers), crystals, options.batch_size, device)
    rounds = options.rounds or (3 if device.type == "cpu" and d_model >= 256 else 12)
    warmup = 1 if device.type == "cpu" else 5
    times = take_turns(works, rounds=rounds, warmup=warmup, device=device)
    medians = {name: entry.median(options.clock) for name, entry in times.items()}
    more = {}
    for name, work in works.items():
        more[name] = {"counted_gflop": round(counted_flops(work) / 1e9, 1), "peak_mib": peak_mib(work, device)}
    for batch_size in options.best_batch if device.type == "cuda" else []:
        name = f"ours, bf16, batch {batch_size}"
        work = our_step(make_module(d_model, layers), crystals, batch_size, device, torch.bfloat16)
        time = take_turns({"": work}, rounds=rounds, warmup=warmup, device=device)[""].median(options.clock)
        medians[name] = time * options.batch_size / batch_size
        more[name] = {"peak_mib": peak_mib(work, device)}
    if options.profile:
        for name in [name for name in works if name.startswith("ours")]:
            print_profile(f"{d_model} x ({layers} + {layers}), {name}", works[name])
    flops = step_flops(crystals, d_model, layers, options.batch_size)
    title = f"{d_model} x ({layers} + {layers})"
    return [{**describe(name, medians, flops, title, options), **more.get(name, {})} for name in medians]


def ways(
    module: VAEModule, crystals: CrystalBatch, batch_size: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Return the ways of doing a step by name."""
    half = our_step(module, crystals, batch_size, device, torch.bfloat16)
    plain = our_step(module, crystals, batch_size, device, None)
    published = reference_step(module, crystals, batch_size, device)
    if device.type != "cuda":
        return {"reference, float32": published, "ours, float32": plain, "ours, bf16": half}
    return {
        "reference, float32": with_tf32(published, False),
        "reference, tf32": with_tf32(published, True),
        "ours, tf32": with_tf32(plain, True),
        "ours, bf16": half,
        "ours, bf16, compiled": our_step(module, crystals, batch_size, device, torch.bfloat16, compiled=True),
    }


def describe(name: str, medians: dict[str, float], flops: float, size: str, options: argparse.Namespace) -> Row:
    """Return what was measured of one way: its time, the floor, and how many times longer the reference takes."""
    seconds, dtype = medians[name], torch.bfloat16 if "bf16" in name else torch.float32
    rate = with_tf32(lambda: matrix_rate(dtype, options.device, clock=options.clock), "tf32" in name)()
    row: Row = {
        "what": f"training step, {size}",
        "how": name,
        "seconds_per_1000": round(1000 * seconds / options.batch_size, 4),
        "seconds": round(seconds, 4),
        "floor_seconds": round(flops / rate, 4),
        "of_floor": round(flops / rate / seconds, 3),
        "matrix_gflops": round(rate / 1e9, 1),
        "clock": options.clock,
    }
    promised = datasheet_rate("tf32" if "tf32" in name else dtype, options.device)
    if promised is not None:
        row["mfu"] = round(flops / promised / seconds, 3)
    for base, other in medians.items():
        if base.startswith("reference") and not name.startswith("reference"):
            row["ratio" if base == "reference, float32" else "ratio_tf32"] = round(other / seconds, 2)
    return row


def reference_step(
    module: VAEModule, crystals: CrystalBatch, batch_size: int, device: torch.device
) -> Callable[[], object]:
    """Return a function that does one step of the reference: collation, padded batches, plain AdamW."""
    model = Reference.like(module).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    torch.manual_seed(0)
    loader = DataLoader(to_data_list(crystals), batch_size=batch_size, shuffle=True, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def step() -> None:
        loss = model.losses(next(batches).to(device))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


def our_step(
    module: VAEModule,
    crystals: CrystalBatch,
    batch_size: int,
    device: torch.device,
    autocast: torch.dtype | None,
    *,
    compiled: bool = False,
) -> Callable[[], object]:
    """Return a function that does one step of ours, as `train_vae` does it, in float32 or with autocast."""
    model = VAEModule(**module.config).to(device)
    model.load_state_dict(module.state_dict())
    if compiled:
        compile_layers(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    loader = CrystalLoader(crystals.to(device), batch_size=batch_size, shuffle=True)

    def full() -> Iterator[object]:
        for epoch in itertools.count():
            loader.set_epoch(epoch)
            yield from (batch for batch in loader if batch.crystals.num_graphs == batch_size)

    batches = full()

    def step() -> None:
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            loss = model.losses(next(batches), training=True)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


def with_tf32(work: Callable[[], Any], enabled: bool) -> Callable[[], Any]:
    """Return the same work with matrix products of a GPU in TF32 or not."""

    def wrapped() -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if enabled else "highest")
        try:
            return work()
        finally:
            torch.set_float32_matmul_precision(before)

    return wrapped


def step_flops(crystals: CrystalBatch, d_model: int, layers: int, batch_size: int) -> float:
    """Return the operations of an average step: three times the forward pass's matrix products, without padding."""
    counts = crystals.num_atoms.double()
    atoms, pairs = batch_size * float(counts.mean()), batch_size * float(counts.square().mean())
    linear = (
        24 * d_model**2 + 4 * d_model * pairs / atoms
    )  # of one layer, per atom: q, k, v, out, two of the MLP; scores
    ends = 2 * d_model * (48 + d_model + 3 * LATENT_DIM + 106)
    return 3 * atoms * (2 * layers * linear + ends)


def print_profile(title: str, step: Callable[[], object]) -> None:
    """Print which operations a step's own time goes to."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    step()
    with profile(activities=activities) as result:
        for _ in range(3):
            step()
    sort_by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(f"\n{title}, three steps\n{result.key_averages().table(sort_by=sort_by, row_limit=15)}")


def as_table(rows: list[Row]) -> str:
    """Return rows as a Markdown table."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys, ["---"] * len(keys), *([str(row.get(key, "")) for key in keys] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
