"""How quick: a training step against the plain reference, the flow's step, sampling; memory, a profile, and a plan."""

from __future__ import annotations

import argparse
import gzip
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import training
from benchmarks.box.sizes import Sizes
from benchmarks.box.store import Budget, Row, Store
from benchmarks.machine import peak_mib, take_turns
from crystalvae.commands.train import compile_layers
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.loader import CrystalLoader
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.evaluation.speed import time_sampling
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.prior_module.replay import replayed

PLANS = (10, 30, 45)
"""Minutes for which a plan is made."""
SHARES = {"sweep": 0.15, "vae": 0.25, "prior": 0.45, "evaluation": 0.15}
"""Of the time of the step `quality`."""


def run(store: Store, budget: Budget, sizes: Sizes, *, device: str, data: list[str]) -> None:
    """Measure what has not been measured in an earlier job, as far as the time goes."""
    options = step_options(sizes, device, data)
    crystals = training.load_crystals(options)
    for size in sizes.steps:
        work = partial(training.measure, crystals, *shape(size), options)
        store.measure(f"training step {size}", work, budget, seconds=60 if device != "cpu" else 1)
    for size in sizes.prior:
        work = partial(prior_rows, crystals, size, sizes, device)
        store.measure(f"flow step {size}", work, budget, seconds=15 if device != "cpu" else 1)
        for count, how in itertools.product(sizes.sampled, ways_to_sample(device)):
            work = partial(sampling_rows, crystals, size, count, how, device)
            store.measure(
                f"sampling {size}, {count} at once, {how}", work, budget, seconds=20 if device != "cpu" else 1
            )
    for size in sizes.steps:
        work = partial(keep_profile, store, crystals, size, sizes.batch_size, device)
        store.measure(f"profile {size}", work, budget, seconds=20 if device != "cpu" else 1)
    rows = store.rows()
    if any(row["what"].startswith("flow step") for row in rows):
        store.found["plan"] = plan(rows, len(crystals))
        store.write()


def step_options(sizes: Sizes, device: str, data: list[str], *more: str) -> argparse.Namespace:
    """Return what `benchmarks/training.py` would be told on the command line."""
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    batches = ["--batch-size", str(sizes.batch_size), "--best-batch", *map(str, sizes.best_batch)]
    rounds = [] if device.startswith("cuda") else ["--rounds", "2"]
    return parser.parse_args(["--device", device, *batches, *rounds, *data, *more])


def shape(size: str) -> tuple[int, int]:
    """Return width and layers of "128x4"."""
    width, layers = map(int, size.split("x"))
    return width, layers


# ---- the flow --------------------------------------------------------------------------------------------------------


