"""Encoder and decoder families side by side: parameters, time of a training step, and match rate for equal budgets.

    python benchmarks/families.py
    python benchmarks/families.py --experiment mp_20/vae_dng_small --budget 1200 --crystals 1000

Every pair is built from the experiment with `vae_module/encoder=…` and `vae_module/decoder=…`, so at the experiment's
widths. A step is loss, gradient and optimiser on a batch of the training split, on the CPU; its time is the median over
rounds in which the pairs take turns. CPU seconds add up all threads, and mean the same on a busy machine. Given a
`--budget`, each pair is then trained for as many steps as fit into that many CPU seconds at its own speed, with a
schedule over these, and reconstructs crystals of the validation split. Further arguments are Hydra overrides.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
import hydra  # noqa: E402
import lightning as L  # noqa: E402
import torch  # noqa: E402
from hydra.core.global_hydra import GlobalHydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

import src  # noqa: E402, F401  # the package of this checkout
from crystalvae.build import build  # noqa: E402
from crystalvae.data.batch import CrystalBatch  # noqa: E402
from crystalvae.data.datamodule import CrystalDataModule  # noqa: E402
from crystalvae.evaluation.matching.section import reconstruction_metrics  # noqa: E402
from crystalvae.evaluation.parallel.runner import Runner  # noqa: E402
from crystalvae.vae_module.vae_module import VAEModule  # noqa: E402

PAIRS = (
    "transformer:transformer cgcnn:transformer cgcnn_residual:transformer mlp:transformer gru:transformer "
    "transformer:mlp transformer:gru mlp:mlp gru:gru"
)


@dataclass
class Result:
    """What was measured of one pair; the last five only with a budget."""

    encoder: str
    decoder: str
    encoder_parameters: int
    decoder_parameters: int
    seconds_per_1000: float
    cpu_seconds_per_1000: float
    steps: int | None = None
    training_seconds: float | None = None
    match_rate: float | None = None
    rmse: float | None = None
    element_accuracy: float | None = None


def main() -> None:
    """Measure, and print a table as Markdown."""
    options, overrides = arguments()
    pairs = [tuple(pair.split(":")) for pair in options.pairs.replace(",", " ").split()]
    configs = {pair: compose(options.experiment, pair, overrides) for pair in pairs}
    L.seed_everything(options.seed, verbose=False)
    datamodule: CrystalDataModule = build("data", configs[pairs[0]].data)
    datamodule.prepare_data()
    modules: dict[Any, VAEModule] = {pair: build("vae_module", config.vae_module) for pair, config in configs.items()}
    times = time_steps(modules, datamodule, rounds=options.rounds)
    results = {}
    for pair, module in modules.items():
        parts = (module.vae.encoder, module.vae.decoder)
        counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
        results[pair] = Result(*pair, *counts, *(1000 * value / datamodule.batch_size for value in times[pair]))
    print_table(results.values())
    if options.budget is not None:
        for pair, result in results.items():
            steps = max(1, int(options.budget / times[pair][1]))
            train(configs[pair], steps, result, crystals=options.crystals, seed=options.seed)
            print(json.dumps(asdict(result)), flush=True)
        print_table(results.values())
    if options.output is not None:
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "argv": sys.argv[1:]}
        content = {"machine": machine, "results": [asdict(result) for result in results.values()]}
        options.output.write_text(json.dumps(content, indent=2), encoding="utf-8")


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; what is not an option is an override."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="prototypes/vae_dng")
    parser.add_argument("--pairs", default=PAIRS, help="encoder:decoder, several with commas or spaces between them")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each pair, after two that do not count")
    parser.add_argument("--budget", type=float, help="CPU seconds of training for each pair; none: only times")
    parser.add_argument("--crystals", type=int, default=500, help="validation crystals to reconstruct")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    options, overrides = parser.parse_known_args()
    if options.rounds < 1 or (options.budget is not None and options.budget <= 0):
        parser.error("--rounds and --budget: expected positive numbers")
    if any(entry.startswith("-") for entry in overrides):
        parser.error(f"unknown: {' '.join(overrides)}; expected Hydra overrides such as vae_module.encoder.cutoff=5")
    return options, overrides


def compose(experiment: str, pair: tuple[str, ...], overrides: list[str]) -> DictConfig:
    """Return the training config of an experiment with another encoder and decoder."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        # The transformer is the one that the experiment has chosen.
        kinds = zip(("encoder", "decoder"), pair, strict=True)
        families = [f"vae_module/{kind}={name}" for kind, name in kinds if name != "transformer"]
        return hydra.compose("train_vae", [f"experiment={experiment}", "output_dir=unused", *families, *overrides])


