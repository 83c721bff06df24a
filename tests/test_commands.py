"""The commands as a user runs them: train, kill, resume, evaluate, sample, on a tiny model and real crystals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY

from crystalvae.errors import CrystalVAEError

TINY = [
    "data=table",
    "data.batch_size=8",
    *(f"vae_module.{part}.{k}" for part in ("encoder", "decoder") for k in ("d_model=16", "nhead=2", "num_layers=1")),
    "vae_module.scheduler.warmup_steps=2",
    "callbacks.ema.decay=0.9",
    "callbacks.progress_bar=null",
    "logger=csv",
    "trainer.accelerator=cpu",
    "trainer.enable_model_summary=false",
]


def command(name: str, *arguments: str, cwd: Path, check: bool = True, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / f"{name}.py"), *arguments],
        capture_output=True,
        check=False,
        text=True,
        cwd=cwd,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CRYSTALVAE_CACHE_DIR": str(cwd / "cache"), "COLUMNS": "200"},
        **options,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def in_process(name: str, *arguments: str, cwd: Path) -> str:
    """Run a command without the seconds that a process of its own takes to start; return what it would print."""
    from crystalvae.commands.main import COMMANDS

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setenv("CRYSTALVAE_CACHE_DIR", str(cwd / "cache"))
        return COMMANDS[name.replace("_", "-")].load()(compose(name, list(arguments)))


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    """A CDVAE-format data set of 32 + 8 + 8 small binary crystals."""
    from pymatgen.core import Lattice, Structure
    from pymatgen.io.cif import CifWriter

    folder = tmp_path_factory.mktemp("table")
    pairs = [(a, b) for a in ("Li", "Na", "K", "Rb", "Cs", "Ag") for b in ("F", "Cl", "Br", "I", "H", "S", "O", "N")]
    rows = []
    for number, (a, b) in enumerate(pairs):
        lattice = Lattice.from_parameters(4 + 0.05 * number, 4.5, 5 + 0.02 * number, 85, 95, 100)
        atoms = 2 + number % 2
        sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.2, 0.7, 0.3]]
        structure = Structure(lattice, [a, b, b][:atoms], sites[:atoms])
        rows.append({"material_id": f"{a}{b}", "cif": str(CifWriter(structure)), "band_gap": 0.1 * number})
    for split, part in (("train", rows[:32]), ("val", rows[32:40]), ("test", rows[40:])):
        pd.DataFrame(part).to_csv(folder / f"{split}.csv")
    return folder


@pytest.fixture(scope="session")
def trained(table: Path, tmp_path_factory) -> Path:
    """A run folder of six epochs."""
    folder = tmp_path_factory.mktemp("trained")
    options = [*TINY, f"data.source.data_dir={table}", "trainer.max_epochs=6", "trainer.log_every_n_steps=1"]
    options += ["output_dir=run"]
    done = command("train_vae", *options, cwd=folder)
    assert "crystalvae sample ckpt_path=" in done.stdout
    return folder / "run"


def losses(run: Path) -> dict[int, float]:
    """Training losses by step, all versions of the CSV log together, later ones winning."""
    found: dict[int, float] = {}
    for path in sorted(run.glob("csv/version_*/metrics.csv")):
        frame = pd.read_csv(path)
        if "train/loss" in frame:
            rows = frame.dropna(subset=["train/loss"])
            found |= dict(zip(rows["step"].astype(int).tolist(), rows["train/loss"].tolist(), strict=True))
    return found


def test_run_folder_says_what_happened(trained: Path):
    run = json.loads((trained / "run.json").read_text())
    assert run["status"] == "finished"
    assert run["epochs"] == 6
    assert run["seed"] == 0
    assert "src/train_vae.py data=table data.batch_size=8 " in run["command"]
    assert {"torch", "lightning", "crystalvae", "python"} <= set(run["versions"])
    assert "val/recon_loss" in run["metrics"]
    assert "d_model: 16" in (trained / "config.yaml").read_text()
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_checkpoint_is_plain_data_with_ema_weights(trained: Path):
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["crystalvae"]["statistics"]["num_atoms"] == {2: 16, 3: 16}
    averaged, current = content["state_dict"], content["current_model_state"]
    assert any(not torch.equal(averaged[name], current[name]) for name in averaged)


def test_killed_training_resumes_where_it_was(table: Path, trained: Path, tmp_path: Path):
    common = [*TINY, f"data.source.data_dir={table}", "trainer.max_epochs=6", "trainer.log_every_n_steps=1"]
    options = [*common, "output_dir=run"]
    expected = losses(trained)
    assert len(expected) == 24

    other = tmp_path / "other"
    other.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "src" / "train_vae.py"), *options],
        cwd=other,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CRYSTALVAE_CACHE_DIR": str(other / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = other / "run" / "checkpoints" / "last.ckpt"
    deadline = time.time() + 200
    while not checkpoint.is_file() and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped_at = torch.load(checkpoint, weights_only=True)["global_step"]
    assert stopped_at % 4 == 0
    resumed = command("train_vae", *common, "resume_from=run", cwd=other)
    assert f"everything is in {other / 'run'}" in resumed.stdout
    got = {step: loss for step, loss in losses(other / "run").items() if step >= stopped_at}
    assert got == {step: pytest.approx(expected[step], rel=1e-5) for step in expected if step >= stopped_at}
    first, second = (torch.load(f / "run/checkpoints/last.ckpt", weights_only=True) for f in (trained.parent, other))
    for key in ("state_dict", "current_model_state"):
        for name, value in first[key].items():
            torch.testing.assert_close(second[key][name], value, rtol=1e-4, atol=1e-6)


def heed_interrupts() -> None:
    """Undo what a shell does to processes that it starts in the background: to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_training_that_is_stopped_says_so_by_its_status(table: Path, tmp_path: Path, number: int, status: int):
    options = [*TINY, f"data.source.data_dir={table}", "output_dir=run", "trainer.max_epochs=1000000"]
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "src" / "train_vae.py"), *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CRYSTALVAE_CACHE_DIR": str(tmp_path / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509  no threads here
    )
    checkpoint, deadline = tmp_path / "run" / "checkpoints" / "last.ckpt", time.time() + 120
    while not checkpoint.is_file() and process.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert f"continue:    add resume_from={tmp_path / 'run'} to the same command" in errors  # in one line, to copy
    assert "Traceback" not in errors
    assert "INFO: " not in errors  # Lightning's own lines, which say nothing that is asked for
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"


