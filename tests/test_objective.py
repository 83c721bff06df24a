"""What training minimises: each part of the loss, its weight, its gradient, and the random views it is taken over."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from crystalvae.data.augmentation import InputNoise, corrupt, rotate, translate
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import minimum_image_distances, periodic_difference, random_rotations
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import TrainingError
from crystalvae.vae_module import DiagonalGaussianDistribution, VAEModule
from crystalvae.vae_module.decoders.transformer import DecodedCrystals
from crystalvae.vae_module.learning_rate import WarmupCosine, warmup_cosine_factor
from crystalvae.vae_module.objectives.elbo import PUBLISHED_WEIGHTS
from crystalvae.vae_module.objectives.reconstruction import check_reductions, reconstruction_losses
from crystalvae.vae_module.reconstruction_errors import check_finite
from tests.samples import SIZES, random_crystals, tiny_module
from tests.test_model import VARIANTS, decoded_like

PARTS = ("atom_types", "frac_coords", "lengths", "angles")


@pytest.fixture
def crystals() -> CrystalBatch:
    return random_crystals()


def parts_of(module: VAEModule, decoded: DecodedCrystals, target: CrystalBatch) -> dict[str, torch.Tensor]:
    options = {"coord_loss": module.objective.coord_loss, "element_loss": "cross_entropy"}
    return reconstruction_losses(
        decoded, target, TrainingBatch.whole(target), reductions=check_reductions(None), **options
    )


def loss(module: VAEModule, batch: CrystalBatch | TrainingBatch, *, training: bool = True) -> dict[str, torch.Tensor]:
    shard = batch if isinstance(batch, TrainingBatch) else TrainingBatch.whole(batch)
    with torch.no_grad():
        return module.losses(shard, training=training)


# ---- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("coord_loss", "circle"), [("periodic", True), ("periodic", False), ("mse", False)])
def test_every_part_is_zero_for_a_perfect_decoder(coord_loss: str, circle: bool, crystals: CrystalBatch) -> None:
    parts = parts_of(tiny_module(coord_loss=coord_loss), decoded_like(crystals, circle=circle), crystals)
    assert set(parts) == set(PARTS)
    for name, value in parts.items():
        assert float(value) == pytest.approx(0.0, abs=1e-6), name


def spoiled(crystals: CrystalBatch, part: str) -> DecodedCrystals:
    """A decoder that errs in one part alone: by 0.1 (of the edge, Å, radians), or in knowing no element at all."""
    perfect = decoded_like(crystals)
    if part == "atom_types":
        assert perfect.atom_logits is not None
        return replace(perfect, atom_logits=torch.zeros_like(perfect.atom_logits))
    if part == "frac_coords":
        moved = decoded_like(crystals.replace(frac_coords=crystals.frac_coords + 0.1))
        return replace(perfect, frac_coords=moved.frac_coords, coord_vectors=moved.coord_vectors)
    name = {"lengths": "lengths_scaled", "angles": "angles"}[part]
    return replace(perfect, **{name: getattr(perfect, name) + 0.1})


@pytest.mark.parametrize("part", PARTS)
def test_each_part_answers_for_its_own_errors(part: str, crystals: CrystalBatch) -> None:
    parts = parts_of(tiny_module(), spoiled(crystals, part), crystals)
    chord = 2 * math.sin(math.pi * 0.1) / (2 * math.pi)  # 0.1 of the circumference, measured straight across
    expected = {"atom_types": math.log(100), "frac_coords": chord**2, "lengths": 0.01, "angles": 0.01}
    for name, value in parts.items():
        assert float(value) == pytest.approx(expected[name] if name == part else 0.0, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("circle", [True, False])
def test_the_two_ends_of_the_cell_are_neighbours(circle: bool) -> None:
    one_atom = random_crystals((1,))
    target = one_atom.replace(frac_coords=torch.full((1, 3), 0.999))
    decoded = decoded_like(one_atom.replace(frac_coords=torch.full((1, 3), 0.001)), circle=circle)
    periodic = parts_of(tiny_module(), decoded, target)["frac_coords"]
    assert float(periodic) == pytest.approx(0.002**2, rel=1e-2)
    if not circle:
        plain = parts_of(tiny_module(coord_loss="mse"), decoded, target)["frac_coords"]
        assert float(plain) == pytest.approx(0.998**2, rel=1e-4)


def test_losses_do_not_depend_on_the_image_of_an_atom(crystals: CrystalBatch) -> None:
    decoded = spoiled(crystals, "frac_coords")
    cells = torch.randint(-2, 3, crystals.frac_coords.shape, generator=torch.Generator().manual_seed(0))
    elsewhere = crystals.replace(frac_coords=crystals.frac_coords + cells)
    for prediction in (decoded, replace(decoded, coord_vectors=None)):
        before, after = (parts_of(tiny_module(), prediction, target) for target in (crystals, elsewhere))
        torch.testing.assert_close(after["frac_coords"], before["frac_coords"], atol=1e-6, rtol=1e-3)


def test_lengths_are_compared_per_cube_root_of_atoms() -> None:
    crystals = random_crystals((8,))
    longer = decoded_like(crystals.replace(lattices=2 * crystals.lattices))
    expected = (crystals.lengths / 2).square().mean()  # 8^(1/3) = 2
    torch.testing.assert_close(parts_of(tiny_module(), longer, crystals)["lengths"], expected)


def test_the_mean_is_over_atoms_and_over_crystals(crystals: CrystalBatch) -> None:
    """The loss of a batch is the mean of its crystals' losses: weighted by atoms where atoms are compared."""
    module = tiny_module()
    together = loss(module, crystals, training=False)
    alone = [loss(module, crystals[i], training=False) for i in range(len(crystals))]
    for name in ("atom_types", "frac_coords", "kl_loss"):
        mean = sum(size * float(part[name]) for size, part in zip(SIZES, alone, strict=True)) / sum(SIZES)
        assert float(together[name]) == pytest.approx(mean, rel=1e-4)
    for name in ("lengths", "angles"):
        assert float(together[name]) == pytest.approx(sum(float(part[name]) for part in alone) / 4, rel=1e-4)


