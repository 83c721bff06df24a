"""Training a conditional VAE, resuming it, starting it from another model, and asking it for something."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from samples import tiny_prior, tiny_prior_config
from test_commands import TINY, compose, losses, table  # noqa: F401  table is a fixture

from crystalvae.build import build
from crystalvae.commands.latent import latent
from crystalvae.commands.sample import sample
from crystalvae.commands.sampling import sample_all
from crystalvae.commands.train import train
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.composition import densities
from crystalvae.data.datamodule import CrystalDataModule
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.sampling import SampleRequest
from crystalvae.vae_module import VAEModule

pytestmark = pytest.mark.filterwarnings("ignore")  # what Lightning says of tiny runs

NAMES = "vae_module.condition.names=[crystal_system,density,band_gap]"
CONDITIONAL = [*TINY, "condition=properties", NAMES, "data.canonical=true", "trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("conditional")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRYSTALVAE_CACHE_DIR", str(place / "cache"))
        patch.setenv("PL_GLOBAL_SEED", "0")
        yield place


@pytest.fixture(scope="module")
def options(table: Path) -> list[str]:  # noqa: F811
    return [*CONDITIONAL, f"data.source.data_dir={table}"]


def run_training(options: list[str], output_dir: Path, *more: str) -> Path:
    with torch.random.fork_rng():
        train(compose("train_vae", [*options, f"output_dir={output_dir}", *more]))
    return output_dir


@pytest.fixture(scope="module")
def run(folder: Path, options: list[str]) -> Path:
    """A run of four epochs."""
    return run_training(options, folder / "run", "trainer.max_epochs=4")


@pytest.fixture(scope="module")
def crystals(options: list[str], folder: Path) -> CrystalBatch:
    datamodule: CrystalDataModule = build("data", compose("train_vae", [*options, "output_dir=x"]).data)
    return datamodule.dataset("train").crystals


def test_the_loss_falls_and_the_checkpoint_holds_the_statistics(run: Path, crystals: CrystalBatch):
    found = losses(run)
    assert all(torch.isfinite(torch.tensor(list(found.values()))))
    steps = sorted(found)
    assert sum(found[step] for step in steps[-4:]) < sum(found[step] for step in steps[:4])
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for state in (content["state_dict"], content["current_model_state"]):
        for part in ("encoder", "decoder"):
            mean = state[f"vae.{part}_conditions.embedder.mean"]
            assert float(mean[1]) == pytest.approx(float(densities(crystals).mean()), rel=1e-4)
            assert float(mean[2]) == pytest.approx(float(crystals.properties["band_gap"].mean()), rel=1e-4)


def ask(run: Path, output_dir: Path, *arguments: str) -> pd.DataFrame:
    best = run / "checkpoints" / "best.ckpt"
    options = [f"ckpt_path={best}", f"output_dir={output_dir}", "num_samples=6", "num_atoms=3", "batch_size=4"]
    sample(compose("sample", [*options, *arguments]))
    return pd.read_csv(output_dir / "samples.csv")


def test_conditions_are_asked_for_on_the_command_line(run: Path, tmp_path: Path):
    free = ask(run, tmp_path / "free")
    again = ask(run, tmp_path / "again", "conditions.density=null")
    asked = ask(run, tmp_path / "asked", "conditions.density=30.0", "conditions.crystal_system=cubic")
    assert free.equals(again)
    assert not free["volume"].equals(asked["volume"])
    assert json.loads((tmp_path / "asked" / "samples.json").read_text())["info"]["conditions"] == {
        "crystal_system": "cubic",
        "density": 30.0,
    }
    assert "conditions" not in json.loads((tmp_path / "free" / "samples.json").read_text())["info"]
    each = ask(run, tmp_path / "each", "conditions.density=[30.0,null,30.0,null,30.0,null]")
    assert (each["volume"] == free["volume"]).tolist() == [False, True] * 3


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_each_crystal_gets_its_own_request_whatever_the_batches(batch_size: int):
    module, seen = tiny_prior(conditions=["density", "crystal_system"]).vae_module, {}
    draw = module.prior.draw

    def recorded(crystals: CrystalBatch, **options: Any) -> Any:
        assert bool((crystals.conditions["crystal_system"] == 6.0).all())  # cubic
        seen.update(zip(crystals.num_atoms.tolist(), crystals.conditions["density"].tolist(), strict=True))
        return draw(crystals, **options)

    module.prior.draw = recorded
    asked = {"density": [0.8, None, 0.5], "crystal_system": "cubic"}
    request = SampleRequest(number=3, num_atoms=[8, 2, 5], conditions=asked, batch_size=batch_size)
    assert sample_all(module, request).num_atoms.tolist() == [8, 2, 5]
    assert (seen[8], seen[5]) == pytest.approx((0.8, 0.5))
    assert math.isnan(seen[2])
    with pytest.raises(ConfigError, match=r"conditions\.density: got 2 values for 3 crystals"):
        sample_all(module, replace(request, conditions={"density": [0.8, 0.5]}))


def test_reconstruction_from_the_command_line_tells_what_crystals_are(
    run: Path, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    data = [option for option in options if option.startswith("data")]
    best = run / "checkpoints" / "best.ckpt"
    latent(compose("latent", ["operation=reconstruct", "split=val", f"ckpt_path={best}", "device=cpu", *data]))
    written = pd.read_csv(tmp_path / "latent" / "samples.csv")
    held_out = build("data", compose("train_vae", [*options, "output_dir=x"]).data).dataset("val").crystals
    expected = VAEModule.load_from_checkpoint(best).reconstruct_crystals(held_out)
    assert written["volume"].tolist() == pytest.approx(expected.volumes.tolist(), rel=1e-3)


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ("conditions.space_group=225", r"conditions\.space_group: .*it knows crystal_system, density, band_gap$"),
        ("conditions.crystal_system=round", r"got 'round'; expected one of triclinic, .*cubic$"),
        ("conditions.density=[1.0,2.0]", r"conditions\.density: got 2 values for 6 crystals"),
        ("conditions.band_gap=wide", r"conditions\.band_gap: got 'wide'; expected a number"),
    ],
)
def test_what_the_model_does_not_know_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, argument: str, match: str
):
    with pytest.raises(ConfigError, match=match):
        ask(run, tmp_path / "out", argument)
    assert not list(tmp_path.iterdir())


def test_a_run_resumes_with_the_same_conditions_only(run: Path, folder: Path, options: list[str], tmp_path: Path):
    shorter = run_training(options, tmp_path / "run", "trainer.max_epochs=2")
    before = losses(shorter)
    with pytest.raises(ConfigError, match=r"its vae_module\.condition is"):
        run_training(options, shorter, f"resume_from={shorter}", "vae_module.condition.names=[density]")
    resumed = losses(run_training(options, shorter, f"resume_from={shorter}", "trainer.max_epochs=4"))
    assert set(resumed) == set(losses(run))
    assert {step: resumed[step] for step in before} == before


def test_a_conditional_model_starts_from_an_unconditional_one(
    folder: Path,
    options: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    unconditional = [entry for entry in options if "condition" not in entry]
    plain = run_training(unconditional, folder / "plain", "trainer.max_epochs=1")
    best = plain / "checkpoints" / "best.ckpt"
    run_training(options, tmp_path / "tuned", f"ckpt_path={best}", "trainer.max_epochs=1")
    assert "not used: none" in caplog.text
    new = caplog.text.partition("from scratch: ")[2].partition("; weights of")[0].split(", ")
    assert all(word in name for name in new for word in ["vae."])
    assert not [name for name in new if ".part." in name and "modulation" not in name]


def test_a_condition_that_the_data_do_not_have_lists_what_there_is(options: list[str], tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"no 'hardness'; expected some of band_gap, chemical_system, composition, cry"
    ):
        run_training(options, tmp_path / "run", "vae_module.condition.names=[hardness]")


def test_a_prior_uses_a_conditional_vae_without_its_conditions(crystals: CrystalBatch):
    config: dict[str, Any] = tiny_prior_config(conditions=["crystal_system"])
    config["vae"]["condition"] = {"names": ["density"], "d_model": 8}
    prior = LatentPrior(**config)
    prior.fit_statistics(crystals)
    seen: list[CrystalBatch] = []
    for part in (prior.vae_module.vae.encoder, prior.vae_module.vae.decoder):
        part.register_forward_hook(lambda _, args, __: seen.append(args[-1]))
    prior.losses(TrainingBatch.whole(crystals), training=True)
    prior.eval().sample(CrystalBatch.empty([2, 3]), conditions={"crystal_system": "cubic"})
    assert len(seen) == 2
    assert not [name for batch in seen for name in batch.properties if name.startswith("condition/")]
    with pytest.raises(ConfigError, match=r"conditions\.density: .*it knows crystal_system$"):
        prior.sample(CrystalBatch.empty([2]), conditions={"density": 3.0})
    assert isinstance(prior.vae_module, VAEModule)
