"""`crystalvae motifs`: from files to a report, each step once, resumed at any of them, and given up with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY

from crystalvae.commands.checked_config import checked
from crystalvae.commands.motifs import motifs
from crystalvae.data.trajectories import read_trajectories
from crystalvae.errors import ConfigError, OutputError
from crystalvae.sequence_module.motifs.storage import Segmentation
from tests.sequences import recordings, swinging
from tests.test_train_sequence import MODEL

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice to developers
STEPS = ["data", "features", "training", "segmentation", "statistics", "generation", "report"]


def config(folder: Path, *more: str) -> Any:
    from hydra import compose, initialize_config_dir

    given = [
        f"data.source.path={folder / 'recordings'}",
        "data.val_fraction=0.2",
        "data.test_fraction=0.2",
        "data.batch_size=64",
        "sequence_module/features=geometry",
        *(f"sequence_module.model.{key}={value}" for key, value in MODEL.items()),
        "sequence_module.model.last_frames=2",
        "sequence_module.optimizer.lr=0.005",
        "trainer.max_epochs=10",
        "trainer.accelerator=cpu",
        "callbacks.progress_bar=null",
        "callbacks.snapshots=null",
        "motifs.number=2",
        "generation.forecast=6",
        "label=regime",
        f"output_dir={folder / 'run'}",
        *more,
    ]
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return checked("motifs", compose("motifs", overrides=given))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six trajectories as extended XYZ, and what the steps make of them."""
    place = tmp_path_factory.mktemp("motifs")
    (place / "recordings").mkdir()
    for trajectory in recordings(6, frames=120, switch=30).load():
        trajectory.write_extxyz(place / "recordings" / f"{trajectory.id}.extxyz")
    message = motifs(config(place))
    assert message.startswith(f"steps: {', '.join(STEPS)}\n2 motifs in 6 trajectories")
    return place