def test_two_processes_give_the_losses_of_one(table: Path, tmp_path: Path):
    """With terms of the loss that are curved in the batch's means, too."""
    common = [*TINY, f"data.source.data_dir={table}", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
    common += ["vae_module/objective=free_bits", "vae_module.loss_weights.kl=0.1"]
    common += ["vae_module.objective.cluster_weight=0.1", "vae_module.objective.cluster_components=2"]
    command("train_vae", *common, "output_dir=one", cwd=tmp_path)
    ddp = ["trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=4"]
    command("train_vae", *common, *ddp, "output_dir=two", cwd=tmp_path)
    weights = [torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("one", "two")]
    for name, value in weights[0]["current_model_state"].items():
        if name.endswith("in_proj_bias"):  # the gradient of the key bias is 0; Adam makes steps of its rounding errors
            continue
        torch.testing.assert_close(weights[1]["current_model_state"][name], value, rtol=1e-3, atol=2e-5)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert sorted(one) == sorted(two) == list(range(8))
    assert two == pytest.approx(one, rel=1e-4)


def test_evaluate_writes_numbers_and_definitions(table: Path, trained: Path, tmp_path: Path, caplog):
    checkpoint = trained / "checkpoints" / "best.ckpt"
    data = ["data=table", f"data.source.data_dir={table}", "split=val", "n_jobs=1"]
    done = command("evaluate", f"ckpt_path={checkpoint}", *data, "output_dir=result", cwd=tmp_path)
    assert "match_rate" in done.stdout
    result = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    assert (result["kind"], result["inputs"]["generated"]["count"]) == ("reconstruction", 8)
    assert 0 <= result["metrics"]["match_rate"] <= 1
    assert set(result["definitions"]) == set(result["metrics"])
    assert "split=val" in result["command"]
    assert "<html" in (tmp_path / "result" / "report.html").read_text(encoding="utf-8")[:200].lower()
    caplog.set_level("INFO")
    in_process("evaluate", f"ckpt_path={checkpoint}", *data, "output_dir=result", "report=false", cwd=tmp_path)
    assert "known from earlier runs" in caplog.text
    assert json.loads((tmp_path / "result" / "evaluation.json").read_text())["metrics"] == result["metrics"]


def test_evaluate_judges_crystals_from_anywhere(table: Path, tmp_path: Path, caplog):
    frame = pd.read_csv(table / "val.csv")
    (tmp_path / "gen").mkdir()
    for name, cif in zip(frame.material_id, frame.cif, strict=True):
        (tmp_path / "gen" / f"{name}_0.cif").write_text(cif)
    (tmp_path / "gen" / "rubbish.cif").write_text("no CIF")
    data = ["data=table", f"data.source.data_dir={table}", "n_jobs=1", "report=false"]
    parts = "sections=[validity,uniqueness]"
    in_process("evaluate", "generated=gen", *data, parts, "output_dir=out", cwd=tmp_path)
    assert "(rubbish): " in caplog.text
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["kind"] == "generation"
    assert result["inputs"]["generated"]["count"] == len(frame) + 1
    assert result["metrics"]["structure_valid"] == pytest.approx(len(frame) / (len(frame) + 1))
    in_process("evaluate", "generated=gen", "task=csp", *data, cwd=tmp_path)
    result = json.loads((tmp_path / "gen-evaluation" / "evaluation.json").read_text())
    assert (result["kind"], result["metrics"]["match_rate@1"]) == ("csp", 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got neither"),
        (["generated=gen", "ckpt_path=x.ckpt"], "got both"),
        (["generated=gen"], "data: say which data set to compare"),
        (["generated=gen", "task=reconstruction"], "needs ckpt_path"),
        (["generated=gen", "data=table", "task=beauty"], "task: got 'beauty'"),
        (["generated=gen", "data=table", "sections=[beauty]"], "sections: got 'beauty'"),
        (["generated=nothing", "data=table"], "no such file"),
        (["generated=gen", "data=table", "output_dir=gen"], "no evaluation wrote"),
        (["generated=gen", "data=table", "timeout_s=0"], "timeout_s=0"),
        (["generated=gen", "data=table", "backend=abacus"], "backend='abacus'"),
    ],
)
def test_evaluate_refuses_what_it_cannot_do(table: Path, tmp_path: Path, arguments: list[str], message: str):
    from crystalvae.commands.evaluate import evaluate
    from tests.test_docs import compose

    (tmp_path / "gen").mkdir()
    (tmp_path / "gen" / "a.cif").write_text(pd.read_csv(table / "val.csv").cif[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("CRYSTALVAE_CACHE_DIR", str(tmp_path / "cache"))
        data = [f"data.source.data_dir={table}"] if "data=table" in arguments else []
        with pytest.raises(CrystalVAEError, match=message):
            evaluate(compose("evaluate", *arguments, *data))


def test_sample_is_deterministic_and_complete(trained: Path, tmp_path: Path):
    checkpoint = trained / "checkpoints" / "best.ckpt"
    for run, name, seed in ((command, "a", 1), (in_process, "b", 1), (in_process, "c", 2)):
        run(
            "sample", f"ckpt_path={checkpoint}", "num_samples=12", f"output_dir={name}", f"seed={seed}",
            "formats=[cif,extxyz]", cwd=tmp_path,
        )  # fmt: skip
    files = {name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc"}
    info = {name: json.loads(content.pop("samples.json"))["info"] for name, content in files.items()}
    assert all(entry.pop("seconds") > 0 for entry in info.values())  # all but this is the same byte for byte
    assert info["a"] == info["b"] != info["c"]
    assert files["a"] == files["b"] != files["c"]
    assert {f"{number:04d}.cif" for number in range(12)} | {"samples.csv", "samples.extxyz"} <= set(files["a"])
    table = pd.read_csv(tmp_path / "a" / "samples.csv", dtype={"id": str})
    assert table["id"].tolist() == [f"{number:04d}" for number in range(12)]
    assert set(table["atoms"]) <= {2, 3}
    with pytest.raises(CrystalVAEError, match="overwrite=true"):
        in_process("sample", f"ckpt_path={checkpoint}", "output_dir=a", cwd=tmp_path)


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("sample", "+num_sample=3", "num_sample: the command has no such key; did you mean num_samples?"),
        ("train_vae", "+vae_modul.latent_dim=3", "vae_modul: the command has no such key; did you mean vae_module?"),
        ("evaluate", "+zzz=1", "zzz: the command has no such key; expected one of address, backend"),
        ("evaluate", "+validity.min_contct=1", "did you mean validity.min_contact?"),
        ("sample", "+relaxation.steps=1", "relaxation.steps: the command has no such key; "),
        ("sample", "num_sample=3", "num_sample: the command has no such key; did you mean num_samples?"),
        ("train_vae", "vae_module.latent_dims=4", "did you mean vae_module.latent_dim?"),
    ],
)
def test_keys_that_no_command_reads_are_refused(tmp_path: Path, name: str, argument: str, message: str):
    done = command(name, argument, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["num_samples=0"], "num_samples: got 0"),
        (["num_samples=-5"], "num_samples: got -5"),
        (["num_samples=many"], "num_samples: got 'many'"),
        (["composition=LiF"], "predicts the elements itself"),
        (["temperature=-1"], "temperature: got -1"),
        (["num_atoms=0"], "num_atoms: got 0"),
        (["num_atoms=[2,3]"], "expected one each"),
        (["formats=[cif,pdb]"], "formats: got"),
        (["formats=5"], "formats: got 5"),
        (["device=quantum"], "device: got 'quantum'"),
        (["output_dir=/proc/nothing/here"], "output_dir=/proc/nothing/here"),
        (["ckpt_path=missing.ckpt"], "no such checkpoint"),
    ],
)
def test_bad_requests_are_one_paragraph(trained: Path, tmp_path: Path, monkeypatch, arguments, expected):
    from crystalvae.commands.sample import sample

    monkeypatch.chdir(tmp_path)
    given = [f"ckpt_path={trained / 'checkpoints' / 'best.ckpt'}", "output_dir=out", *arguments]
    with pytest.raises(CrystalVAEError) as caught:
        sample(compose("sample", given))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("formula", ["Xx2", "Li0", "Li0.5Fe", "", "Li(", "LiFePO99999"])
