"""Diffusion over latents: parity with the published model, its steps against closed forms, training, conversion."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from crystalvae.checkpoints import format as checkpoints
from crystalvae.checkpoints.chemeleon2 import read_inert
from crystalvae.checkpoints.chemeleon2_diffusion import convert_diffusion, plain_value
from crystalvae.commands.main import main
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import CheckpointError, ConfigError
from crystalvae.prior_module.diffusion import (
    DiffusionSamplerOptions,
    NoiseSchedule,
    ddim_step,
    ddpm_step,
    denoise,
    diffusion_losses,
)
from crystalvae.prior_module.latent_diffusion import JointConditions, LatentDiffusion
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.vae_module.latent_source import DrawOptions
from crystalvae.vae_module.vae_module import VAEModule
from tests.samples import random_crystals, tiny_config

SMALL = {
    "_target_": "crystalvae.prior_module.latent_diffusion.LatentDiffusion",
    "d_model": 16,
    "nhead": 2,
    "num_layers": 2,
}


@pytest.fixture(scope="module")
def facts(parity_dir: Path) -> dict[str, Any]:
    return torch.load(parity_dir / "chemeleon2_ldm.expected.pt", weights_only=True)


@pytest.fixture(scope="module")
def published(parity_dir: Path) -> VAEModule:
    content = checkpoints.read(
        parity_dir / "chemeleon2_ldm.ckpt", plain_data_only=False, vae=parity_dir / "chemeleon2_dng.ckpt"
    )
    meta = checkpoints.check_metadata(content, "prior")
    return checkpoints.rebuild(LatentPrior, meta["config"], content["state_dict"]).eval().vae_module


def small(*, seed: int = 0, **options: Any) -> LatentDiffusion:
    torch.manual_seed(seed)
    prior = LatentDiffusion(
        latent_dim=4, elements_given=False, **{k: v for k, v in SMALL.items() if k != "_target_"}, **options
    )
    for parameter in prior.parameters():  # zeros would make every output zero
        torch.nn.init.normal_(parameter, std=0.2)
    return prior.eval()


# ---- the published model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [0, 17, 500, 999])
def test_the_network_computes_what_the_published_one_does(published: VAEModule, facts: Any, time: int) -> None:
    given, network = facts["inputs"], published.prior.denoiser
    with torch.no_grad():
        output = network(given["noise"], torch.full((len(given["noise"]),), float(time)), None, given["mask"])
    assert torch.allclose(torch.cat(output, dim=1), facts["expected"][f"denoiser,t={time}"], atol=1e-5)


def test_fewer_steps_are_those_of_the_published_process(facts: Any) -> None:
    process = NoiseSchedule.linear().with_steps(20, "ddim")
    assert torch.equal(process.timesteps, facts["expected"]["ddim_timesteps"])
    assert torch.allclose(process.betas, facts["expected"]["betas_of_the_steps"], atol=1e-12)


def test_latents_follow_the_published_path(published: VAEModule, facts: Any) -> None:
    """Deterministic DDIM needs no padding: crystals of all sizes go their own ways to the same latents."""
    counts, mask = facts["inputs"]["num_atoms"], facts["inputs"]["mask"]
    crystals, prior = CrystalBatch.empty(counts), published.prior
    process = prior.schedule.with_steps(20, "ddim")
    x = facts["inputs"]["noise"][mask]
    with torch.no_grad():
        for done, step in enumerate(reversed(range(20))):
            time = torch.full((len(counts),), int(process.timesteps[step]))
            noise, _ = prior.predict(x, time, crystals, {})
            x, _ = ddim_step(process, step, x, noise, eta=0.0)
            assert torch.allclose(x, facts["expected"]["ddim20,eta=0"][done][mask], atol=1e-4)
        decoded = published.vae.decode(x * prior.latent_std, crystals).to_mapping()
    expected = facts["expected"]["decoded"]
    assert torch.allclose(decoded["frac_coords"], expected["frac_coords"], atol=1e-4)
    assert torch.allclose(decoded["atom_types"], expected["atom_types"], atol=1e-4)
    assert torch.allclose(decoded["lattices"], expected["lattices"], atol=1e-4)


def test_the_whole_sampler_ends_where_the_published_one_does(published: VAEModule, facts: Any) -> None:
    mask, noise = facts["inputs"]["mask"], facts["inputs"]["noise"]
    crystals = CrystalBatch.empty(facts["inputs"]["num_atoms"])

    def predict(x: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return published.prior.predict(x, torch.full((len(crystals),), step), crystals, {})

    def none() -> torch.Tensor:
        raise AssertionError("eta = 0 renews no noise")

    with torch.no_grad():
        options = DiffusionSamplerOptions(steps=20, eta=0.0)
        latents = denoise(predict, noise[mask], published.prior.schedule, options, none)
    assert torch.allclose(latents, facts["expected"]["ddim20,eta=0"][-1][mask], atol=1e-4)


def test_an_ancestral_step_has_the_published_mean_and_variance(published: VAEModule, facts: Any) -> None:
    given, expected = facts["inputs"], facts["expected"]["ddpm,t=500"]
    shape, schedule = given["noise"].shape, published.prior.schedule
    with torch.no_grad():
        noise, v = published.prior.denoiser(given["noise"], torch.full((shape[0],), 500.0), None, given["mask"])
    x, noise, v = (part.flatten(0, 1) for part in (given["noise"], noise, v))
    mean, log_variance = ddpm_step(schedule, 500, x, noise, v)
    clean = schedule.clean(x, noise, torch.full((len(x),), 500))
    assert torch.allclose(mean.view(shape), expected["mean"], atol=1e-4)
    assert torch.allclose(log_variance.exp().view(shape), expected["variance"], atol=1e-6)
    assert torch.allclose(clean.view(shape), expected["pred_xstart"], atol=1e-4)


def test_published_diffusion_samples_crystals(parity_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = VAEModule.load_from_checkpoint(parity_dir / "chemeleon2_ldm.ckpt")
    assert "holds the weights of its VAE but not its settings" in caplog.text
    crystals = module.sample(CrystalBatch.empty([3, 5]), sampler={"steps": 10, "eta": 0.0})
    assert crystals.num_atoms.tolist() == [3, 5]
    assert isinstance(LatentPrior.load_from_checkpoint(parity_dir / "chemeleon2_ldm.ckpt").prior, LatentDiffusion)
    with pytest.raises(CheckpointError, match="weights_only"):
        VAEModule.load_from_checkpoint(parity_dir / "chemeleon2_ldm.ckpt", weights_only=True)


def test_convert_writes_plain_data_that_loads_alone(
    parity_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = SimpleNamespace(statistics={"dataset": "mp_20", "num_atoms": {3: 2, 5: 1}})
    monkeypatch.setattr("crystalvae.commands.convert.data_module", lambda name, seed: known)
    target = tmp_path / "ours.ckpt"
    main(
        ["convert", f"ckpt_path={parity_dir / 'chemeleon2_ldm.ckpt'}", f"output={target}",
         f"vae_ckpt_path={parity_dir / 'chemeleon2_dng.ckpt'}", "dataset=mp_20"]
    )  # fmt: skip
    module = VAEModule.load_from_checkpoint(target, weights_only=True)
    assert module.vae.encoder.transformer.layers[0].self_attn.nhead == 4, "the VAE's own settings, not the usual ones"
    assert module.statistics["num_atoms"] == {3: 2, 5: 1}
    with pytest.raises(SystemExit):
        main(["convert", f"ckpt_path={target}", f"output={tmp_path / 'again.ckpt'}"])


def test_omegaconf_placeholders_become_plain(parity_dir: Path) -> None:
    settings = read_inert(parity_dir / "chemeleon2_ldm.ckpt")["hyper_parameters"]
    assert plain_value(settings["augmentation"]) == {"translate": True, "rotate": True}


def test_published_conditions_come_along(parity_dir: Path) -> None:
    """Weights and statistics of numbers, classes and elements get their places by name."""
    content = read_inert(parity_dir / "chemeleon2_ldm.ckpt")
    kinds = {"gap": ("float", 1), "phase": ("categorical", 3), "formula": ("composition", 100)}
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    added = {"proj.0.weight": normal(48, 144), "proj.0.bias": normal(48), "proj.2.weight": normal(48, 48),
             "proj.2.bias": normal(48)}  # fmt: skip
    for name, (_, width) in kinds.items():
        shapes = {"0.weight": (48, width), "0.bias": (48,), "2.weight": (48, 48), "2.bias": (48,)}
        added |= {f"encoders.{name}.embedding.{key}": normal(*shape) for key, shape in shapes.items()}
        added[f"encoders.{name}.null_embed"] = normal(1, width)
    content["state_dict"] |= {f"condition_module.{name}": value for name, value in added.items()}
    content["hyper_parameters"]["condition_module"] = {
        "condition_type": {name: kind for name, (kind, _) in kinds.items()},
        "num_classes": 3, "stats": {"gap": {"mean": 2.0, "std": 0.5}},
    }  # fmt: skip
    found = convert_diffusion(parity_dir / "chemeleon2_ldm.ckpt", content, vae=parity_dir / "chemeleon2_dng.ckpt")
    prior = checkpoints.rebuild(LatentPrior, found.config, found.weights).prior
    assert prior.names == ["gap", "phase", "composition"]
    values = {
        "gap": torch.tensor([3.0]), "phase": torch.tensor([2.0]), "composition": torch.full((1, 100), torch.nan)
    }  # fmt: skip

    def network(name: str, inputs: torch.Tensor) -> torch.Tensor:
        first, second = (
            (added[f"encoders.{name}.embedding.{key}.weight"], added[f"encoders.{name}.embedding.{key}.bias"])
            for key in (0, 2)
        )
        return F.linear(F.silu(F.linear(inputs, *first)), *second)

    inputs = [torch.tensor([[2.0]]), torch.tensor([[0.0, 0.0, 1.0]]), added["encoders.formula.null_embed"]]
    side_by_side = torch.cat([network(name, given) for name, given in zip(kinds, inputs, strict=True)], dim=-1)
    hidden = F.silu(F.linear(side_by_side, added["proj.0.weight"], added["proj.0.bias"]))
    expected = F.linear(hidden, added["proj.2.weight"], added["proj.2.bias"])
    with torch.no_grad():
        assert torch.allclose(prior.conditions(values), expected, atol=1e-4)


# ---- the process against closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_gaussian_data_keep_their_marginals(method: str, eta: float) -> None:
    """For data N(0, s²) the best ε̂ is known; what is drawn must have variance s² again."""
    spread = 0.7
    schedule = NoiseSchedule.linear()
    generator = torch.Generator().manual_seed(0)

    def predict(x: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        kept = float(schedule.kept[step])
        return math.sqrt(1 - kept) * x / (kept * spread**2 + 1 - kept), torch.full_like(x, -1.0)

    def fresh() -> torch.Tensor:
        return torch.randn(20_000, 1, generator=generator)

    options = DiffusionSamplerOptions(method=method, steps=250, eta=eta)
    drawn = denoise(predict, fresh(), schedule, options, fresh)
    assert abs(float(drawn.std()) - spread) < 0.03
    assert abs(float(drawn.mean())) < 0.03


def test_marginals_are_kept_when_steps_are_left_out() -> None:
    whole = NoiseSchedule.linear()
    for method, steps in (("ddim", 100), ("ddpm", 37)):
        fewer = whole.with_steps(steps, method)
        assert torch.allclose(fewer.kept, whole.kept[fewer.timesteps])
    assert whole.with_steps(37, "ddpm").timesteps[[0, -1]].tolist() == [0, 999]
    with pytest.raises(ConfigError, match="numbers that work are 143 and 167"):
        whole.with_steps(150, "ddim")


def test_the_bound_is_zero_for_the_truth_and_teaches_variances_alone() -> None:
    schedule, generator = NoiseSchedule.linear(), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 50, 3, generator=generator)
    steps = torch.randint(1, 1000, (50,), generator=generator)
    noisy = schedule.noisy(clean, noise, steps)
    error, bound = diffusion_losses(schedule, clean, noisy, noise, steps, (noise, torch.full_like(noise, -1.0)))
    assert torch.allclose(error, torch.zeros(50))
    assert torch.allclose(bound, torch.zeros(50), atol=1e-4)
    predicted, v = (noise + 0.1).requires_grad_(), torch.zeros_like(noise).requires_grad_()
    diffusion_losses(schedule, clean, noisy, noise, steps, (predicted, v))[1].sum().backward()
    assert predicted.grad is None
    assert v.grad is not None
    assert v.grad.abs().sum() > 0


def test_clean_undoes_noisy() -> None:
    schedule = NoiseSchedule.linear()
    clean, noise = torch.randn(2, 9, 4)
    steps = torch.arange(0, 900, 100)
    assert torch.allclose(schedule.clean(schedule.noisy(clean, noise, steps), noise, steps), clean, atol=1e-3)


# ---- crystals --------------------------------------------------------------------------------------------------------


def test_a_crystal_alone_gives_what_it_gives_in_a_batch() -> None:
    prior = small()
    crystals = CrystalBatch.empty([5, 2, 5, 7])
    x, time = torch.randn(19, 4), torch.tensor([3, 500, 999, 0])
    together = prior.predict(x, time, crystals, {})
    for row, (start, end) in enumerate([(0, 5), (5, 7), (7, 12), (12, 19)]):
        alone = prior.predict(x[start:end], time[row : row + 1], CrystalBatch.empty([end - start]), {})
        for one, part in zip(alone, together, strict=True):
            assert torch.allclose(one, part[start:end], atol=1e-5)


def test_guidance_moves_away_from_the_unknown() -> None:
    prior = small(conditions=["band_gap", "composition"])
    template = CrystalBatch.empty([4]).replace(
        conditions={"band_gap": torch.tensor([2.0]), "composition": torch.full((1, 100), torch.nan)}
    )

    def drawn(**sampler: Any) -> torch.Tensor:
        options = DrawOptions(sampler={"steps": 10, "eta": 0.0, **sampler})
        return prior.draw(template, options=options, generator=torch.Generator().manual_seed(0)).latents

    plain, none = drawn(guidance_scale=1.0), drawn(guidance_scale=0.0)
    assert not torch.allclose(plain, none)
    assert not torch.allclose(drawn(guidance_scale=3.0), plain)
    unknown = template.replace(conditions={**template.conditions, "band_gap": torch.tensor([torch.nan])})
    free = prior.draw(
        unknown, options=DrawOptions(sampler={"steps": 10, "eta": 0.0}), generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(free.latents, none, atol=1e-5)


def test_conditions_standardise_and_know_the_unknown() -> None:
    torch.manual_seed(0)
    joint = JointConditions(names=["band_gap", "crystal_system"], d_model=8)
    joint.fit({"band_gap": torch.tensor([1.0, 3.0, torch.nan]), "crystal_system": torch.tensor([0.0, 1.0, 2.0])})
    assert joint.mean[0] == 2.0
    known = joint({"band_gap": torch.tensor([1.0, torch.nan]), "crystal_system": torch.tensor([3.0, 3.0])})
    assert not torch.allclose(known[0], known[1])
    with pytest.raises(ConfigError, match="band_gap"):
        joint.fit({"band_gap": torch.tensor([torch.nan]), "crystal_system": torch.tensor([0.0])})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2000}, "expected 1 to the 1000"),
        ({"solver": "euler"}, "unknown solver"),
        ({"eta": 2.0}, "eta"),
        ({"method": "pndm"}, "ddim"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_samplers_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small().check(DrawOptions(sampler=options))


def test_elements_cannot_be_given() -> None:
    with pytest.raises(ConfigError, match="decodes elements"):
        LatentDiffusion(latent_dim=4, elements_given=True, d_model=8, nhead=2, num_layers=1)
    with pytest.raises(ConfigError, match="structure prediction"):
        small().draw(random_crystals(), options=DrawOptions(), generator=torch.Generator())


def test_training_learns() -> None:
    """Steps on one batch with the same noise bring its loss down."""
    torch.manual_seed(0)
    module = LatentPrior(vae=tiny_config(), prior=SMALL, optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-2})
    crystals = random_crystals()
    module.fit_statistics(crystals)
    assert float(module.prior.latent_std) != 1.0
    batch = TrainingBatch.whole(crystals)
    first = module.losses(batch, training=False)
    assert set(first) == {"loss", "diffusion_loss", "noise_error", "bound"}
    optimizer = torch.optim.AdamW(module.prior.parameters(), lr=1e-2)
    module.train()
    for _ in range(60):
        optimizer.zero_grad()
        module.losses(batch, training=True)["loss"].backward()
        optimizer.step()
    after = module.eval().losses(batch, training=False)
    assert after["noise_error"].item() < 0.8 * first["noise_error"].item()
