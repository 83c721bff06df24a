"""Measure how well a checkpoint reconstructs the crystals of a split."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from src.commands import arguments
from src.commands.cli import config_dir
from src.commands.device import choose_device
from src.data.batch import CrystalBatch
from src.data.datamodule import CrystalDataModule
from src.data.dataset import CrystalDataset
from src.data.sources import SPLITS
from src.errors import ConfigError
from src.evaluation.reconstruction import format_table, reconstruction_metrics, write_report
from src.vae_module.build import build
from src.vae_module.checkpoint import package_versions
from src.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> str:
    """Reconstruct with the posterior mean, measure, print a table and write a JSON; returns what to tell the user."""
    if config.split not in SPLITS:
        raise ConfigError(f"split: got {config.split!r}; expected one of {', '.join(SPLITS)}")
    ckpt_path = arguments.path("ckpt_path", config.ckpt_path)
    count = None if config.num_crystals is None else arguments.positive("num_crystals", config.num_crystals)
    seed = arguments.whole("seed", config.seed)
    batch_size = arguments.positive("batch_size", config.batch_size)
    n_jobs = -1 if config.n_jobs == -1 else arguments.positive("n_jobs", config.n_jobs)
    device = choose_device(config.device)
    module = VAEModule.load_from_checkpoint(ckpt_path, map_location=device)
    dataset = choose_crystals(_datamodule(config, module).dataset(config.split), count, seed)
    predictions = reconstruct_all(module, dataset.crystals, batch_size)
    report = reconstruction_metrics(dataset.crystals, predictions, n_jobs=n_jobs)
    Console(soft_wrap=False).print(format_table(report))
    output = Path(config.output or ckpt_path.with_name(f"evaluation-{config.split}.json")).expanduser()
    extra = {
        "ckpt_path": str(config.ckpt_path),
        "dataset": module.statistics.get("dataset") if config.get("data") is None else config.data.source.name,
        "split": config.split,
        "num_crystals": len(dataset),
        "seed": seed,
        "latent": "posterior mean",
        "package_versions": package_versions(),
    }
    write_report(report, output, ids=dataset.ids, extra=extra)
    worst = ", ".join(dataset.ids[index] for index in report.worst(5))
    return f"worst reconstructed: {worst}\nall numbers, their definitions and every crystal's: {output.absolute()}"


def choose_crystals(dataset: CrystalDataset, count: int | None, seed: int) -> CrystalDataset:
    """Return a seeded choice of `count` crystals in the data set's order, or all where that is null."""
    if count is None or count >= len(dataset):
        return dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return dataset.subset(order[:count].sort().values)


def reconstruct_all(module: VAEModule, crystals: CrystalBatch, batch_size: int) -> CrystalBatch:
    """Reconstruct crystals with the posterior mean, `batch_size` at a time, on the module's device."""
    starts = range(0, len(crystals), batch_size)
    console = Console(stderr=True)
    return CrystalBatch.cat(
        module.reconstruct_crystals(crystals[start : start + batch_size].to(module.device)).to("cpu")
        for start in track(starts, description="reconstructing", console=console, transient=True)
    )


def _datamodule(config: DictConfig, module: VAEModule) -> CrystalDataModule:
    if config.get("data") is not None:
        return build("data", config.data)
    name = str(module.statistics.get("dataset"))
    path = config_dir() / "data" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(entry.stem for entry in path.parent.glob("*.yaml")))
        raise ConfigError(f"the checkpoint was trained on {name!r}; say which data to use, data=NAME, one of {known}")
    data = OmegaConf.create({"data": OmegaConf.load(path), "seed": config.seed})
    OmegaConf.resolve(data)
    return build("data", data.data)
