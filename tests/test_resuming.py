"""Resuming believes numbers of a checkpoint, never paths; and what a run writes is whole, finite and in its folder."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from crystalvae.checkpoints import format as checkpoints
from crystalvae.checkpoints import resuming
from crystalvae.commands.run_checkpoints import RunCheckpoints
from crystalvae.commands.train import train
from crystalvae.errors import CheckpointError, CrystalVAEError, OutputError, TrainingError

pytestmark = pytest.mark.filterwarnings("ignore")  # what Lightning says of tiny runs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TINY = [
    "data.source.num_crystals=100", "data.source.max_atoms=4", "data.batch_size=32",
    *(f"vae_module.{part}.{k}" for part in ("encoder", "decoder") for k in ("d_model=8", "nhead=2", "num_layers=1")),
    "vae_module.scheduler.warmup_steps=2", "callbacks.ema.decay=0.9", "callbacks.progress_bar=null", "logger=csv",
    "trainer.accelerator=cpu", "trainer.enable_model_summary=false",
]  # fmt: skip


def run(*options: str) -> str:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"), torch.random.fork_rng():
        return train(hydra.compose("train_vae", [*TINY, *options]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    cache = os.environ.get("CRYSTALVAE_CACHE_DIR") or str(tmp_path_factory.getbasetemp() / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRYSTALVAE_CACHE_DIR", cache)
        run(f"output_dir={folder / 'run'}", "trainer.max_epochs=2")
    return folder / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run, in another place."""
    if "CRYSTALVAE_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(finished.parents[1] / "cache"))
    return Path(shutil.copytree(finished, tmp_path / "elsewhere"))


