"""Property heads on frozen latents: what they learn, keep and find."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from test_commands import TINY, command, in_process, table  # noqa: F401  table is a fixture

from crystalvae.data.datamodule import CrystalDataModule
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.loader import CrystalLoader
from crystalvae.data.sources import Split
from crystalvae.errors import CheckpointError, ConfigError, CrystalVAEError
from crystalvae.predictor_module.predictor import LatentPredictor
from crystalvae.predictor_module.property_head import PropertyHead
from crystalvae.predictor_module.search import SearchOptions, descend
from crystalvae.vae_module import VAEModule
from tests.samples import assert_same_crystals, random_crystals, tiny_config, tiny_module

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec")
ANOTHER_PART = {
    "_target_": "crystalvae.prior_module.latent_flow.LatentFlow",
    "d_model": 16,
    "nhead": 2,
    "num_layers": 1,
}
HEAD = {"_target_": "crystalvae.predictor_module.property_head.PropertyHead", "d_model": 16, "num_layers": 1}
OPTIMIZER = {"_target_": "torch.optim.AdamW", "lr": 1e-2}
TRANSLATED = {"translate": True, "rotate": False}


def tiny_predictor(*, trained: bool = True, seed: int = 0, vae: dict[str, Any] | None = None, **options: Any) -> Any:
    """A tiny predictor of `energy`, with a VAE whose weights show in its latents."""
    source = tiny_module(augmentation=TRANSLATED, **(vae or {}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = {"head": HEAD, "target": "energy", "optimizer": OPTIMIZER, **options}
        module = LatentPredictor(vae=source.config, **config).eval()
    module.vae_module.load_state_dict(source.state_dict())
    if trained:
        module.head.fit(source.vae.encode(random_crystals()).mode().detach(), torch.tensor([1.0, 3.0]))
    return module


class Volumes:
    """Crystals whose `energy` is the logarithm of their volume an atom, unknown for some."""

    name = "volumes"

    def load(self, split: Split) -> CrystalDataset:
        sizes = tuple(2 + i % 4 for i in range(60 if split == "train" else 20))
        crystals = random_crystals(sizes, seed=len(split))
        energies = (crystals.volumes / crystals.num_atoms).log()
        energies[::10] = math.nan
        return CrystalDataset(
            crystals.replace(properties={"energy": energies}), [f"{split}{i}" for i in range(len(sizes))]
        )


def fit(predictor: LatentPredictor, folder: Path, *, epochs: int = 40) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        use_distributed_sampler=False,
    )
    trainer.fit(predictor, datamodule=CrystalDataModule(source=Volumes(), batch_size=16))
    return trainer


# ---- the head -------------------------------------------------------------------------------------------------------


def test_a_head_sees_atoms_as_a_set_and_no_other_crystal():
    head = PropertyHead(latent_dim=4, elements_given=False, d_model=16, num_layers=2)
    crystals, latents = random_crystals(), torch.randn(14, 4)
    values = head(latents, crystals)
    alone = [head(part, crystals[i]) for i, part in enumerate(latents.split(crystals.num_atoms.tolist()))]
    torch.testing.assert_close(values, torch.cat(alone), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(head(latents[:4].flip(0), crystals[0]), values[:1], atol=1e-5, rtol=1e-4)


def test_a_head_is_told_the_elements_where_the_vae_is():
    crystals, latents = random_crystals((3,)), torch.randn(3, 4)
    other = crystals.replace(atom_types=crystals.atom_types.flip(0) + 1)
    for given in (False, True):
        head = PropertyHead(latent_dim=4, elements_given=given, d_model=16, num_layers=1)
        assert torch.equal(head(latents, crystals), head(latents, other)) is not given
    assert tiny_predictor(vae={"atom_type_predict": False}).head.atom_type_embedder is not None
    assert tiny_predictor().head.atom_type_embedder is None


def test_a_head_is_standardised_by_its_training_set():
    head = PropertyHead(latent_dim=4, elements_given=False, d_model=16, num_layers=1)
    latents, targets = 5.0 + 3.0 * torch.randn(1000, 4), torch.tensor([1.0, 3.0, 5.0])
    head.fit(latents, targets)
    torch.testing.assert_close(head.standardized(latents).mean(0), torch.zeros(4), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(head.standardized(latents).std(0), torch.ones(4), atol=1e-2, rtol=0.0)
    crystals = random_crystals((3,))
    raw = head(latents[:3], crystals)
    torch.testing.assert_close(head.predict(latents[:3], crystals), 3.0 + raw * math.sqrt(8 / 3))


# ---- training -------------------------------------------------------------------------------------------------------


def test_a_predictor_learns_a_property_and_reports_its_error(tmp_path: Path):
    torch.manual_seed(0)
    predictor = tiny_predictor(trained=False)
    before = {name: value.clone() for name, value in predictor.vae_module.state_dict().items()}
    trainer = fit(predictor, tmp_path)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    val = Volumes().load("val").crystals
    known = val.properties["energy"].isfinite()
    truth = val.properties["energy"][known]
    predicted = predictor.predict(val)[known]
    assert metrics["val/mae"] == pytest.approx(float((predicted - truth).abs().mean()), rel=1e-3)
    residual = (predicted - truth).square().sum() / (truth - truth.mean()).square().sum()
    assert metrics["val/r2"] == pytest.approx(1.0 - float(residual), abs=1e-3)
    train = Volumes().load("train").crystals
    errors = (predictor.predict(train) - train.properties["energy"]).abs()
    spread = train.properties["energy"].nan_to_num().std()
    assert float(errors.nanmean()) < 0.5 * float(spread), "better than the mean"
    after = predictor.vae_module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "the VAE is frozen"
    assert predictor.statistics["dataset"] == "volumes"


def test_a_predictor_survives_its_checkpoint_alone(tmp_path: Path):
    torch.manual_seed(0)
    predictor = tiny_predictor(trained=False)
    fit(predictor, tmp_path, epochs=2)
    predictor.save_checkpoint(tmp_path / "predictor.ckpt")
    loaded = LatentPredictor.load_from_checkpoint(tmp_path / "predictor.ckpt")
    crystals = random_crystals()
    torch.testing.assert_close(loaded.predict(crystals), predictor.predict(crystals))
    assert (loaded.target, loaded.statistics) == ("energy", predictor.statistics)
    vae = VAEModule.load_from_checkpoint(tmp_path / "predictor.ckpt", weights_only=True)
    assert_same_crystals(vae.reconstruct_crystals(crystals), predictor.vae_module.reconstruct_crystals(crystals))
    tiny_module().save_checkpoint(tmp_path / "vae.ckpt")
    with pytest.raises(CheckpointError, match="holds a 'vae' model; expected 'predictor'"):
        LatentPredictor.load_from_checkpoint(tmp_path / "vae.ckpt")


def test_crystals_are_encoded_at_several_origins_where_the_vae_was_trained_so():
    predictor, crystals = tiny_predictor(trained=False), Volumes().load("train").crystals
    assert predictor.origins == 4
    predictor.encode_set("train", crystals, origins=3)
    latents, targets = predictor._encoded["train"]
    assert latents.shape == (3, crystals.num_nodes, 4)
    torch.testing.assert_close(latents[0], predictor.vae_module.vae.encode(crystals).mode())
    assert float((latents[1] - latents[0]).abs().mean()) > 1e-3
    assert int(targets.isnan().sum()) == 6
    fixed = tiny_module()
    assert LatentPredictor(vae=fixed.config, head=HEAD, target="energy").origins == 1
    with pytest.raises(
        ConfigError, match=r"predictor.origins: got 2; expected 1, as this VAE was trained at fixed origins"
    ):
        LatentPredictor(vae=fixed.config, head=HEAD, target="energy", origins=2)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": ""}, "predictor.target: got ''; expected the name of a property"),
        ({"noise": -1.0}, "predictor.noise: got -1.0; expected at least 0"),
        ({"origins": 0}, "predictor.origins: got 0; expected a whole number of at least 1"),
        ({"head": {**HEAD, "d_model": 0}}, "predictor.head.d_model: got 0"),
        ({"head": {**HEAD, "dropout": 1.0}}, "predictor.head.dropout: got 1.0"),
        ({"head": {**HEAD, "_target_": "torch.nn.Identity"}}, "its _target_ 'torch.nn.Identity' is none of the parts"),
        ({"head": ANOTHER_PART}, "predictor.head._target_: got LatentFlow; expected a PropertyHead"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        LatentPredictor(**{"vae": tiny_config(augmentation=TRANSLATED), "head": HEAD, "target": "energy", **options})


def test_training_that_cannot_be_says_why(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"predictor.target: these crystals have no property 'gap'; they have energy"):
        fit(tiny_predictor(target="gap"), tmp_path, epochs=1)
    crystals = random_crystals()
    unknown = crystals.replace(properties={"energy": torch.full((4,), math.nan)})
    with pytest.raises(ConfigError, match="energy is known of fewer than two crystals of the val set"):
        tiny_predictor().encode_set("val", unknown, origins=1)
    with pytest.raises(ConfigError, match=r"predictor\.optimizer: got null"):
        fit(tiny_predictor(optimizer=None), tmp_path, epochs=1)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    with pytest.raises(ConfigError, match=r"with trainer\.fit"):
        trainer.fit(tiny_predictor(), CrystalLoader(random_crystals(), batch_size=2, shuffle=True))


def test_a_head_needs_continuous_latents():
    codes = {"_target_": "crystalvae.vae_module.bottlenecks.vq.VQBottleneck", "num_codebooks": 2, "codebook_size": 8}
    predictor = tiny_predictor(trained=False, vae={"bottleneck": codes})
    with pytest.raises(ConfigError, match="a property head: needs a Gaussian latent"):
        predictor.predict(random_crystals())


# ---- search ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> LatentPredictor:
    torch.manual_seed(0)
    predictor = tiny_predictor(trained=False)
    fit(predictor, tmp_path_factory.mktemp("learned"))
    return predictor.eval()


def test_a_descent_moves_predictions_to_the_target_and_the_penalty_holds_them_back(learned: LatentPredictor):
    crystals, head = Volumes().load("val").crystals[:8], learned.head
    start = learned.vae_module.vae.encode(crystals).mode().detach()
    goal = float(head.target_mean - head.target_std)

    def moved(penalty: float) -> tuple[float, float]:
        latents = descend(head, start, start, crystals, goal, SearchOptions(penalty=penalty), 200)
        error = (head.predict(latents, crystals) - goal).abs().mean()
        return float(error), float(head.standardized(latents - start + head.latent_mean).square().mean())

    free, held = moved(1e-3), moved(100.0)
    before = float((head.predict(start, crystals) - goal).abs().mean())
    assert free[0] < 0.2 * before
    assert held[1] < 0.1 * free[1]
    assert held[0] > free[0]
    still = descend(head, start, start, crystals, goal, SearchOptions(learning_rate=0.0), 5)
    torch.testing.assert_close(still, start)


def test_a_search_returns_the_best_of_the_crystals_it_passes(learned: LatentPredictor):
    crystals = Volumes().load("val").crystals[:8]
    found = learned.search(crystals, 2.0, steps=50, project_every=10)
    values = found.properties
    torch.testing.assert_close(values["predicted_before"], learned.predict(crystals))
    torch.testing.assert_close(values["predicted_after"], learned.predict(found), atol=1e-4, rtol=1e-3)
    rebuilt = learned.vae_module.reconstruct_crystals(crystals)
    errors, start = (values["predicted_after"] - 2.0).abs(), (learned.predict(rebuilt) - 2.0).abs()
    assert bool((errors <= start + 1e-4).all())
    assert bool((errors < start - 1e-2).any())
    assert found.num_atoms.tolist() == crystals.num_atoms.tolist()
    assert bool(torch.isfinite(found.lattices).all())
    still = learned.search(crystals, 9.0, learning_rate=0.0)
    assert_same_crystals(still, rebuilt, atol=1e-4)
    assert float(still.properties["latent_distance"].max()) < 1e-6


def test_a_search_keeps_elements_that_are_given():
    predictor = tiny_predictor(vae={"atom_type_predict": False})
    crystals = random_crystals()
    found = predictor.search(crystals, 5.0, steps=20)
    assert found.atom_types.tolist() == crystals.atom_types.tolist()


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": math.nan}, "search: got target nan; expected a finite number"),
        ({"target": "low"}, "search: got target 'low'; expected a finite number"),
        ({"steps": 0}, "search.steps: got 0; expected a whole number of at least 1"),
        ({"penalty": -1.0}, "search.penalty: got -1.0; expected a number of at least 0"),
        ({"learning_rate": math.inf}, "search.learning_rate: got inf"),
        ({"project_every": 0}, "search.project_every: got 0"),
        ({"structures": []}, "structures: got an empty list"),
    ],
)
def test_a_search_says_what_is_wrong(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        tiny_predictor().search(**{"structures": random_crystals(), "target": 1.0, **options})


# ---- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae") / "vae.ckpt"
    module = tiny_module(augmentation=TRANSLATED)
    module.statistics = {"dataset": "table", "num_atoms": {2: 1}, "num_crystals": 1}
    module.save_checkpoint(path)
    return path


def test_train_resume_and_search_from_the_command_line(
    table: Path,  # noqa: F811
    vae_checkpoint: Path,
    tmp_path: Path,
):
    data = ["data=table", f"data.source.data_dir={table}"]
    tiny = [entry for entry in TINY if entry.startswith(("logger", "trainer", "callbacks.progress"))]
    head = ["predictor.head.d_model=16", "predictor.head.num_layers=1", "data.batch_size=8"]
    train = [*data, *tiny, *head, f"vae_ckpt_path={vae_checkpoint}", "predictor.target=band_gap", "output_dir=run"]
    told = command("train_predictor", *train, "trainer.max_epochs=2", cwd=tmp_path).stdout
    assert "crystalvae latent operation=search" in told
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert LatentPredictor.load_from_checkpoint(best).target == "band_gap"
    again = [*train[:-1], "trainer.max_epochs=4", "resume_from=run"]
    assert "finished after 4 epochs" in command("train_predictor", *again, cwd=tmp_path).stdout
    with pytest.raises(CrystalVAEError, match="no property 'gap'; they have band_gap"):
        in_process("train_predictor", *train[:-2], "predictor.target=gap", cwd=tmp_path)
    options = ["operation=search", "ckpt_path=run/checkpoints/best.ckpt", *data, "num_crystals=3", "search.steps=5"]
    told = in_process("latent", *options, "search.target=1.5", "output_dir=found", cwd=tmp_path)
    assert "band_gap 1.5: predicted" in told
    assert len(list((tmp_path / "found").glob("*.cif"))) == 3