# ---- the sum ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_its_parts(crystals: CrystalBatch) -> None:
    weights = {"atom_types": 0.7, "frac_coords": 3.0, "lengths": 0.2, "angles": 5.0, "kl": 0.03}
    for training in (True, False):
        values = loss(tiny_module(loss_weights=weights), crystals, training=training)
        recon = sum(weights[name] * float(values[name]) for name in PARTS)
        assert float(values["recon_loss"]) == pytest.approx(recon, rel=1e-5)
        assert float(values["loss"]) == pytest.approx(recon + 0.03 * float(values["kl_loss"]), rel=1e-5)
        assert all(float(values[name]) > 1e-3 for name in (*PARTS, "kl_loss"))


def test_published_weights_are_the_default() -> None:
    assert tiny_module().loss_weights == PUBLISHED_WEIGHTS
    assert PUBLISHED_WEIGHTS == {"atom_types": 1.0, "frac_coords": 10.0, "lengths": 1.0, "angles": 10.0, "kl": 1e-5}
    assert tiny_module(loss_weights={"kl": 0.5}).loss_weights == {**PUBLISHED_WEIGHTS, "kl": 0.5}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_weight_of_the_model_learns_from_its_part_of_the_loss(name: str, crystals: CrystalBatch) -> None:
    """With one part weighted at a time, that part's head gets a gradient, and so does the whole way there."""
    heads = {
        "atom_types": "decoder.atom_types_head.weight",
        "frac_coords": "decoder.frac_coords_head.weight",
        "lengths": "decoder.lattice_head.weight",
        "angles": "decoder.lattice_head.weight",
        "kl": "quant_conv.weight",
    }
    way = ("encoder.atom_type_embedder.weight", "encoder.lattices_embedder.0.weight")
    for part, head in heads.items():
        module = tiny_module(**VARIANTS[name], loss_weights={key: float(key == part) for key in PUBLISHED_WEIGHTS})
        if part == "atom_types" and not module.atom_type_predict:
            continue
        module.losses(TrainingBatch.whole(crystals), training=True)["loss"].backward()
        parameters = dict(module.vae.named_parameters())
        for key in (head, *way):
            gradient = parameters[key].grad
            assert gradient is not None, (part, key)
            assert float(gradient.abs().max()) > 0, (part, key)
        rows = parameters["decoder.lattice_head.weight"].grad
        if part in {"lengths", "angles"}:
            assert rows is not None
            own, other = (rows[:3], rows[3:]) if part == "lengths" else (rows[3:], rows[:3])
            assert bool((own.abs().amax(dim=1) > 0).all())
            assert not other.any()


