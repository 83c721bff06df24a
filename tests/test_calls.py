"""How people of neighbouring libraries call a VAE: hand-written loops, `forward`, bare tensors, structures, aliases."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.loader import CrystalLoader
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module import DiagonalGaussianDistribution, VAEModule
from crystalvae.vae_module import vae_module as published_place
from tests.samples import SIZES, assert_same_crystals, random_crystals, rock_salt_and_friends, tiny_config, tiny_module

SCHEDULES = "crystalvae.vae_module.objectives.kl_schedules"
ELBO = "crystalvae.vae_module.objectives.elbo.ELBO"
CAPACITY = {
    "_target_": "crystalvae.vae_module.objectives.kl_terms.CapacityELBO",
    "capacity_max": 8.0,
    "capacity_num_iter": 20,
}
WARM_UP = {"_target_": ELBO, "schedule": {"_target_": f"{SCHEDULES}.LinearSchedule", "warmup": 8}}
VQ = {"_target_": "crystalvae.vae_module.bottlenecks.vq.VQBottleneck", "num_codebooks": 2, "codebook_size": 8}
QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
OPTIMIZER = {"_target_": "torch.optim.AdamW", "lr": 3e-3}

TRAINER_TALK = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*batch_size", "ignore:.*no `val_dataloader`"
)


@pytest.fixture
def crystals() -> CrystalBatch:
    return random_crystals()


def learner(**options: Any) -> VAEModule:
    torch.manual_seed(0)
    return VAEModule(
        **tiny_config(loss_weights={"kl": 0.1}, optimizer=OPTIMIZER, augmentation={"translate": True}, **options)
    )


def loader() -> CrystalLoader:
    return CrystalLoader(random_crystals(SIZES * 5, seed=1), batch_size=4, shuffle=True)


# ---- loops written by hand -------------------------------------------------------------------------------------------

LOOPS = {
    "warm-up": {"objective": WARM_UP},
    "warm-up over epochs": {"objective": {**WARM_UP, "schedule_unit": "epoch"}},
    "capacity": {"objective": CAPACITY},
    "constant": {},
    "codebooks": {"bottleneck": VQ},
}


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*batch_size", "ignore:.*no `val_dataloader`"
)
@pytest.mark.parametrize(("name", "clip"), [*((name, None) for name in LOOPS), ("warm-up", 0.5)])
def test_five_steps_by_hand_give_the_weights_that_a_trainer_gives(name: str, clip: float | None, tmp_path: Any) -> None:
    trained, by_hand = learner(**LOOPS[name]), learner(**LOOPS[name])
    quiet: dict[str, Any] = dict.fromkeys(QUIET, False)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", gradient_clip_val=clip, default_root_dir=tmp_path, **quiet)
    trainer.fit(trained, loader())
    assert trainer.global_step == 5
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=3e-3)
    before = {key: value.clone() for key, value in by_hand.state_dict().items()}
    for step, batch in enumerate(loader()):
        by_hand.train_step(batch, optimizer, step, epoch=0, gradient_clip_val=clip)
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(by_hand.state_dict()[key], value, atol=1e-6, rtol=1e-5, msg=key)
    changed = {key for key, value in trained.state_dict().items() if not torch.equal(before[key], value)}
    assert changed
    assert any(".codebooks." in key for key in changed) == (name == "codebooks")


def test_the_kl_weight_follows_the_step_that_is_told(crystals: CrystalBatch) -> None:
    module = learner(objective=WARM_UP)
    for step, expected in ((0, 0.0), (4, 0.05), (8, 0.1), (99, 0.1)):
        losses = module.losses(crystals, step=step, training=True)
        assert float(losses["kl_weight"]) == pytest.approx(expected)
        whole = losses["recon_loss"] + expected * losses["kl_loss"]
        torch.testing.assert_close(losses["loss"], whole)
        torch.testing.assert_close(module.create_loss_fn(step, training=True)(crystals), losses["loss"])


@pytest.mark.parametrize(
    ("objective", "told", "match"),
    [
        (WARM_UP, {}, r"LinearSchedule changes the loss with the step.*give step="),
        (WARM_UP, {"epoch": 3}, r"give step="),
        ({**WARM_UP, "schedule_unit": "epoch"}, {"step": 3}, r"with the epoch.*give epoch="),
        (CAPACITY, {}, r"give step="),
        (CAPACITY, {"beta": 0.5}, r"CapacityELBO changes the loss"),
        ({"_target_": ELBO, "schedule": {"_target_": f"{SCHEDULES}.NoSchedule", "kl_start": 30}}, {}, "give step="),
        (WARM_UP, {"step": -1}, "step: got -1"),
        (WARM_UP, {"step": 0.5}, "step: got 0.5"),
    ],
)
def test_a_loss_that_moves_wants_to_know_the_time(
    objective: dict[str, Any], told: dict[str, Any], match: str, crystals: CrystalBatch, without_type_checks: None
) -> None:
    module = learner(objective=objective)
    for training in (True, False):
        with pytest.raises(ConfigError, match=match):
            module.losses(crystals, training=training, **told)


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*batch_size", "ignore:.*no `val_dataloader`"
)
def test_a_trainer_that_is_done_counts_no_more(tmp_path: Any, crystals: CrystalBatch) -> None:
    module = learner(objective=WARM_UP)
    quiet: dict[str, Any] = dict.fromkeys(QUIET, False)
    L.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(module, loader())
    with pytest.raises(ConfigError, match="give step="):
        module.losses(crystals, training=False)


def test_beta_takes_the_place_of_the_schedule(crystals: CrystalBatch) -> None:
    for module in (learner(objective=WARM_UP), learner()):
        losses = module.losses(crystals, beta=0.75, training=False)
        torch.testing.assert_close(losses["loss"], losses["recon_loss"] + 0.75 * losses["kl_loss"])
    with pytest.raises(ConfigError, match=r"beta: got -1"):
        learner().losses(crystals, beta=-1.0, training=False)


def test_losses_take_crystals_in_any_form(crystals: CrystalBatch) -> None:
    module = learner()
    structures = rock_salt_and_friends()
    batch = CrystalBatch.from_structures(structures)
    expected = module.losses(TrainingBatch.whole(batch), training=False)["loss"]
    for given in (batch, batch.to_pyg(), structures, batch.to_atoms()):
        torch.testing.assert_close(module.losses(given, training=False)["loss"], expected, atol=1e-4, rtol=1e-4)


def test_noise_without_a_seed_is_new_each_time_and_with_a_step_the_steps_own(crystals: CrystalBatch) -> None:
    module = learner()

    def loss(**told: Any) -> float:
        return float(module.losses(crystals, training=True, **told)["loss"].detach())

    torch.manual_seed(3)
    first, second = loss(), loss()
    assert first != second
    torch.manual_seed(3)
    assert loss() == first
    assert loss(step=4) == loss(step=4) != loss(step=5)


def test_training_or_not_is_as_the_module_is(crystals: CrystalBatch) -> None:
    module = learner()
    evaluated = module.losses(crystals, step=1, training=False)["loss"]
    trained = module.losses(crystals, step=1, training=True)["loss"]
    assert float(evaluated.detach()) != float(trained.detach())
    assert float(module.eval().losses(crystals, step=1)["loss"].detach()) == float(evaluated.detach())
    assert float(module.train().losses(crystals, step=1)["loss"].detach()) == float(trained.detach())


# ---- forward ---------------------------------------------------------------------------------------------------------


def test_forward_is_encode_decode_reconstruct(crystals: CrystalBatch) -> None:
    module = tiny_module()
    output = module(crystals)
    posterior = module.encode(crystals)["posterior"]
    torch.testing.assert_close(output.mean, posterior.mean)
    torch.testing.assert_close(output.log_var, posterior.logvar)
    assert torch.equal(output.z, output.mean), "evaluation decodes the mean"
    assert_same_crystals(output.reconstruction, module.reconstruct_crystals(crystals))
    assert list(output) == ["reconstruction", "mean", "log_var", "z", "posterior", "decoded"]
    assert len(output) == 6
    assert all(output[name] is getattr(output, name) for name in output)
    assert dict(**output)["z"] is output.z
    with pytest.raises(KeyError):
        output["colour"]
    output.reconstruction.frac_coords.sum().backward()
    assert module.vae.quant_conv.weight.grad is not None


def test_forward_draws_in_training_and_when_asked(crystals: CrystalBatch) -> None:
    module = tiny_module()

    def z(**options: Any) -> torch.Tensor:
        return module(crystals, generator=torch.Generator().manual_seed(1), **options).z

    drawn = module.encode(crystals)["posterior"].sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(z(deterministic=False), drawn)
    assert torch.equal(module.train()(crystals, deterministic=True).z, module(crystals).mean)
    torch.testing.assert_close(z(), drawn)


def test_forward_of_a_codebook_has_no_variance(crystals: CrystalBatch) -> None:
    output = tiny_module(bottleneck=VQ)(crystals)
    assert output.log_var is None
    assert torch.equal(output.z, output.mean)


# ---- encode, decode --------------------------------------------------------------------------------------------------


def test_encode_takes_structures_and_atoms() -> None:
    module, structures = tiny_module(), rock_salt_and_friends()
    batch = CrystalBatch.from_structures(structures)
    expected = module.encode(batch)["posterior"].mean
    for given in (structures, batch.to_atoms(), batch.to_pyg()):
        torch.testing.assert_close(module.encode(given)["posterior"].mean, expected, atol=1e-4, rtol=1e-4)
    assert module.encode(structures[0])["num_atoms"].tolist() == [8]
    with pytest.raises(ConfigError, match=r"batch: got a str; expected a CrystalBatch"):
        module.encode("NaCl.cif")  # pyright: ignore[reportArgumentType]


def test_a_bare_tensor_is_decoded_with_atom_counts(crystals: CrystalBatch) -> None:
    module = tiny_module()
    encoded = module.encode(crystals)
    z = encoded["posterior"].mode()
    expected = module.decode({**encoded, "x": z})
    for counts in (crystals.num_atoms, list(SIZES)):
        decoded = module.decode(z, num_atoms=counts)
        assert all(torch.equal(decoded[name], value) for name, value in expected.items())
    each = module.decode(z[:6], num_atoms=3)
    assert torch.equal(each["lengths"], module.decode(z[:6], num_atoms=[3, 3])["lengths"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, r"14 latents without atom counts.*num_atoms="),
        ({"num_atoms": [4, 1]}, r"add up to 5; expected 14"),
        ({"num_atoms": 4}, r"num_atoms=4 does not divide 14"),
        ({"num_atoms": 0}, r"num_atoms: got 0"),
    ],
)
def test_a_bare_tensor_that_does_not_say_whose_it_is_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        tiny_module().decode(torch.zeros(14, 4), **options)


def test_decode_says_what_is_wrong_with_the_rest(crystals: CrystalBatch) -> None:
    module = tiny_module()
    with pytest.raises(ConfigError, match="3 numbers per atom; expected the latent dimension 4"):
        module.decode(torch.zeros(14, 3), num_atoms=14)
    encoded = module.encode(crystals)
    with pytest.raises(ConfigError, match="not beside it"):
        module.decode({**encoded, "x": encoded["posterior"].mode()}, num_atoms=crystals.num_atoms)
    given = tiny_module(atom_type_predict=False)
    with pytest.raises(ConfigError, match="atom_types="):
        given.decode(torch.zeros(14, 4), num_atoms=list(SIZES))
    encoded = given.encode(crystals)
    told = given.decode(encoded["posterior"].mode(), num_atoms=list(SIZES), atom_types=crystals.atom_types)
    assert torch.equal(told["lengths"], given.decode({**encoded, "x": encoded["posterior"].mode()})["lengths"])


# ---- distributions, codebooks ----------------------------------------------------------------------------------------


def test_the_distribution_is_where_the_published_code_has_it() -> None:
    assert published_place.DiagonalGaussianDistribution is DiagonalGaussianDistribution


def test_a_deterministic_distribution_is_its_mean() -> None:
    parameters = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    sharp, wide = DiagonalGaussianDistribution(parameters, deterministic=True), DiagonalGaussianDistribution(parameters)
    assert torch.equal(sharp.sample(), wide.mode())
    assert not bool(sharp.std.any())
    assert not bool(sharp.var.any())
    assert sharp.kl().tolist() == [0.0] * 5
    assert not torch.equal(wide.sample(), wide.mode())


@pytest.mark.parametrize("log_variance", [200.0, 1e30, -1e30])
def test_reparameterize_clamps_as_the_distribution_does(log_variance: float) -> None:
    mean, logvar = torch.zeros(3, 4), torch.full((3, 4), log_variance)
    drawn = tiny_module().reparameterize(mean, logvar, generator=torch.Generator().manual_seed(0))
    posterior = DiagonalGaussianDistribution(torch.cat((mean, logvar), dim=-1))
    assert bool(torch.isfinite(drawn).all())
    torch.testing.assert_close(drawn, posterior.sample(torch.Generator().manual_seed(0)))


def test_quantize_gives_codes_their_numbers_and_the_loss(crystals: CrystalBatch) -> None:
    module = tiny_module(bottleneck=VQ)
    bottleneck: Any = module.vae.bottleneck
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    quantized, indices, loss = bottleneck.quantize(vectors)
    torch.testing.assert_close(quantized, bottleneck.codebooks.lookup(indices))
    assert torch.equal(indices, bottleneck.codebooks.nearest(vectors))
    torch.testing.assert_close(loss, 0.25 * (vectors - quantized).square().mean())
    quantized.sum().backward()
    assert vectors.grad is not None
    assert torch.equal(vectors.grad, torch.ones(6, 4)), "straight through"


# ---- sample and walks ------------------------------------------------------------------------------------------------


def test_sample_with_no_number_and_by_name() -> None:
    module = tiny_module()
    module.statistics = {"num_atoms": {3: 1, 5: 2}}
    assert len(module.sample(generator=torch.Generator().manual_seed(0))) == 1
    assert len(module.generate()) == 1
    by_name = module.sample(n_samples=4, generator=torch.Generator().manual_seed(2))
    by_place = module.sample(4, generator=torch.Generator().manual_seed(2))
    assert isinstance(by_name, CrystalBatch)
    assert isinstance(by_place, CrystalBatch)
    assert_same_crystals(by_name, by_place)
    with pytest.raises(ConfigError, match="both batch and n_samples"):
        module.sample(2, n_samples=2)
    with pytest.raises(ConfigError, match=r"unknown temprature; expected some of .*temperature"):
        module.sample(n_samples=2, temprature=0.5)


def test_walks_have_defaults_and_another_name_for_the_range() -> None:
    module, crystal = tiny_module(), random_crystals((3,))
    other = random_crystals((3,), seed=4)
    assert module.interpolate(crystal, other).properties["fraction"].tolist() == pytest.approx(
        [step / 8 for step in range(9)]
    )
    walk = module.latent_traversal(crystal, 1, range_vals=(-1.0, 1.0), steps=3)
    assert walk.properties["offset"].tolist() == [-1.0, 0.0, 1.0]
    assert_same_crystals(walk, module.latent_traversal(crystal, 1, (-1.0, 1.0), steps=3))
    with pytest.raises(ConfigError, match="both range and range_vals"):
        module.latent_traversal(crystal, 1, (-2.0, 1.0), range_vals=(-1.0, 1.0))


def test_crystals_of_different_sizes_are_not_interpolated_and_the_error_says_why() -> None:
    with pytest.raises(ConfigError, match=r"\[3\] and \[4\] atoms.*every atom has a latent of its own"):
        tiny_module().interpolate(random_crystals((3,)), random_crystals((4,)))