def test_bad_compositions_are_named(formula):
    from crystalvae.data.composition import parse_composition
    from crystalvae.errors import ConfigError

    with pytest.raises(ConfigError, match="composition="):
        parse_composition(formula)


def test_structure_prediction_keeps_the_composition(table: Path, tmp_path: Path, monkeypatch):
    from samples import tiny_config

    from crystalvae.commands.sample import sample
    from crystalvae.vae_module import VAEModule

    module = VAEModule(**tiny_config(atom_type_predict=False))
    module.statistics = {"num_atoms": {2: 1, 4: 1, 6: 1}}
    module.save_checkpoint(tmp_path / "csp.ckpt")
    options = [f"ckpt_path={tmp_path / 'csp.ckpt'}", f"output_dir={tmp_path / 'out'}", "num_samples=6"]
    sample(compose("sample", [*options, "composition=NaCl"]))
    found = pd.read_csv(tmp_path / "out" / "samples.csv")
    assert set(found["formula"]) == {"NaCl"}
    assert found["atoms"].tolist() == [2, 4, 6, 2, 4, 6]


def test_unseen_atom_count_is_allowed_with_a_warning(trained: Path, tmp_path: Path, caplog):
    from crystalvae.commands.sample import sample

    options = [f"ckpt_path={trained / 'checkpoints' / 'best.ckpt'}", f"output_dir={tmp_path / 'out'}"]
    sample(compose("sample", [*options, "num_samples=2", "num_atoms=11"]))
    assert pd.read_csv(tmp_path / "out" / "samples.csv")["atoms"].tolist() == [11, 11]
    assert "no training crystal has 11 atoms" in caplog.text