def test_all_parameters_are_trained(crystals: CrystalBatch) -> None:
    for name, options in VARIANTS.items():
        module = tiny_module(**options)
        module.losses(TrainingBatch.whole(crystals), training=True)["loss"].backward()
        idle = [key for key, parameter in module.named_parameters() if parameter.grad is None]
        assert idle == [], name


def test_a_heavier_kl_pulls_posteriors_towards_the_prior(crystals: CrystalBatch) -> None:
    def trained(weight: float) -> float:
        module = tiny_module(loss_weights={"kl": weight}).train()
        optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
        for _ in range(40):
            optimizer.zero_grad()
            module.losses(TrainingBatch.whole(crystals), training=True)["loss"].backward()
            optimizer.step()
        return float(loss(module, crystals, training=False)["kl_loss"])

    before = float(loss(tiny_module(), crystals, training=False)["kl_loss"])
    heavy, light = trained(10.0), trained(0.0)
    assert heavy < 0.5 * before
    assert heavy < 0.5 * light


def test_kl_in_the_loss_is_that_of_the_posterior_per_atom(crystals: CrystalBatch) -> None:
    module = tiny_module()
    with torch.no_grad():
        expected = module.vae.encode(crystals).kl().mean()
    torch.testing.assert_close(loss(module, crystals, training=False)["kl_loss"], expected)


def test_training_draws_latents_and_validation_takes_the_mean(crystals: CrystalBatch) -> None:
    module, batch = tiny_module(), TrainingBatch.whole(crystals, seed=(1, 2, 3))
    with torch.no_grad():
        posterior = module.vae.encode(crystals)
        for training in (False, True):
            noise = torch.randn(crystals.num_nodes, 4, generator=batch.generator()) if training else torch.zeros(14, 4)
            latents = posterior.reparameterize(noise)
            decoded = module.vae.decode(latents, crystals)
            expected = module.objective(
                decoded, crystals, batch, means=posterior.mode(), kl=posterior.kl_per_dimension()
            )
            got = module.losses(batch, training=training)
            for name, value in expected.items():
                torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-5)
    assert float(loss(module, batch)["loss"]) == float(loss(module, batch)["loss"])
    others = [float(loss(module, replace(batch, seed=seed))["loss"]) for seed in ((1, 2, 4), (1, 3, 3), (2, 2, 3))]
    assert len({float(loss(module, batch)["loss"]), *others}) == 4


def test_a_loss_that_is_not_finite_names_its_crystals(crystals: CrystalBatch) -> None:
    module = tiny_module()
    broken = crystals.replace(lattices=crystals.lattices * math.nan)
    batch = replace(TrainingBatch.whole(broken), indices=torch.tensor([17, 5, 3, 99]))
    values = loss(module, batch, training=False)
    with pytest.raises(TrainingError, match=r"not finite.*17, 5, 3, 99"):
        check_finite(values, batch, None)
    check_finite(loss(module, crystals), TrainingBatch.whole(crystals), None)


# ---- random views ----------------------------------------------------------------------------------------------------


def distances(crystals: CrystalBatch, i: int) -> torch.Tensor:
    one = crystals[i]
    return minimum_image_distances(one.lattices[0], one.frac_coords, one.frac_coords)


