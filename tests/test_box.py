"""The box for an hour on a GPU, rehearsed on a CPU with tiny models: every step, its limits, and how it goes on."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_commands import table  # noqa: F401  a fixture

from benchmarks import gpu, training
from benchmarks.box import quality, scaling, speed
from benchmarks.box.sizes import REHEARSAL, Sizes
from benchmarks.box.store import Budget, Store, run_command
from benchmarks.machine import counted_flops
from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module import VAEModule

pytestmark = pytest.mark.filterwarnings("ignore")  # of profilers and tiny runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("box")


@pytest.fixture
def given(folder: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:  # noqa: F811
    """The command line of a rehearsal."""
    monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return ["--out", str(folder), "--rehearsal", "--device", "cpu", "--data", "table", "--data-dir", str(table)]


def results(folder: Path, step: str) -> dict[str, Any]:
    return json.loads((folder / step / "results.json").read_text())


# ---- the steps -------------------------------------------------------------------------------------------------------


def test_works(given: list[str], folder: Path) -> None:
    gpu.main([*given, "--minutes", "60", "--tests", "rotations", "works"])
    found = results(folder, "works")
    outcomes = {row["test"].split("::")[1]: row["outcome"] for row in found["found"]["tests"]}
    name = "test_rotations_under_bfloat16_are_rotations"
    assert outcomes == {f"{name}[cpu]": "PASSED", f"{name}[cuda]": "PASSED" if torch.cuda.is_available() else "SKIPPED"}
    assert found["missing"] == {}


def test_speed(given: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.main([*given, "--minutes", "60", "speed"])
    found = results(folder, "speed")
    assert found["missing"] == {}
    step, flow, sampling, _, plan = found["found"].values()
    assert [row["how"] for row in step] == ["reference, float32", "ours, float32", "ours, bf16"]
    assert all(row["counted_gflop"] >= 0 and row["floor_seconds"] >= 0 for row in step)
    assert step[1]["ratio"] == pytest.approx(step[0]["seconds"] / step[1]["seconds"], rel=0.05)
    assert flow[0]["seconds_per_1000"] > 0
    assert sampling[0]["seconds_per_1000"] > 0
    assert [row["what"] for row in plan] == [f"plan for {minutes} minutes" for minutes in (10, 30, 45)]
    assert plan[0]["vae_epochs"] < plan[1]["vae_epochs"] < plan[2]["vae_epochs"]
    assert "Self CPU" in (folder / "speed/profile_16x1.txt").read_text()
    page = (folder / "README.md").read_text()
    assert "## speed" in page
    assert "| training step, 16 x (1 + 1) | ours, bf16 |" in page

    def again(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(training, "measure", again)
    gpu.main([*given, "--minutes", "60", "speed"])
    assert results(folder, "speed")["found"].keys() == found["found"].keys()


@pytest.mark.slow
def test_quality(given: list[str], folder: Path) -> None:
    gpu.main([*given, "--minutes", "60", "--all-minutes", "0.2", "quality"])
    found = results(folder, "quality")
    assert found["missing"] == {}
    for part in ("vae", "prior"):
        trials = [rows[0] for name, rows in found["found"].items() if name.startswith(f"sweep of the {part}")]
        assert len(trials) == 4  # two widths, then another batch, then another learning rate
        best, chosen = min(trials, key=lambda row: row["loss"]), found["found"][f"{part} chosen"][0]
        assert {key: chosen[key] for key in best["choice"]} == best["choice"]
        assert found["found"][f"{part} trained"][0]["epochs"] == chosen["epochs"]
    model = VAEModule.load_from_checkpoint(folder / "quality/mp20-base.ckpt", weights_only=True)
    assert model.prior is not None
    assert "valid" in found["found"]["evaluation: generation"][0]
    lines = (folder / "quality/commands.sh").read_text().splitlines()
    assert [line.split()[1] for line in lines] == [
        f"src/{n}.py" for n in ("train_vae", "train_prior", "publish", "evaluate")
    ]
    gpu.main([*given, "--minutes", "60", "quality"])
    assert (folder / "quality/commands.sh").read_text().splitlines() == lines


def test_scaling(given: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "REHEARSAL", Sizes(**{**vars(REHEARSAL), "devices": (2,)}))
    gpu.main([*given, "--minutes", "60", "scaling"])
    found = results(folder, "scaling")
    assert found["missing"] == {}
    rows = [row for rows in found["found"].values() for row in rows]
    assert [(row["what"], row["batch"]) for row in rows[:3]] == [("step 16x1", 4), ("step 16x1", 8), ("step 32x1", 8)]
    assert all(row["per_second"] > 0 for row in rows[:4])
    assert (rows[3]["processes"], rows[3]["same_weights"]) == (2, True)
    assert (rows[4]["crystals"], rows[4]["own_bytes_per_crystal"] < 1e6) == (2000, True)


def test_all_steps_share_the_time_each_in_a_process_of_its_own(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, float, list[str]]] = []

    def fake(command: list[str], log: Path, budget: Budget) -> int:
        assert log == tmp_path / f"{command[2]}.log"
        started.append((command[2], budget.left, command[3:]))
        return 0

    monkeypatch.setattr(gpu, "run_command", fake)
    gpu.main([*given, "--out", str(tmp_path), "--minutes", "10"])
    assert [name for name, _, _ in started] == ["works", "speed", "quality", "scaling"]
    seconds = [left - 60 for _, left, _ in started]  # each may take a minute longer to end in order
    assert seconds == pytest.approx([60, 600 * 2 / 9, 600 * 5 / 7, 600], rel=0.01)  # nobody used any
    assert all("--rehearsal" in options and "--data-dir" in options for _, _, options in started)
    assert "Not run yet." in (tmp_path / "README.md").read_text()


# ---- time and results ------------------------------------------------------------------------------------------------


def test_what_was_found_is_kept_and_what_was_not_is_said(tmp_path: Path) -> None:
    store, plenty = Store(tmp_path, "cpu"), Budget(100)
    assert store.measure("good", lambda: [{"what": "a"}], plenty, seconds=1) == [{"what": "a"}]
    assert store.measure("long", lambda: [{"what": "b"}], plenty, seconds=1000) is None

    def broken() -> list[dict[str, Any]]:
        raise ValueError("no such thing")

    def late() -> list[dict[str, Any]]:
        raise TimeoutError("the time was up")

    assert store.measure("broken", broken, plenty, seconds=1) is None
    assert store.measure("late", late, plenty, seconds=1) is None
    later = Store(tmp_path, "cpu")
    assert later.measure("good", broken, Budget(0), seconds=1) == [{"what": "a"}]
    content = results(tmp_path.parent, tmp_path.name)
    assert content["missing"] == {
        "long": "left for the next job: it wants about 1000 s",
        "broken": "failed: ValueError: no such thing",
        "late": "left for the next job: the time was up",
    }
    assert later.measure("broken", lambda: [{"what": "c"}], plenty, seconds=1) == [{"what": "c"}]
    assert later.rows() == [{"what": "a"}, {"what": "c"}]


def test_a_command_is_asked_to_end_when_its_time_is_up(tmp_path: Path) -> None:
    patient = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('in order'), sys.exit(143))); "
    log, start = tmp_path / "log", time.monotonic()
    command = [sys.executable, "-c", patient + "print('here', flush=True); time.sleep(60)"]
    assert run_command(command, log, Budget(3)) is None
    assert time.monotonic() - start < 30
    assert "in order" in log.read_text()
    assert run_command([sys.executable, "-c", "print('fine')"], log, Budget(20)) == 0
    with pytest.raises(RuntimeError, match=r"failed \(3\): what went wrong"):
        run_command([sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)"], log, Budget(20))


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def test_the_arithmetic_of_a_step_is_what_pytorch_counts() -> None:
    crystals = CrystalBatch.empty([20] * 8)  # rows without padding
    crystals = crystals.replace(atom_types=torch.ones_like(crystals.atom_types))
    module = training.make_module(64, 2)
    step = training.our_step(module, crystals, 8, torch.device("cpu"), None)
    assert counted_flops(step) == pytest.approx(training.step_flops(crystals, 64, 2, 8), rel=0.02)


def test_epochs_follow_from_the_speed() -> None:
    assert speed.epochs_within(100, 0.5, 20_000) == 7  # 10 s an epoch, a quarter for validation
    assert speed.epochs_within(1, 10, 20_000) == 1
    rows = [
        {"what": "training step, 128 x (4 + 4)", "how": "ours, bf16", "seconds_per_1000": 0.01},
        {"what": "training step, 512 x (8 + 8)", "how": "ours, bf16", "seconds_per_1000": 0.3},
        {"what": "training step, 512 x (8 + 8)", "how": "ours, bf16, batch 1024", "seconds_per_1000": 0.1},
        {"what": "flow step 512x8", "how": "ours, bf16", "seconds_per_1000": 0.2},
    ]
    plan = speed.plan(rows, 25_000)
    assert plan[0]["vae"] == "512 x (8 + 8)"
    assert plan[0]["vae_epochs"] == int(0.75 * 600 * speed.SHARES["vae"] / 2.5)
    assert plan[0]["flow_epochs"] == int(0.75 * 600 * speed.SHARES["prior"] / 5.0)
    assert sum(speed.SHARES.values()) == pytest.approx(1.0)


def test_the_sweep_goes_on_from_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trial(part: str, choice: dict[str, float], *_: Any, **__: Any) -> list[dict[str, Any]]:
        if choice["lr"] == 4e-3:
            return [{"what": part, "loss": float("nan"), "choice": choice}]
        wide = abs(choice["d_model"] - 768) / 1000
        return [{"what": part, "loss": wide + choice["batch_size"] / 1e4 + choice["lr"], "choice": choice}]

    monkeypatch.setattr(quality, "trial", trial)
    store = Store(tmp_path, "cpu")
    quality.sweep("vae", store, Budget(1000), Sizes(), device="cpu", data=[])
    assert len(store.found) == 7
    best = quality.best_trial("vae", store)
    assert best is not None
    assert best["choice"] == {"d_model": 768, "batch_size": 512, "lr": 1e-3}


def test_a_device_that_is_too_small_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scaling, "take_turns", full)
    row = scaling.step_rows(CrystalBatch.empty([2, 3]), "16x1", 8, "cpu")
    assert row == [{"what": "step 16x1", "batch": 8, "how": "out of memory"}]