def make_prior(size: str, crystals: CrystalBatch) -> LatentPrior:
    """Return a flow of that size with fresh weights over a VAE of four layers of 128, as wide as mp20-small's."""
    width, layers = shape(size)
    vae = training.make_module(min(width, 128), 4, atom_type_predict=False)
    flow = {"d_model": width, "nhead": max(1, width // 64), "num_layers": layers}
    composition = {"d_model": min(width, 256), "nhead": max(1, min(width, 256) // 64), "num_layers": 4, "max_atoms": 64}
    prior = {"_target_": "crystalvae.prior_module.latent_flow.LatentFlow", **flow, "composition": composition}
    module = LatentPrior(vae={**vae.config, "latent_dim": 16}, prior=prior)
    counts = crystals.num_atoms.unique(return_counts=True)
    module.vae_module.statistics = {"num_atoms": dict(zip(*(entry.tolist() for entry in counts), strict=True))}
    return module


def prior_rows(crystals: CrystalBatch, size: str, sizes: Sizes, device: str) -> list[Row]:
    """Time a training step of the flow."""
    module = make_prior(size, crystals).to(device).train()
    learning = [parameter for parameter in module.prior.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=True)
    batches = endless(crystals, sizes.batch_size, device)

    def step() -> None:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            loss = module.losses(next(batches), training=True)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, training.CLIP)
        optimizer.step()

    seconds = take_turns({"": step}, rounds=3 if device == "cpu" else 12, device=device)[""].median()
    row = {"what": f"flow step {size}", "how": "ours, bf16", "seconds": round(seconds, 5)}
    return [
        {**row, "seconds_per_1000": round(1000 * seconds / sizes.batch_size, 5), "peak_mib": peak_mib(step, device)}
    ]


def endless(crystals: CrystalBatch, batch_size: int, device: str) -> Iterator[TrainingBatch]:
    """Yield full batches, epoch after epoch, of crystals that live on the device."""
    loader = CrystalLoader(crystals.to(device), batch_size=batch_size, shuffle=True)
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        yield from (batch for batch in loader if batch.crystals.num_graphs == batch_size)


def ways_to_sample(device: str) -> list[str]:
    """Return how sampling is tried: what starts kernels more cheaply only matters, and only works, on a GPU."""
    return ["plain", "tf32", "compiled", "cuda graphs"] if device.startswith("cuda") else ["plain"]


def sampling_rows(crystals: CrystalBatch, size: str, count: int, how: str, device: str) -> list[Row]:
    """Time sampling, from noise to crystals, of one batch of `count`."""
    module = make_prior(size, crystals).to(device).eval()
    if how == "compiled":
        compile_layers(module)
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    if how == "cuda graphs":
        context = partial(replayed, module.prior.denoiser)

    def sample(number: int) -> None:
        with context():
            module.sample(number, generator=torch.Generator().manual_seed(0), batch_size=number)

    timed = training.with_tf32(partial(time_sampling, sample, samples=count, device=device), how == "tf32")()
    per_1000 = round(1000 / timed.samples_per_second, 4)
    row = {"what": f"sampling {size}", "how": how, "at_once": count, "seconds_per_1000": per_1000}
    return [{**row, "peak_mib": peak_mib(partial(sample, count), device)}]


# ---- where the time goes ---------------------------------------------------------------------------------------------


def keep_profile(store: Store, crystals: CrystalBatch, size: str, batch_size: int, device: str) -> list[Row]:
    """Keep PyTorch's profile of three steps, as a table and as a trace for chrome://tracing."""
    module = training.make_module(*shape(size))
    step = training.our_step(module, crystals, batch_size, torch.device(device), torch.bfloat16)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.startswith("cuda") else [])
    step()
    with profile(activities=activities) as result:
        for _ in range(3):
            step()
    by = "self_cuda_time_total" if device.startswith("cuda") else "self_cpu_time_total"
    table, trace = (store.folder / f"profile_{size}.{ending}" for ending in ("txt", "json"))
    table.write_text(result.key_averages().table(sort_by=by, row_limit=40), encoding="utf-8")
    result.export_chrome_trace(str(trace))
    with gzip.open(trace.with_suffix(".json.gz"), "wb") as packed:
        packed.write(trace.read_bytes())
    trace.unlink()
    return [{"what": f"profile {size}", "how": "ours, bf16", "file": table.name}]


# ---- a plan ----------------------------------------------------------------------------------------------------------


def plan(rows: list[Row], crystals: int) -> list[Row]:
    """Return for some numbers of minutes how many epochs of VAE and flow fit, at the speed that was measured.

    The largest sizes count, in bfloat16 and the batch that was quickest; a quarter is set aside for validation.
    """
    vae = quickest([row for row in rows if row["what"].startswith("training step") and "bf16" in row["how"]])
    flow = quickest([row for row in rows if row["what"].startswith("flow step")])
    return [
        {
            "what": f"plan for {minutes} minutes",
            "how": ", ".join(f"{part} {60 * minutes * share:.0f} s" for part, share in SHARES.items()),
            "vae": vae["what"].removeprefix("training step, "),
            "vae_epochs": epochs_within(60 * minutes * SHARES["vae"], vae["seconds_per_1000"], crystals),
            "flow": flow["what"].removeprefix("flow step "),
            "flow_epochs": epochs_within(60 * minutes * SHARES["prior"], flow["seconds_per_1000"], crystals),
        }
        for minutes in PLANS
    ]


def quickest(rows: list[Row]) -> Row:
    """Return the quickest of the rows of what was measured last, which is the largest size."""
    return min((row for row in rows if row["what"] == rows[-1]["what"]), key=lambda row: row["seconds_per_1000"])


def epochs_within(seconds: float, seconds_per_1000: float, crystals: int, *, training_share: float = 0.75) -> int:
    """Return how many epochs fit, at least one, with a share of the time for training itself."""
    return max(1, math.floor(training_share * seconds / (seconds_per_1000 * crystals / 1000)))