def test_every_crystal_has_its_own_shift_that_leaves_distances(crystals: CrystalBatch) -> None:
    module = tiny_module(augmentation={"translate": True})
    batch = TrainingBatch.whole(crystals)
    moved = module.augmentation(batch, batch.generator())
    assert bool(((moved.frac_coords >= 0) & (moved.frac_coords < 1)).all())
    shifts = []
    for i in range(len(crystals)):
        one = periodic_difference(moved[i].frac_coords, crystals[i].frac_coords)
        same = periodic_difference(one, one[:1])
        torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-5, rtol=0.0)
        torch.testing.assert_close(distances(moved, i), distances(crystals, i), atol=1e-4, rtol=0.0)
        shifts.append(one[0])
    for i in range(4):
        assert float(shifts[i].abs().max()) > 1e-3
        for j in range(i):
            assert float(periodic_difference(shifts[i], shifts[j]).abs().max()) > 1e-3
    assert torch.equal(moved.lattices, crystals.lattices)


def test_shifts_are_uniform_over_the_cell() -> None:
    many = CrystalBatch.empty([1] * 4000)
    module = tiny_module(augmentation={"translate": True})
    batch = TrainingBatch.whole(many)
    shifts = module.augmentation(batch, batch.generator()).frac_coords
    torch.testing.assert_close(shifts.mean(0), torch.full((3,), 0.5), atol=5 * math.sqrt(1 / 12 / 4000), rtol=0.0)
    torch.testing.assert_close(shifts.var(0), torch.full((3,), 1 / 12), atol=0.01, rtol=0.0)


def test_every_crystal_has_its_own_rotation_that_leaves_distances(crystals: CrystalBatch) -> None:
    module = tiny_module(augmentation={"rotate": True})
    batch = TrainingBatch.whole(crystals)
    turned = module.augmentation(batch, batch.generator())
    rotations = torch.linalg.solve(crystals.lattices, turned.lattices).transpose(1, 2)
    torch.testing.assert_close(rotations @ rotations.transpose(1, 2), torch.eye(3).expand(4, 3, 3), atol=1e-4, rtol=0.0)
    assert bool((torch.linalg.det(rotations) > 0).all())
    for i in range(4):
        torch.testing.assert_close(distances(turned, i), distances(crystals, i), atol=1e-4, rtol=0.0)
        assert all(float((rotations[i] - rotations[j]).abs().max()) > 0.01 for j in range(i))
    torch.testing.assert_close(turned.lengths, crystals.lengths)
    assert torch.equal(turned.frac_coords, crystals.frac_coords)


@pytest.mark.parametrize("lattice_features", ["matrix", "parameters"])
def test_rotations_are_exact_under_autocast(crystals: CrystalBatch, lattice_features: str) -> None:
    encoder = {"lattice_features": lattice_features}
    module = tiny_module(augmentation={"rotate": True, "translate": True}, encoder=encoder)
    batch = TrainingBatch.whole(crystals)
    with torch.autocast("cpu", torch.bfloat16):
        turned = module.augmentation(batch, batch.generator())
        loss = module.losses(batch, training=True)["loss"]
    torch.testing.assert_close(turned.lengths, crystals.lengths)
    assert bool(loss.isfinite())


def test_rotating_turns_cell_vectors_and_atoms_alike(crystals: CrystalBatch) -> None:
    rotations = random_rotations(4, torch.Generator().manual_seed(0))
    turned = rotate(crystals, rotations)
    torch.testing.assert_close(turned.lattices[1, 2], rotations[1] @ crystals.lattices[1, 2])
    atoms = torch.einsum("nij,nj->ni", rotations[crystals.batch], crystals.cart_coords)
    torch.testing.assert_close(turned.cart_coords, atoms, atol=1e-5, rtol=1e-5)


def test_nothing_is_drawn_where_nothing_is_asked_for(crystals: CrystalBatch) -> None:
    module, batch = tiny_module(), TrainingBatch.whole(crystals)
    assert module.augmentation(batch, batch.generator()) is crystals
    assert module.noise(batch, crystals, batch.generator()) is crystals


