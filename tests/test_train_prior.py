"""Training a prior, resuming it and sampling from it, as the commands do it, on a tiny VAE and real crystals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from samples import tiny_config
from test_commands import command, compose, table  # noqa: F401  table is a fixture

from crystalvae.commands.sample import sample
from crystalvae.commands.train_prior import train_prior
from crystalvae.data.canonical import element_order
from crystalvae.errors import ConfigError, CrystalVAEError, DataError
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.vae_module import VAEModule

pytestmark = pytest.mark.filterwarnings("ignore")  # what Lightning says of tiny runs

TINY = [
    "data=table",
    "data.batch_size=8",
    "prior_module.prior.d_model=16",
    "prior_module.prior.nhead=2",
    "prior_module.prior.num_layers=1",
    "prior_module.prior.prediction=x1",
    "prior_module.prior.conditions=[crystal_system,band_gap]",
    "prior_module.prior.composition={d_model:16,nhead:2,num_layers:1,dropout:0.0,max_atoms:12}",
    "prior_module.prior.sampler.steps=4",
    "prior_module.optimizer.lr=0.01",
    "prior_module.scheduler.warmup_steps=2",
    "callbacks.generation.num_samples=16",
    "callbacks.generation.every_n_epochs=2",
    "callbacks.ema.decay=0.9",
    "callbacks.progress_bar=null",
    "logger=csv",
    "trainer.accelerator=cpu",
    "trainer.enable_model_summary=false",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=6",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Iterator[Path]:  # noqa: F811
    """A folder with tiny VAEs: csp.ckpt, given the elements, other.ckpt with other weights, and dng.ckpt."""
    place = tmp_path_factory.mktemp("priors")
    for name, seed, predict in (("csp", 0, False), ("other", 1, False), ("dng", 0, True)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = VAEModule(**tiny_config(atom_type_predict=predict))
        module.statistics = {"num_atoms": {2: 16, 3: 16}, "dataset": "table"}
        module.save_checkpoint(place / f"{name}.ckpt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRYSTALVAE_CACHE_DIR", str(place / "cache"))
        patch.setenv("PL_GLOBAL_SEED", "0")
        yield place


@pytest.fixture(scope="module")
def options(folder: Path, table: Path) -> list[str]:  # noqa: F811
    return [*TINY, f"data.source.data_dir={table}", f"vae_ckpt_path={folder / 'csp.ckpt'}"]


@pytest.fixture(scope="module")
def run(folder: Path, options: list[str]) -> Path:
    """A run of six epochs, through the command itself."""
    done = command("train_prior", *options, "output_dir=run", cwd=folder)
    assert f"crystalvae sample ckpt_path={folder / 'run' / 'checkpoints' / 'best.ckpt'}" in done.stdout
    assert "reconstruct" not in done.stdout
    return folder / "run"


def train(options: list[str], *more: str) -> str:
    with torch.random.fork_rng():
        return train_prior(compose("train_prior", [*options, *more]))


def metrics(run: Path, name: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for path in sorted(run.glob("csv/version_*/metrics.csv")):
        frame = pd.read_csv(path)
        if name in frame:
            rows = frame.dropna(subset=[name])
            found |= dict(zip(rows["step"].astype(int).tolist(), rows[name].tolist(), strict=True))
    return found


def weights(path: Path, part: str = "state_dict") -> dict[str, Any]:
    return torch.load(path, weights_only=True)[part]


def test_training_learns_and_leaves_the_vae_alone(run: Path, folder: Path):
    for name in ("train/flow_loss", "train/composition_nll"):
        losses = list(metrics(run, name).values())
        assert len(losses) == 24
        assert sum(losses[-8:]) < 0.9 * sum(losses[:8]), name
    before = weights(folder / "csp.ckpt")
    for part in ("state_dict", "current_model_state"):
        after = weights(run / "checkpoints" / "last.ckpt", part)
        assert all(torch.equal(after[f"vae_module.{name}"], value) for name, value in before.items())


def test_checkpoint_holds_the_statistics_of_training(run: Path):
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["crystalvae"]["kind"] == "prior"
    assert content["crystalvae"]["statistics"]["num_atoms"] == {2: 16, 3: 16}
    prior = LatentPrior.load_from_checkpoint(run / "checkpoints" / "best.ckpt").prior
    assert float(prior.latent_std.min()) > 0
    assert float(prior.latent_std.max()) != 1.0  # also in the averaged weights, which are those of the checkpoint
    assert float(prior.conditions.mean[1]) == pytest.approx(1.55, abs=1e-4)  # the mean of 0.0 to 3.1 eV
    assert prior.sampler.steps == 4


def test_valid_unique_novel_is_logged_and_chooses_the_checkpoint(run: Path):
    shares = ("vun", "vun_contacts", "valid", "novel", "structure_valid", "contacts_valid")
    found = {name: metrics(run, f"val/{name}") for name in (*shares, "flow_loss")}
    assert all(len(values) == 6 for values in found.values())
    assert all(0 <= value <= 1 for name in shares for value in found[name].values())
    for epoch, value in found["vun_contacts"].items():
        assert value <= min(found["vun"][epoch], found["contacts_valid"][epoch])
    vun = list(found["vun"].values())
    assert vun[0] == vun[1]
    assert vun[2] == vun[3]  # measured every other epoch
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    kept = next(state for name, state in last["callbacks"].items() if name.startswith("ModelCheckpoint"))
    assert kept["monitor"] == "val/vun_contacts"
    assert float(kept["best_model_score"]) == pytest.approx(max(found["vun_contacts"].values()))
    assert "val/vun_contacts" in json.loads((run / "run.json").read_text())["metrics"]


@pytest.mark.parametrize("part", ["flow", "composition"])
def test_one_part_is_trained_and_the_other_stays(part: str, run: Path, folder: Path, options: list[str]):
    before, target = weights(run / "checkpoints" / "last.ckpt"), folder / f"only_{part}"
    more = ["trainer.max_epochs=1", "callbacks.generation=null", "callbacks.checkpoint.monitor=val/loss"]
    start = f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    train(options, *more, start, f"prior_module.trained=[{part}]", f"output_dir={target}")
    after = weights(target / "checkpoints" / "last.ckpt")
    parameters = [
        name for name, _ in LatentPrior.load_from_checkpoint(run / "checkpoints/last.ckpt").named_parameters()
    ]
    of_composition = ("vae_module.prior.composition.", "vae_module.prior.composition_conditions.")
    for name in parameters:
        learns = ("composition" if name.startswith(of_composition) else "flow") == part
        if name.startswith("vae_module.vae.") or not learns:
            assert torch.equal(after[name], before[name]), name
    changed = {name for name in parameters if not torch.equal(after[name], before[name])}
    assert len(changed) > 10
    losses = {name: list(metrics(target, f"val/{name}").values()) for name in ("loss", "flow_loss", "composition_nll")}
    scale = 1.0 if part == "flow" else 0.1
    assert losses["loss"] == pytest.approx(
        [scale * x for x in losses["flow_loss" if part == "flow" else "composition_nll"]]
    )


@pytest.mark.parametrize("parts", ["[]", "[latents]", "flow"])
def test_parts_that_do_not_exist_are_refused(parts: str, folder: Path, options: list[str]):
    with pytest.raises(ConfigError, match=r"prior_module\.trained.*flow, composition"):
        train(options, f"prior_module.trained={parts}", f"output_dir={folder / 'never'}")


def test_a_composition_model_that_is_not_there_cannot_be_trained(folder: Path, options: list[str]):
    more = ["prior_module.prior.composition=null", "prior_module.trained=[composition]"]
    with pytest.raises(ConfigError, match="has no composition model"):
        train(options, *more, f"output_dir={folder / 'never'}")


def test_monitor_measures_what_the_seeded_samples_are_worth(run: Path, table: Path):  # noqa: F811
    """The number logged last can be had again from the checkpoint: same seed, same samples."""
    from crystalvae import read_crystals
    from crystalvae.data.batch import CrystalBatch
    from crystalvae.data.canonical import canonical
    from crystalvae.evaluation.novelty.train_index import TrainIndex
    from crystalvae.evaluation.novelty.uniqueness import valid_unique_novel

    train = canonical(read_crystals(table / "train.csv", niggli=True).crystals)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(train), (16,), generator=generator)
    module = LatentPrior.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    crystals = module.sample(CrystalBatch.empty(train.num_atoms[rows]), generator=generator)
    shares = valid_unique_novel(crystals, TrainIndex(train)).shares()
    logged = metrics(run, "val/vun_contacts")
    chosen = max(logged, key=lambda epoch: (logged[epoch], -epoch))  # the first of the best
    assert shares["vun"] == pytest.approx(metrics(run, "val/vun")[chosen])


def test_stopped_training_resumes_where_it_was(
    run: Path, options: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    original = LatentPrior.on_train_epoch_start

    def stop(self: LatentPrior) -> None:
        if self.current_epoch == 3:
            raise RuntimeError("stopped")
        original(self)

    other = f"output_dir={folder / 'stopped'}"
    monkeypatch.setattr(LatentPrior, "on_train_epoch_start", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        train(options, other)
    monkeypatch.setattr(LatentPrior, "on_train_epoch_start", original)
    assert "finished after 6 epochs" in train(options, other, f"resume_from={folder / 'stopped'}")
    assert sorted(element_order().tolist()) == list(range(100))  # averaging weights left it alone
    expected, got = metrics(run, "train/loss"), metrics(folder / "stopped", "train/loss")
    assert got == {step: pytest.approx(loss, rel=1e-4) for step, loss in expected.items()}
    assert metrics(folder / "stopped", "val/vun") == metrics(run, "val/vun")
    first, second = (weights(entry / "checkpoints" / "last.ckpt") for entry in (run, folder / "stopped"))
    # An attention's key bias has no gradient but rounding errors, which Adam blows up to whole steps.
    compared = [name for name in first if not name.endswith("in_proj_bias")]
    assert len(compared) > 50
    for name in compared:
        torch.testing.assert_close(second[name], first[name], rtol=1e-3, atol=1e-5)
    with pytest.raises(ConfigError, match=r"resume_from=.*prior_module\.prior is .*d_model"):
        train(options, f"resume_from={run}", "prior_module.prior.d_model=32")


def test_a_run_over_another_vae_is_not_resumed(run: Path, options: list[str], folder: Path):
    with pytest.raises(ConfigError, match=r"resume_from=.*another VAE.*repeat vae_ckpt_path"):
        train([*options[:-1], f"vae_ckpt_path={folder / 'other.ckpt'}"], f"resume_from={run}")


def test_fine_tuning_takes_the_prior_and_keeps_the_vae_that_was_named(run: Path, options: list[str], folder: Path):
    start = run / "checkpoints" / "best.ckpt"
    still = ["prior_module.optimizer.lr=0.0", "trainer.max_epochs=1", f"output_dir={folder / 'tuned'}"]
    train([*options[:-1], f"vae_ckpt_path={folder / 'other.ckpt'}"], f"ckpt_path={start}", *still)
    tuned = weights(folder / "tuned/checkpoints/last.ckpt", "current_model_state")
    before = weights(start)
    named = LatentPrior.load_from_checkpoint(start).named_parameters()
    parameters = [name for name, _ in named if name.startswith("vae_module.prior")]
    assert len(parameters) > 20
    assert all(torch.equal(tuned[name], before[name]) for name in parameters)
    vae = weights(folder / "other.ckpt")
    assert all(torch.equal(tuned[f"vae_module.{name}"], value) for name, value in vae.items())
    assert not torch.equal(tuned["vae_module.prior.latent_mean"], before["vae_module.prior.latent_mean"])


def test_a_prior_can_be_trained_on_the_vae_inside_another(run: Path, options: list[str], folder: Path):
    more = ["trainer.max_epochs=1", f"output_dir={folder / 'again'}", "callbacks.generation=null"]
    more += ["callbacks.checkpoint.monitor=val/flow_loss", "callbacks.checkpoint.mode=min"]
    train([*options[:-1], f"vae_ckpt_path={run / 'checkpoints' / 'best.ckpt'}"], *more)
    vae = weights(folder / "csp.ckpt")
    again = weights(folder / "again/checkpoints/best.ckpt")
    assert all(torch.equal(again[f"vae_module.{name}"], value) for name, value in vae.items())


def test_a_prior_over_latents_that_hold_the_elements(options: list[str], folder: Path):
    more = ["trainer.max_epochs=2", f"output_dir={folder / 'dng'}", "prior_module.prior.composition=null"]
    more += ["prior_module.prior.prediction=velocity", "prior_module.prior.sampler.solver=heun"]
    train([*options[:-1], f"vae_ckpt_path={folder / 'dng.ckpt'}"], *more)
    output = folder / "dng_samples"
    base = [f"ckpt_path={folder / 'dng/checkpoints/best.ckpt'}", f"output_dir={output}", "num_samples=10"]
    sample(compose("sample", [*base, "chemical_system=Na-Cl"]))
    systems = [set(formula.translate(str.maketrans("", "", "0123456789"))) for formula in _formulas(output)]
    assert all(system <= set("NaCl") for system in systems)
    with pytest.raises(ConfigError, match="predicts the elements itself"):
        sample(compose("sample", [*base, "overwrite=true", "composition=NaCl"]))


def _formulas(output: Path) -> list[str]:
    return pd.read_csv(output / "samples.csv", keep_default_na=False)["formula"].tolist()


def test_samples_of_the_best_checkpoint_are_as_asked(run: Path, folder: Path):
    base = [f"ckpt_path={run / 'checkpoints' / 'best.ckpt'}", "num_samples=12", "device=cpu"]
    asked = ["conditions.crystal_system=cubic", "conditions.band_gap=1.5", "sampler.guidance_scale=2.0"]
    system = ["chemical_system=Li-Na-O", "batch_size=5"]
    for name in ("one", "two"):
        told = sample(compose("sample", [*base, *asked, *system, f"output_dir={folder / name}"]))
        assert "sampled from learned prior" in told
    files = [{path.name: path.read_bytes() for path in (folder / name).iterdir()} for name in ("one", "two")]
    assert {key: value for key, value in files[0].items() if key != "samples.json"} == {
        key: value for key, value in files[1].items() if key != "samples.json"
    }
    assert set(_formulas(folder / "one")) == {"NaLiO"}
    assert pd.read_csv(folder / "one" / "samples.csv")["atoms"].tolist() == [3] * 12  # no room for three in two
    info = json.loads((folder / "one" / "samples.json").read_text())["info"]
    assert info["conditions"] == {"crystal_system": "cubic", "band_gap": 1.5}
    assert info["sampler"] == {"guidance_scale": 2.0}
    assert info["latents"] == "learned prior"
    sample(compose("sample", [*base, *system, "chemical_system_subsets=true", f"output_dir={folder / 'subsets'}"]))
    assert set(pd.read_csv(folder / "subsets" / "samples.csv")["atoms"]) == {2, 3}
    sample(compose("sample", [*base, "composition=NaCl", f"output_dir={folder / 'salt'}"]))
    assert set(_formulas(folder / "salt")) == {"NaCl"}
    plain = sample(compose("sample", [*base, f"output_dir={folder / 'plain'}"]))
    assert plain.startswith("12 crystals")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["conditions.space_group=225"], "conditions.space_group: the model was not trained on it; it knows crystal_"),
        (["conditions.crystal_system=round"], "conditions.crystal_system: got 'round'; expected one of triclinic"),
        (["+conditions.hardness=3.0"], "conditions.hardness: the model was not trained on it"),
        (["conditions=cubic"], "conditions: got 'cubic'; expected names with values"),
        (["sampler.steps=0"], "sampler.steps: got 0"),
        (["sampler.solver=rk4"], "sampler.solver: got 'rk4'"),
        (["sampler.solver=heun", "sampler.stochasticity=0.5"], "set stochasticity=0 or solver=euler"),
        (["sampler.stochasticity=2"], "sampler.stochasticity: got 2"),
        (["+sampler.step=3"], "sampler.step: the command has no such key; did you mean sampler.steps?"),
        (["temperature=0.5"], "temperature: got 0.5"),
        (["chemical_system=Li-Xx"], "chemical_system: 'Xx' is not an element"),
        (["chemical_system=Li-Na-K-O"], "4 elements, but the training crystals have at most 3 atoms"),
        (["chemical_system=Li-Na-O", "num_atoms=2"], "3 elements do not fit into 2 atoms"),
        (["chemical_system=Li-O", "composition=LiO"], "exclude each other"),
        (["chemical_system=Li-O", "chemical_system_subsets=3"], "chemical_system_subsets: got 3"),
        (["num_atoms=13"], "13 atoms in a crystal; the composition model was built for at most 12"),
        (["composition=InF"], "read as a number; quote it twice"),
        (["composition=LiFeP04"], "an amount that starts with 0; is it the letter O"),
        (["formula_units=2"], "formula_units: only has a meaning together with composition="),
    ],
)
def test_requests_that_cannot_be_met_are_one_paragraph(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str,
    without_type_checks: None,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    best = run / "checkpoints" / "best.ckpt"
    with pytest.raises(CrystalVAEError) as caught:
        sample(compose("sample", [f"ckpt_path={best}", "output_dir=out", "num_samples=3", *arguments]))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_needs_a_prior_is_refused_for_a_vae(folder: Path, tmp_path: Path):
    base = [f"ckpt_path={folder / 'dng.ckpt'}", f"output_dir={tmp_path / 'out'}"]
    for asked in ("sampler.steps=5", "chemical_system=Li-O", "chemical_system_subsets=true"):
        with pytest.raises(ConfigError, match=r"needs a learned prior, which this checkpoint does not hold"):
            sample(compose("sample", [*base, asked]))
    with pytest.raises(ConfigError, match=r"conditions: got crystal_system; this model was trained without any"):
        sample(compose("sample", [*base, "conditions.crystal_system=cubic"]))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["prior_module.prior.conditions=[hardness]"],
            "no 'hardness'; expected some of band_gap, chemical_system, composition, crystal_system",
        ),
        (["data.canonical=false"], "no 'crystal_system'; expected some of band_gap"),
        (["vae_ckpt_path={folder}/dng.ckpt"], "the VAE decodes elements from its latents; set composition=null"),
        (["vae_ckpt_path={folder}/missing.ckpt"], "missing.ckpt: no such checkpoint"),
        (["ckpt_path={folder}/csp.ckpt"], "'vae' model; expected 'prior'"),
        (["ckpt_path={folder}/csp.ckpt", "resume_from={folder}"], "resume_from and ckpt_path exclude each other"),
        (["prior_module.prior.prediction=noise"], "prior.prediction: got 'noise'"),
        (["prior_module.prior.conditions=band_gap"], "conditions: got 'band_gap'; expected a list of names"),
        (["prior_module.prior.conditions=[band_gap,band_gap]"], "expected each once"),
        (["prior_module.prior.dim_feedforward=0"], "prior.dim_feedforward: got 0"),
        (["prior_module.prior.composition.num_layers=0"], "composition.num_layers: got 0"),
        (["trainer.max_epochs=-1", "trainer.max_time=00:00:01:00"], "prior_module.scheduler: has to know how many"),
        (["resume_from={folder}/run", "prior_module/optimizer=adamw"], "prior_module.optimizer is"),
        (["resume_from={folder}/run", "prior_module.trained=[flow]"], "prior_module.trained is"),
        (["output_dir={folder}/run"], "holds another run; continue it with resume_from="),
        (["output_dir={folder}/other_run"], "holds another run; continue it with resume_from="),
        (["overwrite=yes_please"], "overwrite: got 'yes_please'; expected true or false"),
        (["prior_module.prior.composition.max_atoms=2"], "3 atoms in a crystal.*prior_module.prior.composition.max_at"),
        (["callbacks.generation.num_samples=0"], "callbacks.generation: got num_samples 0"),
        (["prior_module.condition_dropout.all=3"], "all is 3; expected a share"),
        (["prior_module.optimizer=null"], "prior_module.optimizer: got null"),
    ],
)
def test_training_that_cannot_be_says_why(
    options: list[str],
    folder: Path,
    run: Path,
    tmp_path: Path,
    arguments: list[str],
    expected: str,
    without_type_checks: None,
):
    (folder / "other_run" / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "other_run" / "checkpoints" / "best.ckpt").touch()  # of whatever origin: training would replace it
    arguments = [entry.format(folder=folder) for entry in arguments]
    given = [entry for entry in options if not any(entry.split("=")[0] == new.split("=")[0] for new in arguments)]
    with pytest.raises((ConfigError, CrystalVAEError, DataError), match=expected):
        train(given, f"output_dir={tmp_path / 'run'}", "trainer.max_epochs=1", *arguments)


def test_a_prior_of_structures_alone_is_measured_on_the_compositions_of_the_training_set(
    options: list[str], tmp_path: Path
):
    given = [entry for entry in options if not entry.startswith("prior_module.prior.composition=")]
    train(given, f"output_dir={tmp_path / 'run'}", "trainer.max_epochs=2", "prior_module.prior.composition=null")
    assert metrics(tmp_path / "run", "val/vun_contacts")


def test_a_run_is_replaced_where_that_is_said(run: Path, options: list[str], tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    given = [f"output_dir={tmp_path / 'run'}", "trainer.max_epochs=1", "callbacks.checkpoint=null"]
    message = train(options, *given, "overwrite=true")
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    assert "checkpoint:" not in message
    assert json.loads((tmp_path / "run" / "run.json").read_text())["epochs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("conditions", ["[]", "[crystal_system]"])
def test_two_processes_give_the_losses_of_one(options: list[str], tmp_path: Path, conditions: str):
    common = [entry for entry in options if "conditions" not in entry and "batch_size" not in entry]
    common += [f"prior_module.prior.conditions={conditions}", "trainer.max_epochs=2"]
    command("train_prior", *common, "data.batch_size=8", "output_dir=one", cwd=tmp_path)
    ddp = ["trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=4"]
    command("train_prior", *common, *ddp, "output_dir=two", cwd=tmp_path)
    one, two = (metrics(tmp_path / name, "train/loss") for name in ("one", "two"))
    assert two == {step: pytest.approx(loss, rel=1e-3) for step, loss in one.items()}
    assert metrics(tmp_path / "two", "val/vun").keys() == metrics(tmp_path / "one", "val/vun").keys()
