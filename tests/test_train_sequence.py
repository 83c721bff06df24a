"""`crystalvae train-sequence`: from files to a checkpoint, resumed, started from weights, and from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from crystalvae.commands.train_sequence import train_model
from crystalvae.errors import ConfigError, CrystalVAEError, DataError
from crystalvae.sequence_module.sequence_module import SequenceModule
from tests.sequences import recordings, swinging

MODEL = {
    "window": 8,
    "future_steps": 4,
    "latent_dim": 4,
    "hidden_size": 12,
    "hidden_size_reconstruction": 8,
    "hidden_size_prediction": 8,
}

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice to developers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five trajectories as extended XYZ."""
    place = tmp_path_factory.mktemp("trajectories")
    for trajectory in recordings(5).load():
        trajectory.write_extxyz(place / f"{trajectory.id}.extxyz")
    return place


def overrides(folder: Path, output: Path, *more: str) -> list[str]:
    return [
        f"data.source.path={folder}",
        "data.val_fraction=0.2",
        "data.test_fraction=0.2",
        "data.batch_size=64",
        "sequence_module/features=geometry",
        *(f"sequence_module.model.{key}={value}" for key, value in MODEL.items()),
        "trainer.max_epochs=8",
        "trainer.accelerator=cpu",
        "logger=csv",
        "callbacks.progress_bar=null",
        "callbacks.snapshots.every_n_epochs=4",
        f"output_dir={output}",
        *more,
    ]


def test_training_from_python_leaves_a_run_folder_and_returns_the_best_model(folder: Path, tmp_path: Path):
    module = train_model(overrides(folder, tmp_path / "run"))
    checkpoints = tmp_path / "run" / "checkpoints"
    assert {path.relative_to(checkpoints).as_posix() for path in checkpoints.rglob("*.ckpt")} == {
        "best.ckpt",
        "last.ckpt",
        "snapshots/epoch_0003.ckpt",
        "snapshots/epoch_0007.ckpt",
    }
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (run["status"], run["epochs"]) == ("finished", 8)
    assert run["metrics"]["train/annealing_weight"] == 1.0
    assert torch.load(checkpoints / "best.ckpt", weights_only=True)["epoch"] >= 6
    assert module.statistics["dataset"] == "trajectories"
    assert module.config["atom_types"] == [55, 17]
    best = SequenceModule.load_from_checkpoint(checkpoints / "best.ckpt")
    given = [swinging("new")]
    torch.testing.assert_close(module.latents(module.frames(given)), best.latents(best.frames(given)))

    again = overrides(folder, tmp_path / "run", f"resume_from={tmp_path / 'run'}", "trainer.max_epochs=9")
    train_model(again)
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (run["status"], run["epochs"]) == ("finished", 9)
    other = overrides(folder, tmp_path / "run", f"resume_from={tmp_path / 'run'}", "sequence_module.model.latent_dim=5")
    with pytest.raises(ConfigError, match=r"its sequence_module\.model is"):
        train_model(other)

    started = overrides(folder, tmp_path / "more", f"ckpt_path={checkpoints / 'best.ckpt'}", "trainer.max_epochs=1")
    finer = train_model(started)
    assert finer.annealing is None
    assert (tmp_path / "more" / "checkpoints" / "best.ckpt").is_file()  # annealed from the start
    moved = [float((one - other).abs().max()) for one, other in zip(finer.parameters(), best.parameters(), strict=True)]
    assert 0 < max(moved) < 0.05
    with pytest.raises(ConfigError, match="exclude each other"):
        train_model([*started, f"resume_from={tmp_path / 'run'}"])


def test_features_may_come_from_a_bundled_vae(folder: Path, tmp_path: Path):
    given = overrides(folder, tmp_path / "run", "trainer.max_epochs=1")
    module = train_model([entry.replace("=geometry", "=embedding") for entry in given])
    assert module.model.num_features == 32
    assert "vae_ckpt_path" not in module.config["features"]


def test_trajectories_that_are_too_short_are_refused(tmp_path: Path):
    (tmp_path / "short").mkdir()
    swinging("brief", frames=9).write_extxyz(tmp_path / "short" / "brief.extxyz")
    message = "the train part has no window of 12 frames: there are 1 trajectories of 9 to 9 frames"
    with pytest.raises(CrystalVAEError, match=message):
        train_model(overrides(tmp_path / "short", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_path_is_asked_for(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data\.source\.path: got null"):
        train_model([f"output_dir={tmp_path / 'run'}"])
    with pytest.raises(DataError, match="no such file or folder"):
        train_model([f"output_dir={tmp_path / 'run'}", "data.source.path=/nowhere/at/all"])


def test_a_config_is_as_good_as_overrides(folder: Path, tmp_path: Path):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = compose("train_sequence", overrides=overrides(folder, tmp_path / "run", "trainer.max_epochs=1"))
    before = OmegaConf.to_yaml(config)
    module = train_model(config)  # no best model in one epoch: the last
    assert module.built
    assert OmegaConf.to_yaml(config) == before


@pytest.mark.parametrize("name", ["geometry", "latents", "embedding"])
def test_configs_of_features_name_what_there_is(name: str):
    from hydra import compose, initialize_config_dir
    from hydra.utils import get_class

    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = compose("train_sequence", overrides=[f"sequence_module/features={name}"])
    assert get_class(config.sequence_module.features._target_).__name__.lower().startswith(name.rstrip("s"))


def test_defaults_are_the_published_ones():
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = compose("train_sequence").sequence_module
    model = config.model
    assert (model.window, model.future_steps, model.latent_dim, model.hidden_size) == (30, 15, 30, 256)
    assert (config.annealing.kl_start, config.annealing.annealtime) == (2, 4)
    assert (config.loss.clusters, config.loss.cluster_weight) == (30, 0.1)
    assert (config.optimizer._target_, config.optimizer.lr, config.optimizer.amsgrad) == (
        "torch.optim.Adam",
        5e-4,
        True,
    )