def test_unknown_key_is_an_error(tmp_path: Path):
    done = command("train_vae", "vae_module.latent_dims=4", cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "latent_dims" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_stops_training_and_names_the_crystals(table: Path, tmp_path: Path):
    done = command(
        "train_vae", *TINY, f"data.source.data_dir={table}", "trainer.max_epochs=2", "output_dir=run",
        "vae_module.loss_weights.angles=1.0e38", "vae_module.loss_weights.lengths=1.0e38", cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the loss is not finite" in done.stderr
    assert (
        sum(name in done.stderr for name in pd.read_csv(table / "train.csv", keep_default_na=False)["material_id"]) >= 8
    )
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_killed_sampling_leaves_nothing_in_the_way(trained: Path, tmp_path: Path):
    arguments = [
        sys.executable, str(REPOSITORY / "src" / "sample.py"), f"ckpt_path={trained / 'checkpoints' / 'best.ckpt'}",
        "num_samples=20000", "output_dir=out",
    ]  # fmt: skip
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list(tmp_path.glob("out.partial-*/0*.cif")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    in_process("sample", *arguments[2:3], "num_samples=3", "output_dir=out", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(list((tmp_path / "out").glob("*.cif"))) == 3


@pytest.mark.parametrize("value", ["no", "off", "abc", "'false'"])
@pytest.mark.parametrize("name", ["sample", "cluster"])
def test_what_is_not_true_overwrites_nothing(tmp_path: Path, name: str, value: str):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "samples.csv").write_text("mine")
    with pytest.raises(CrystalVAEError, match="expected true or false"):
        in_process(name, "output_dir=out", f"overwrite={value}", cwd=tmp_path)
    assert (tmp_path / "out" / "samples.csv").read_text() == "mine"


def compose(name: str, overrides: list[str]):
    import hydra

    from crystalvae.commands.checked_config import checked

    with hydra.initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return checked(name, hydra.compose(name, overrides))
