"""Each bottleneck trained by the command's own code on prototypes: learns, saves, resumes, loads alone, samples."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import hydra
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from crystalvae.commands.train import train
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.bottlenecks.hierarchical import HierarchicalBottleneck
from crystalvae.vae_module.bottlenecks.vq import VQBottleneck
from tests.samples import assert_same_crystals, random_crystals

pytestmark = pytest.mark.filterwarnings("ignore")  # what Lightning says of tiny runs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TINY = [
    "data.source.num_crystals=200",
    "data.source.max_atoms=4",
    "data.batch_size=32",
    *(f"vae_module.{part}.{k}" for part in ("encoder", "decoder") for k in ("d_model=16", "nhead=2", "num_layers=1")),
    "vae_module.optimizer.lr=0.01",
    "vae_module.scheduler.warmup_steps=2",
    "callbacks.ema.decay=0.9",
    "callbacks.progress_bar=null",
    "logger=csv",
    "trainer.accelerator=cpu",
    "trainer.enable_model_summary=false",
    "trainer.log_every_n_steps=1",
]
RUNS = {
    "vq": ["experiment=prototypes/vae_vq", "vae_module.bottleneck.codebook_size=32"],
    "vq by gradients": ["experiment=prototypes/vae_vq", "vae_module.bottleneck.ema=false"],
    "hierarchical": ["experiment=prototypes/vae_hierarchical", "vae_module.bottleneck.width=32"],
    "three levels": ["experiment=prototypes/vae_hierarchical", "vae_module.bottleneck.depth=3"],
}


def run(*options: str) -> None:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"), torch.random.fork_rng():
        train(hydra.compose("train_vae", [*TINY, *options]))


def logged(folder: Path, name: str) -> list[float]:
    frames = [pd.read_csv(path) for path in sorted(folder.glob("csv/version_*/metrics.csv"))]
    return [value for frame in frames if name in frame for value in frame[name].dropna().tolist()]


@pytest.fixture(scope="module", params=RUNS.values(), ids=RUNS.keys())
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, list[str]]]:
    folder = tmp_path_factory.mktemp("run")
    cache = os.environ.get("CRYSTALVAE_CACHE_DIR") or str(tmp_path_factory.getbasetemp() / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRYSTALVAE_CACHE_DIR", cache)
        patch.setenv("PL_GLOBAL_SEED", "0")
        run(*request.param, f"output_dir={folder}", "trainer.max_epochs=5")
        yield folder, request.param


def test_it_learns_saves_loads_alone_samples_and_resumes(trained: tuple[Path, list[str]]) -> None:
    folder, options = trained
    losses = logged(folder, "train/recon_loss")
    assert len(losses) == 25
    assert all(math.isfinite(value) for value in losses)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    names = ("perplexity", "commitment_loss") if "vq" in options[0] else ("kl_loss", "kl_level_1", "kl_level_2")
    assert all(math.isfinite(value) for name in names for value in logged(folder, f"val/{name}"))
    assert all(len(logged(folder, f"val/{name}")) == 5 for name in names)

    module = VAEModule.load_from_checkpoint(folder / "checkpoints" / "best.ckpt", weights_only=True)
    bottleneck = module.vae.bottleneck
    assert isinstance(bottleneck, VQBottleneck if "vq" in options[0] else HierarchicalBottleneck)
    if isinstance(bottleneck, VQBottleneck):
        assert bool((bottleneck.codebooks.usage.sum(dim=-1) > 1).all())  # frequencies come with the checkpoint
    samples = [
        module.sample(CrystalBatch.empty([2, 3, 4]), generator=torch.Generator().manual_seed(seed)) for seed in (0, 0)
    ]
    assert_same_crystals(*samples, atol=0.0)
    assert bool(torch.isfinite(samples[0].lattices).all())
    assert len(module.reconstruct_crystals(random_crystals())) == 4

    run(*options, f"output_dir={folder}", f"resume_from={folder}", "trainer.max_epochs=6")
    assert json.loads((folder / "run.json").read_text())["epochs"] == 6
    assert len(logged(folder, "train/recon_loss")) == 30
    with pytest.raises(ConfigError, match=r"vae_module.bottleneck is .*repeat the options"):
        run("experiment=prototypes/vae_dng", f"output_dir={folder}", f"resume_from={folder}", "trainer.max_epochs=7")