def change(folder: Path, how: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    how(content)
    torch.save(content, path)
    return path


def states(content: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [state for key, state in content["callbacks"].items() if key.startswith(kind)]


def best_state(path: Path) -> dict[str, Any]:
    content = torch.load(path, weights_only=True)
    (state,) = [state for state in states(content, "ModelCheckpoint") if state["monitor"] is not None]
    return state


# ---- paths -----------------------------------------------------------------------------------------------------------


def test_checkpoints_of_a_run_say_no_place_of_this_machine(finished: Path) -> None:
    for path in (finished / "checkpoints").iterdir():
        content = torch.load(path, weights_only=True)
        words = str({name: content[name] for name in ("callbacks", "loops", "crystalvae")})
        assert str(finished.parents[1]) not in words
        assert "/checkpoints" not in words


def test_a_run_that_was_moved_keeps_its_best_model(copied: Path) -> None:
    best = copied / "checkpoints" / "best.ckpt"
    before, score = best.read_bytes(), best_state(copied / "checkpoints" / "last.ckpt")["best_model_score"]

    def much_better(content: dict[str, Any]) -> None:
        for state in states(content, "ModelCheckpoint"):
            if state["best_model_path"] == "best.ckpt":
                state["best_model_score"] = state["kth_value"] = torch.tensor(-5.0)
                state["best_k_models"] = {"best.ckpt": torch.tensor(-5.0)}

    assert score is not None
    change(copied, much_better)
    assert "finished after 3 epochs" in run(f"output_dir={copied}", f"resume_from={copied}", "trainer.max_epochs=3")
    assert best.read_bytes() == before  # no epoch is better than that
    assert best_state(copied / "checkpoints" / "last.ckpt")["best_model_score"] == -5.0


@pytest.mark.parametrize("form", ["{}", "local://{}", "file://{}", "{}/../{name}", "{}/."])
def test_a_hostile_checkpoint_removes_nothing(copied: Path, tmp_path: Path, form: str) -> None:
    precious = tmp_path / "precious"
    (precious / "deep").mkdir(parents=True)
    (precious / "deep" / "file").write_text("mine")
    (copied / "checkpoints" / "best.ckpt" if form == "{}" else copied / "unrelated").write_bytes(b"x")
    named = form.format(precious, name=precious.name)

    def lie(content: dict[str, Any]) -> None:
        for state in states(content, "ModelCheckpoint"):
            state |= {
                "best_model_path": named, "kth_best_model_path": named, "last_model_path": named,
                "dirpath": str(copied / "checkpoints"), "best_k_models": {named: torch.tensor(1e9)},
                "best_model_score": torch.tensor(1e9), "kth_value": torch.tensor(1e9),
            }  # fmt: skip

    change(copied, lie)
    run(f"output_dir={copied}", f"resume_from={copied}", "trainer.max_epochs=4")
    assert (precious / "deep" / "file").read_text() == "mine"
    assert torch.load(copied / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] in {2, 3}


@pytest.mark.parametrize(
    "path", ["/a/b", "..", ".", "", "/", "a/..", "\0", "C:\\x\\..", "local://..", "x" * 5000, "\\\\host\\share\\"]
)
def test_the_name_of_a_saved_path_is_a_name(path: str, tmp_path: Path) -> None:
    name = resuming.file_name(path)
    assert not set(name) & {"/", "\\", "\0"}
    assert name not in {".", ".."}
    assert resuming.file_here(path, tmp_path) == ""


def test_a_link_is_no_checkpoint_of_this_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "best.ckpt").symlink_to(tmp_path / "file")
    assert resuming.file_here("/elsewhere/best.ckpt", tmp_path) == ""
    assert resuming.file_here("/elsewhere/file", tmp_path) == str(tmp_path / "file")


def test_only_what_a_run_wrote_is_removed(tmp_path: Path) -> None:
    files = RunCheckpoints([ModelCheckpoint(dirpath=tmp_path, monitor="x")])
    files.save_checkpoint({"state_dict": {}}, tmp_path / "own.ckpt")
    (tmp_path / "other.ckpt").touch()
    (tmp_path / "folder").mkdir()
    for name in ("own.ckpt", "other.ckpt", "folder", "absent"):
        files.remove_checkpoint(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "other.ckpt"]


# ---- whole files -----------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, path = RunCheckpoints(), tmp_path / "last.ckpt"
    files.save_checkpoint({"state_dict": {"a": torch.ones(3)}}, path)
    before = path.read_bytes()

    def full(content: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"last\.ckpt: cannot be written \(No space left on device\)"):
        files.save_checkpoint({"state_dict": {"a": torch.zeros(3)}}, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_checkpoints_are_written_beside_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never in the machine's temporary folder, which may lie on another file system, where a rename is a copy."""
    seen: list[Path] = []
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: (seen.append(Path(file.name)), save(content, file)))
    RunCheckpoints().save_checkpoint({"state_dict": {}}, tmp_path / "a" / "last.ckpt")
    (written,) = seen
    assert written.parent == tmp_path / "a"
    assert written.name != "last.ckpt"


# ---- divergence ------------------------------------------------------------------------------------------------------


def test_weights_that_are_nan_are_not_written(tmp_path: Path) -> None:
    files, path = RunCheckpoints(), tmp_path / "last.ckpt"
    files.save_checkpoint({"state_dict": {"a": torch.ones(3)}}, path)
    for name in ("state_dict", "current_model_state"):
        content = {"state_dict": {}, name: {"a": torch.tensor([1.0, torch.nan])}, "global_step": 7}
        with pytest.raises(TrainingError, match=r"training diverged: weights that are NaN .*at step 7.*resume_from="):
            files.save_checkpoint(content, path)
    assert torch.load(path, weights_only=True)["state_dict"]["a"].tolist() == [1.0] * 3


def test_training_that_diverges_fails_and_keeps_its_last_good_checkpoint(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crystalvae.vae_module.vae_module import VAEModule

    def poisoned(self: VAEModule, *_: object) -> None:
        with torch.no_grad():
            next(self.parameters()).fill_(torch.nan)

    before = {path.name: path.read_bytes() for path in (copied / "checkpoints").iterdir()}
    monkeypatch.setattr(VAEModule, "on_train_batch_end", poisoned)
    with pytest.raises(TrainingError):
        run(f"output_dir={copied}", f"resume_from={copied}", "trainer.max_epochs=4")
    assert json.loads((copied / "run.json").read_text())["status"] == "failed"
    assert {path.name: path.read_bytes() for path in (copied / "checkpoints").iterdir()} == before


# ---- damaged state ---------------------------------------------------------------------------------------------------


def moments(content: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    return content["optimizer_states"][0]["state"]


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "moment of another shape": lambda c: moments(c)[0].update(exp_avg=torch.zeros(3)),
    "moment of whole numbers": lambda c: moments(c)[0].update(exp_avg=moments(c)[0]["exp_avg"].long()),
    "moment that is NaN": lambda c: moments(c)[0]["exp_avg"].fill_(torch.nan),
    "unknown parameter": lambda c: moments(c).update({10**9: moments(c)[0]}),
    "fewer parameters": lambda c: c["optimizer_states"][0]["param_groups"][0]["params"].pop(),
    "settings that are text": lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr="x"),
    "two optimisers": lambda c: c["optimizer_states"].append(c["optimizer_states"][0]),
    "no optimiser": lambda c: c.pop("optimizer_states"),
    "averages that are NaN": lambda c: next(iter(c["state_dict"].values())).fill_(torch.nan),
    "weights that are NaN": lambda c: next(iter(c["current_model_state"].values())).fill_(torch.nan),
    "weights of another shape": lambda c: c["current_model_state"].update({next(iter(c["state_dict"])): torch.ones(2)}),
    "no callbacks": lambda c: c.update(callbacks=7),
    "early stopping of text": lambda c: [s.update(wait_count="x") for s in states(c, "EarlyStopping")],
    "early stopping of nothing": lambda c: [s.clear() or s.update(x=1) for s in states(c, "EarlyStopping")],
    "a score of text": lambda c: [s.update(best_model_score="x") for s in states(c, "ModelCheckpoint")],
    "averaging of a list": lambda c: [s.update(latest_update_step=[1]) for s in states(c, "AveragedWeights")],
    "loops of text": lambda c: c.update(loops={"fit_loop": "x"}),
    "loops without parts": lambda c: c.update(loops={"fit_loop": {}}),
    "negative epochs": lambda c: c["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready=-1),
    "a version of text": lambda c: c.update({resuming.LIGHTNING: "x"}),
    "a schedule of text": lambda c: c["lr_schedulers"][0].update(last_epoch="x"),
    "a step of text": lambda c: c.update(global_step="x"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_of_training_is_refused(copied: Path, name: str) -> None:
    path = change(copied, DAMAGE[name])
    before = path.read_bytes()
    with pytest.raises(CrystalVAEError) as caught:
        run(f"output_dir={copied}", f"resume_from={copied}", "trainer.max_epochs=3")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, CheckpointError)
    assert path.read_bytes() == before


def test_a_state_takes_the_form_of_the_one_there_is() -> None:
    stopper = EarlyStopping(monitor="x")
    now = stopper.state_dict()
    saved = {**copy.deepcopy(now), "wait_count": 3, "best_score": torch.tensor(0.5), "more": "/etc"}
    assert resuming.like("x", saved, now) == {**now, "wait_count": 3, "best_score": torch.tensor(0.5)}
    assert resuming.like("x", {"last": {"a": 1.0}}, {"last": {}, "measured_at": 0}) == {
        "last": {"a": 1.0},
        "measured_at": 0,
    }
    for wrong in ({"wait_count": None}, {"best_score": 1.0}, {"best_score": torch.ones(3)}, {"wait_count": {}}, {}):
        with pytest.raises(CheckpointError, match="damaged checkpoint: x"):
            resuming.like("x", wrong, now)


def test_what_training_writes_is_read_again(finished: Path) -> None:
    path = finished / "checkpoints" / "last.ckpt"
    content = checkpoints.read(path, plain_data_only=True)
    assert set(resuming.state_of_training(path, content)) == set(content)