def test_noise_hides_elements_and_moves_atoms_by_angstroms() -> None:
    many = CrystalBatch.cat([random_crystals((20,) * 40, seed=seed) for seed in range(5)])
    module = tiny_module(noise={"mask_ratio": 0.3, "displacement": 0.2})
    batch = TrainingBatch.whole(many)
    noisy = module.noise(batch, many, batch.generator())
    hidden = noisy.atom_types == 0
    assert float(hidden.float().mean()) == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 4000))
    assert torch.equal(noisy.atom_types[~hidden], many.atom_types[~hidden])
    moves = periodic_difference(noisy.frac_coords, many.frac_coords)
    cartesian = torch.einsum("ni,nij->nj", moves, many.lattices[many.batch])
    assert float(cartesian.mean(0).abs().max()) < 5 * 0.2 / math.sqrt(4000)
    torch.testing.assert_close(cartesian.std(0), torch.full((3,), 0.2), atol=0.01, rtol=0.0)
    assert torch.equal(noisy.lattices, many.lattices)


def test_corruption_moves_each_atom_by_its_own_vector(crystals: CrystalBatch) -> None:
    moves = 0.1 * torch.randn(14, 3, generator=torch.Generator().manual_seed(0))
    masked = torch.arange(14) % 3 == 0
    noisy = corrupt(crystals, masked, moves)
    difference = periodic_difference(noisy.frac_coords, crystals.frac_coords)
    cartesian = torch.einsum("ni,nij->nj", difference, crystals.lattices[crystals.batch])
    torch.testing.assert_close(cartesian, moves, atol=1e-4, rtol=0.0)
    assert noisy.atom_types.tolist() == [0 if k % 3 == 0 else int(z) for k, z in enumerate(crystals.atom_types)]


def test_the_decoder_is_held_to_the_clean_crystal(crystals: CrystalBatch) -> None:
    """Noise goes into the encoder alone: what is compared with, and any given elements, stay clean."""
    module = tiny_module(noise={"mask_ratio": 1.0}, atom_type_predict=False)
    batch, seen = TrainingBatch.whole(crystals), []
    module.vae.encoder.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    module.vae.decoder.register_forward_hook(lambda _, args, __: seen.append(args[1]))
    loss(module, batch)
    assert not seen[0].atom_types.any()
    assert torch.equal(seen[1].atom_types, crystals.atom_types)


def test_validation_sees_crystals_as_they_are(crystals: CrystalBatch) -> None:
    plain = tiny_module()
    views = {"translate": True, "rotate": True}
    noisy = tiny_module(noise={"mask_ratio": 0.5, "displacement": 0.3}, augmentation=views)
    assert float(loss(plain, crystals, training=False)["loss"]) == float(loss(noisy, crystals, training=False)["loss"])
    assert float(loss(plain, crystals)["loss"]) != float(loss(noisy, crystals)["loss"])


def test_translations_do_not_leave_the_range_of_a_translation() -> None:
    crystals = random_crystals()
    shifts = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.25, 0.0], [0.0, 0.0, -0.75], [3.0, 3.0, 3.0]])
    moved = translate(crystals, shifts)
    expected = (crystals.frac_coords.double() + shifts.double()[crystals.batch]) % 1.0
    difference = periodic_difference(moved.frac_coords.double(), expected)
    assert float(difference.abs().max()) < 1e-6


def test_noise_is_off_by_default() -> None:
    assert not InputNoise()
    assert InputNoise(mask_ratio=0.1)
    assert InputNoise(displacement=0.1)


# ---- schedule --------------------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_follows_half_a_cosine() -> None:
    factors = [warmup_cosine_factor(step, total_steps=110, warmup_steps=10, min_factor=0.1) for step in range(131)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.55)
    assert factors[110:] == pytest.approx([0.1] * 21)
    assert all(before > after for before, after in itertools.pairwise(factors[10:111]))


def test_the_schedule_sets_the_optimisers_rate() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = WarmupCosine(optimizer=optimizer, total_steps=20, warmup_steps=4, min_factor=0.0)
    rates: list[Any] = []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[12] == pytest.approx(1.0)
    assert schedule.get_last_lr()[0] == pytest.approx(0.0)


def test_posteriors_are_what_the_module_says(crystals: CrystalBatch) -> None:
    module = tiny_module()
    with torch.no_grad():
        hidden = module.vae.hidden(crystals)
        expected = DiagonalGaussianDistribution(hidden @ module.vae.quant_conv.weight.T)
        got = module.vae.encode(crystals)
    torch.testing.assert_close(got.mean, expected.mean)
    torch.testing.assert_close(got.logvar, expected.logvar)