@pytest.fixture(autouse=True)
def quick_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds, and are tested elsewhere: after the first run the page is only its name."""
    from crystalvae.commands import motifs as command

    def write(findings: Any, output_dir: Path, **_options: Any) -> list[Path]:
        (output_dir / "report.html").write_text(f"Motifs: {findings.name}", encoding="utf-8")
        return [output_dir / "report.html"]

    monkeypatch.setattr(command, "write_motif_report", write)


def state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "pipeline.json").read_text(encoding="utf-8"))["steps"]


def test_every_step_leaves_its_files(folder: Path):
    run = folder / "run"
    assert list(state(folder)) == STEPS
    assert {entry["status"] for entry in state(folder).values()} == {"done"}
    frames = pd.read_csv(run / "statistics" / "frames.csv")
    assert len(frames) == 6 * 120
    assert set(frames["motif"]) == {0, 1}
    found = Segmentation.load(run / "segmentation")
    np.testing.assert_array_equal(found.segmented[0].frame_motifs, frames["motif"][:120])
    agreement = json.loads((run / "statistics" / "agreement.json").read_text(encoding="utf-8"))
    assert list(agreement) == ["motifs", "k-means on raw frames", "k-means on raw windows"]
    clips = sorted((run / "generation").glob("motif_*.extxyz"))
    assert {path.name[:7] for path in clips} == {"motif_0", "motif_1"}
    (clip,) = read_trajectories(clips[0], without_drift=False)
    assert any(
        np.allclose(clip.cart_coords, entry.cart_coords[start : start + 8], atol=1e-4)
        for entry in read_trajectories(folder / "recordings")
        for start in range(113)
    )
    (made,) = read_trajectories(next((run / "generation").glob("forecast_*.extxyz")))
    assert len(made) == 6
    errors = pd.read_csv(run / "generation" / "forecast_errors.csv")
    assert errors["horizon"].tolist() == list(range(1, 16))
    assert (run / "report.html").is_file()
    assert {path.name for path in (run / "animations").iterdir()} == {"motif_0.gif", "motif_1.gif"}


def test_what_is_done_and_unchanged_is_not_done_again(folder: Path):
    before = state(folder)
    assert motifs(config(folder)).startswith("steps: none, all were done\n")
    assert state(folder) == before
    assert motifs(config(folder, "name=other")).startswith("steps: report\n")
    assert "Motifs: other" in (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert motifs(config(folder, "motifs.number=3")).startswith(
        "steps: segmentation, statistics, generation, report\n3"
    )
    assert state(folder)["training"] == before["training"]
    assert motifs(config(folder, "motifs.number=3", "from_step=statistics")).startswith(
        "steps: statistics, generation,"
    )
    (folder / "run" / "statistics" / "motifs.csv").unlink()
    assert motifs(config(folder, "motifs.number=3")).startswith("steps: statistics, generation, report\n")
    assert motifs(config(folder)).startswith("steps: segmentation, statistics, generation, report\n2 motifs")


def test_a_step_cannot_begin_before_those_it_needs(folder: Path):
    with pytest.raises(ConfigError, match="features comes before it and is not done"):
        motifs(config(folder, "from_step=report", "seed=5"))
    with pytest.raises(ConfigError, match="from_step: got 'reports'; expected one of data"):
        motifs(config(folder, "from_step=reports"))


def test_an_interrupted_training_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from crystalvae.commands import motifs as command

    output = f"output_dir={tmp_path / 'run'}"
    whole = command.train_sequence

    def stopped(given: Any) -> str:
        shorter = given.copy()
        shorter.trainer.max_epochs = 4
        whole(shorter)
        raise SystemExit(130)

    monkeypatch.setattr(command, "train_sequence", stopped)
    with pytest.raises(SystemExit):
        motifs(config(folder, output))
    steps = json.loads((tmp_path / "run" / "pipeline.json").read_text(encoding="utf-8"))["steps"]
    assert [entry["status"] for entry in steps.values()] == ["done", "done", "running"]
    monkeypatch.setattr(command, "train_sequence", whole)
    assert motifs(config(folder, output)).startswith("steps: training, segmentation, statistics, generation, report\n")
    description = json.loads((tmp_path / "run" / "training" / "run.json").read_text(encoding="utf-8"))
    assert description["resumed_from"] == str(tmp_path / "run" / "training" / "checkpoints" / "last.ckpt")
    assert description["epochs"] == 10
    # An uninterrupted run finds the same.
    ours, theirs = (Segmentation.load(place / "run" / "segmentation") for place in (tmp_path, folder))
    np.testing.assert_allclose(ours.latents, theirs.latents, atol=1e-4)


def test_a_trained_model_is_taken_as_it_is(folder: Path, tmp_path: Path):
    (tmp_path / "recordings").mkdir()
    for name in ("x", "y"):
        swinging(name, frames=70, switch=35).write_extxyz(tmp_path / "recordings" / f"{name}.extxyz")
    checkpoint = folder / "run" / "training" / "checkpoints" / "last.ckpt"
    more = ("data.val_fraction=0.0", "data.test_fraction=0.0", "groups={one: [x], other: [y]}", "label=null")
    given = config(tmp_path, f"ckpt_path={checkpoint}", "sequence_module.model.window=30", *more)
    assert motifs(given).startswith("steps: data, features, training, segmentation")
    assert not (tmp_path / "run" / "training").exists()
    assert Segmentation.load(tmp_path / "run" / "segmentation").counts == [63, 63]
    comparison = json.loads((tmp_path / "run" / "statistics" / "comparison.json").read_text(encoding="utf-8"))
    assert comparison["groups"] == {"one": ["x"], "other": ["y"]}
    assert not (tmp_path / "run" / "statistics" / "agreement.json").exists()


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("motifs.number=[]", "motifs.number: got an empty list"),
        ("motifs.number=two", "motifs.number: got 'two'; expected a whole number"),
        ("report.map=tsne", "report.map: got 'tsne'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(folder: Path, tmp_path: Path, option: str, reason: str):
    with pytest.raises(ConfigError, match=reason.replace("[", r"\[")):
        motifs(config(folder, option, f"output_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


def test_a_property_that_is_not_there_is_named(folder: Path):
    with pytest.raises(ConfigError, match="has no property phase; its properties: regime, temperature"):
        motifs(config(folder, "label=phase"))


def test_other_files_are_left_alone(folder: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="holds something else"):
        motifs(config(folder, f"output_dir={tmp_path / 'run'}"))
    (tmp_path / "run" / "notes.txt").unlink()
    (tmp_path / "run" / "pipeline.json").write_text("{}", encoding="utf-8")
    with pytest.raises(OutputError, match="not the state of a run"):
        motifs(config(folder, f"output_dir={tmp_path / 'run'}"))