def time_steps(modules: dict[Any, VAEModule], datamodule: CrystalDataModule, *, rounds: int) -> dict[Any, list[float]]:
    """Return the median seconds and CPU seconds of a training step of each module; they take turns on each batch."""
    optimizers = {pair: torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True) for pair, module in modules.items()}
    seconds: dict[Any, list[tuple[float, float]]] = {pair: [] for pair in modules}
    for batch in itertools.islice(full_batches(datamodule), rounds + 2):
        for pair, module in modules.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            loss = module.losses(batch, training=True)["loss"]
            optimizers[pair].zero_grad()
            loss.backward()
            optimizers[pair].step()
            seconds[pair].append((time.perf_counter() - start, time.process_time() - cpu_start))
    return {
        pair: [statistics.median(kind) for kind in zip(*values[2:], strict=True)] for pair, values in seconds.items()
    }


def full_batches(datamodule: CrystalDataModule) -> Iterator[Any]:
    """Yield batches of the full size, epoch after epoch."""
    loader = datamodule.train_dataloader()
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        found = [batch for batch in loader if batch.crystals.num_graphs == datamodule.batch_size]
        if not found:
            sys.exit(f"data.batch_size={datamodule.batch_size}: expected at most the size of the training split")
        yield from found


def train(config: DictConfig, steps: int, result: Result, *, crystals: int, seed: int) -> None:
    """Train one pair for some steps as the experiment would, and reconstruct validation crystals."""
    L.seed_everything(seed, verbose=False)
    module: VAEModule = build("vae_module", config.vae_module)
    datamodule: CrystalDataModule = build("data", config.data)
    trainer: L.Trainer = build(
        "trainer",
        config.trainer,
        precision="32-true",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[
            build("callbacks", config.callbacks[name])
            for name in ("ema", "progress_bar")
            if config.callbacks[name] is not None
        ],
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=datamodule)
    result.steps, result.training_seconds = trainer.global_step, time.perf_counter() - start
    everything = datamodule.dataset("val").crystals
    chosen = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))[:crystals]
    module.eval()
    reconstructed = [
        module.reconstruct_crystals(everything[part].to(module.device)).to("cpu") for part in chosen.split(512)
    ]
    metrics = reconstruction_metrics(everything[chosen], CrystalBatch.cat(reconstructed), runner=Runner()).metrics
    result.match_rate, result.rmse, result.element_accuracy = (
        metrics[name].value for name in ("match_rate", "rmse", "element_accuracy")
    )


def print_table(results: Any) -> None:
    """Print what was measured as Markdown; columns that nothing was measured for are left out."""
    trained = any(result.match_rate is not None for result in results)
    head = ["encoder", "decoder", "parameters (encoder + decoder)", "s per 1,000 crystals", "CPU s"]
    head += ["steps", "match rate", "RMSE"] if trained else []
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for result in results:
        parameters = f"{result.encoder_parameters / 1e6:.2f} + {result.decoder_parameters / 1e6:.2f} M"
        times = [f"{result.seconds_per_1000:.2f}", f"{result.cpu_seconds_per_1000:.2f}"]
        row = [f"`{result.encoder}`", f"`{result.decoder}`", parameters, *times]
        if result.match_rate is not None:
            rmse = "–" if result.rmse is None else f"{result.rmse:.4f}"
            row += [str(result.steps), f"{100 * result.match_rate:.1f} %", rmse]
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
