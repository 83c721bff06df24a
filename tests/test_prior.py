"""The prior over latents: exact where the answer is known; crystals as they were asked for, in the order asked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.canonical import element_order
from crystalvae.data.symmetry import CRYSTAL_SYSTEMS
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.prior_module.denoiser import Denoiser
from crystalvae.prior_module.flow import SamplerOptions, interpolate, logit_normal, preconditioning, solve
from crystalvae.prior_module.latent_flow import LatentFlow, PriorNoise
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.conditions.embedder import ConditionEmbedder
from crystalvae.vae_module.conditions.values import asked_values, condition_values, drop_conditions
from crystalvae.vae_module.draw_crystals import draw_crystals
from crystalvae.vae_module.latent_source import DrawOptions
from tests.samples import (
    SIZES,
    assert_same_crystals,
    random_crystals,
    tiny_config,
    tiny_module,
    tiny_prior,
    tiny_prior_config,
)

SOLVERS = ("euler", "midpoint", "heun")
PREDICTIONS = ("preconditioned", "x1", "velocity")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def no_noise() -> Tensor:
    raise AssertionError("the ODE takes no fresh noise")


# ---- paths and times -------------------------------------------------------------------------------------------------


def test_paths_go_from_noise_to_data():
    clean, noise = normal(6, 4, seed=1), normal(6, 4, seed=2)
    assert torch.equal(interpolate(clean, noise, torch.zeros(6)), noise)
    assert torch.equal(interpolate(clean, noise, torch.ones(6)), clean)
    time = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.0, 1.0])
    mixed = interpolate(clean, noise, time)
    assert torch.equal(mixed[[0, 1]], torch.stack((noise[0], clean[1])))
    torch.testing.assert_close(mixed[3], 0.75 * noise[3] + 0.25 * clean[3])


def test_training_times_are_logit_normal():
    draws = torch.tensor([-2.0, 0.0, 1.0])
    torch.testing.assert_close(torch.logit(logit_normal(draws, mean=0.5, std=0.4)), torch.tensor([-0.3, 0.5, 0.9]))


@pytest.mark.parametrize("shift", [0.001, 0.3, 1.0, 3.0, 1000.0])
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_times_rise_from_zero_to_one(shift: float, steps: int):
    times = SamplerOptions(steps=steps, time_shift=shift).times()
    assert len(times) == steps + 1
    assert (times[0], times[-1]) == (0.0, 1.0)
    assert all(a < b for a, b in itertools.pairwise(times))


def test_time_shift_takes_small_steps_early_or_late():
    def first_and_last(shift: float) -> tuple[float, float]:
        times = SamplerOptions(steps=10, time_shift=shift).times()
        return times[1], 1 - times[-2]

    assert first_and_last(1.0) == pytest.approx((0.1, 0.1))
    early, late = first_and_last(4.0)
    assert early < 0.1 < late
    assert first_and_last(0.25) == pytest.approx((late, early))  # t -> 1 - t


def test_preconditioned_targets_have_unit_variance_and_are_new():
    """For data of unit variance: what the network is asked for is as large at all times, and not in its input."""
    clean, noise = normal(200_000, seed=1), normal(200_000, seed=2)
    for time in (0.01, 0.3, 0.7, 0.99):
        skip, scale = (float(value) for value in preconditioning(torch.tensor(time)))
        noisy = (1 - time) * noise + time * clean
        target = (clean - skip * noisy) / scale
        assert float(target.std()) == pytest.approx(1.0, abs=0.01)
        assert abs(float((target * noisy).mean())) < 0.02
    skip, scale = preconditioning(torch.tensor([0.0, 1.0]))
    assert skip.tolist() == [0.0, 1.0]
    assert scale.tolist() == [1.0, 0.0]


# ---- solvers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_a_constant_estimate_is_reached_exactly(solver: Any, steps: int, shift: float):
    target, asked = normal(5, 3, seed=3), []

    def estimate(x: Tensor, time: float, last: Tensor | None) -> Tensor:
        asked.append((time, last))
        return target

    options = SamplerOptions(solver=solver, steps=steps, time_shift=shift)
    assert torch.equal(solve(estimate, normal(5, 3), options, no_noise), target)
    assert len(asked) == options.evaluations
    assert asked[0] == (0.0, None)
    assert all(last is target for _, last in asked[1:])  # self-conditioning: the estimate before
    assert max(time for time, _ in asked) < 1


MEAN, STD = 1.5, 0.4


def exact_estimate(x: Tensor, time: float, last: Tensor | None) -> Tensor:
    """E[x_1 | x_t] for data from N(MEAN, STD²)."""
    gain = STD**2 * time / ((1 - time) ** 2 + STD**2 * time**2)
    return MEAN + gain * (x - time * MEAN)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_solver(solver: Any, order: int):
    noise = normal(64, 1, dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        found = solve(exact_estimate, noise, SamplerOptions(solver=solver, steps=steps), no_noise)
        errors.append(float((found - (MEAN + STD * noise)).abs().max()))  # the flow's exact end
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.15)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("stochasticity", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_stochasticity_keeps_the_distribution(stochasticity: float, shift: float):
    generator = torch.Generator().manual_seed(1)
    options = SamplerOptions(steps=200, stochasticity=stochasticity, time_shift=shift)
    noise = normal(20_000, 1)
    found = solve(exact_estimate, noise, options, lambda: torch.randn(20_000, 1, generator=generator))
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(found.std()) == pytest.approx(STD, rel=0.03)
    correlation = float(torch.corrcoef(torch.stack((found[:, 0], noise[:, 0])))[0, 1])
    assert (correlation > 0.999) == (stochasticity == 0.0)
    if stochasticity == 1.0:
        assert abs(correlation) < 0.1  # all of the first noise was replaced


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"solver": "rk4"}, r"sampler\.solver: got 'rk4'; expected one of 'euler', 'midpoint', 'heun'"),
        ({"steps": 0}, r"sampler\.steps: got 0; expected a whole number of at least 1"),
        ({"steps": 2.5}, r"sampler\.steps: got 2\.5"),
        ({"steps": True}, r"sampler\.steps: got True"),
        ({"steps": "ten"}, r"sampler\.steps: got 'ten'"),
        ({"stochasticity": 1.5}, r"sampler\.stochasticity: got 1\.5; expected a number in \[0, 1\]"),
        ({"stochasticity": math.nan}, r"sampler\.stochasticity: got nan"),
        ({"stochasticity": "much"}, r"sampler\.stochasticity: got 'much'; expected a number"),
        ({"stochasticity": 0.5, "solver": "heun"}, r"solver=heun.*set stochasticity=0 or solver=euler"),
        ({"time_shift": 0.0}, r"sampler\.time_shift: got 0\.0; expected a number in \[0\.001, 1000\]"),
        ({"time_shift": 1e-30}, r"sampler\.time_shift"),
        ({"time_shift": math.inf}, r"sampler\.time_shift"),
        ({"time_shift": None}, r"sampler\.time_shift: got None"),
        ({"guidance_scale": -1.0}, r"sampler\.guidance_scale: got -1\.0; expected a number of at least 0"),
        ({"guidance_scale": True}, r"sampler\.guidance_scale: got True"),
        ({"composition_temperature": 0.0}, r"sampler\.composition_temperature: got 0\.0; expected a number above 0"),
        ({"composition_temperature": math.inf}, r"sampler\.composition_temperature: got inf"),
    ],
)
def test_options_name_what_is_wrong(options: dict[str, Any], match: str, without_type_checks: None):
    with pytest.raises(ConfigError, match=match):
        SamplerOptions(**options)


# ---- conditions ------------------------------------------------------------------------------------------------------

NAMES = ["crystal_system", "band_gap"]


def with_groups(groups: list[float], **properties: list[float]) -> CrystalBatch:
    crystals = random_crystals(tuple([2] * len(groups)))
    given = {name: torch.tensor(values) for name, values in {"space_group": groups, **properties}.items()}
    return crystals.replace(properties=given)


def test_conditions_are_read_off_crystals():
    crystals = with_groups([225.0, math.nan, 1.0], band_gap=[0.5, 1.0, math.nan])
    values = condition_values(crystals, ["crystal_system", "space_group", "band_gap"])
    expected = {"crystal_system": [6.0, math.nan, 0.0], "space_group": [224.0, math.nan, 0.0]}
    for name, numbers in {**expected, "band_gap": [0.5, 1.0, math.nan]}.items():
        torch.testing.assert_close(values[name], torch.tensor(numbers), equal_nan=True)


def test_conditions_that_the_data_do_not_have_are_named_with_those_there_are():
    computed = "chemical_system, composition, "
    with pytest.raises(ConfigError, match=f"no 'band_gap'.*some of {computed}crystal_system, density, space_group$"):
        condition_values(with_groups([1.0]), ["crystal_system", "band_gap"])
    with pytest.raises(ConfigError, match=f"no 'crystal_system'; expected some of {computed}density, energy$"):
        condition_values(random_crystals(), ["crystal_system"])


def test_what_is_asked_is_the_same_for_all_and_the_rest_unknown():
    values = asked_values({"crystal_system": "Cubic", "space_group": None}, ["crystal_system", "band_gap"], 3)
    assert values["crystal_system"].tolist() == [6.0] * 3
    assert values["band_gap"].isnan().all()
    assert asked_values({"band_gap": 1}, NAMES, 1)["band_gap"].tolist() == [1.0]
    assert asked_values({"space_group": 225}, ["space_group"], 1)["space_group"].tolist() == [224.0]
    for index, name in enumerate(CRYSTAL_SYSTEMS):
        assert asked_values({"crystal_system": name}, NAMES, 1)["crystal_system"].tolist() == [index]


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (
            {"crystal_system": "round"},
            r"conditions\.crystal_system: got 'round'; expected one of tri.*, cubic$",
        ),
        ({"space_group": 231}, r"conditions\.space_group: got 231; expected one of 1 to 230"),
        ({"energy": 1.0}, r"conditions\.energy: .*not trained on it; it knows crystal_system, space_group, band_gap$"),
        ({"band_gap": "wide"}, r"conditions\.band_gap: got 'wide'; expected a number"),
        ({"band_gap": math.nan}, r"conditions\.band_gap: got nan"),
        ({"band_gap": True}, r"conditions\.band_gap: got True"),
    ],
)
def test_requests_that_cannot_be_met_list_what_there_is(asked: dict[str, object], match: str):
    with pytest.raises(ConfigError, match=match):
        asked_values(asked, ["crystal_system", "space_group", "band_gap"], 2)


def test_nothing_can_be_asked_of_a_model_without_conditions():
    with pytest.raises(ConfigError, match="it knows none"):
        asked_values({"band_gap": 1.0}, [], 2)


def test_unknown_is_a_learned_vector_and_numbers_are_standardised():
    embedder = ConditionEmbedder(names=NAMES, d_model=8)
    nn.init.normal_(embedder.unknown)
    known = torch.tensor([1.0, 3.0, math.nan, 5.0])
    embedder.fit({"crystal_system": torch.zeros(4), "band_gap": known})
    assert embedder.mean.tolist() == pytest.approx([0.0, 3.0])
    assert embedder.std.tolist() == pytest.approx([1.0, 2.0])
    systems = torch.tensor([6.0, math.nan, 2.0])
    gaps = torch.tensor([5.0, math.nan, math.nan])
    found = embedder({"crystal_system": systems, "band_gap": gaps}, 3)
    table: Any = embedder.embedders["crystal_system"]
    number: Any = embedder.embedders["band_gap"]
    expected = (
        table.weight[6] + number(torch.tensor([[1.0]]))[0],
        embedder.unknown.sum(dim=0),
        table.weight[2] + embedder.unknown[1],
    )
    torch.testing.assert_close(found, torch.stack(expected))
    found.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in embedder.parameters() if p.grad is not None)


def test_a_condition_without_known_values_cannot_be_learned():
    with pytest.raises(ConfigError, match="'band_gap' has 1 known values"):
        ConditionEmbedder(names=["band_gap"], d_model=4).fit({"band_gap": torch.tensor([math.nan, 2.0, math.nan])})


def test_without_conditions_nothing_waits_for_a_gradient():
    embedder = ConditionEmbedder(names=[], d_model=4)
    assert embedder({}, 3).tolist() == [[0.0] * 4] * 3
    assert not [p for p in embedder.parameters() if p.requires_grad]


def test_conditions_are_dropped_at_the_given_shares():
    count = 40_000
    values = {"a": torch.arange(count).float(), "b": torch.ones(count)}
    draws = torch.rand(count, 3, generator=torch.Generator().manual_seed(0))
    dropped = drop_conditions(values, draws, drop_all=0.2, drop_each=0.5)
    gone = torch.stack([dropped["a"].isnan(), dropped["b"].isnan()])
    assert gone.float().mean(dim=1).tolist() == pytest.approx([0.6, 0.6], abs=0.015)
    assert float(gone.all(dim=0).float().mean()) == pytest.approx(0.2 + 0.8 * 0.25, abs=0.015)
    assert torch.equal(dropped["a"][~gone[0]], values["a"][~gone[0]])
    assert not values["a"].isnan().any()
    assert drop_conditions(values, draws, drop_all=0.0, drop_each=0.0)["a"].equal(values["a"])
    assert drop_conditions(values, draws, drop_all=1.0, drop_each=0.0)["b"].isnan().all()


# ---- the denoiser ----------------------------------------------------------------------------------------------------


def denoise(model: Denoiser, crystals: CrystalBatch, /, **changes: Any) -> Tensor:
    inputs = {
        "noisy": normal(crystals.num_nodes, 4, seed=1),
        "time": torch.linspace(0.1, 0.9, crystals.num_graphs),
        "crystals": crystals,
        "conditions": normal(crystals.num_graphs, 16, seed=2),
        "estimate": normal(crystals.num_nodes, 4, seed=3),
    }
    with torch.no_grad():
        return model(**{**inputs, **changes})


def test_a_new_denoiser_answers_zero():
    model = tiny_prior(trained=False).prior.denoiser
    assert not denoise(model, random_crystals()).any()
    assert denoise(tiny_prior().prior.denoiser, random_crystals()).abs().min() > 0


def test_crystals_do_not_see_each_other():
    model, crystals = tiny_prior().prior.denoiser, random_crystals()
    noisy, estimate = normal(sum(SIZES), 4, seed=1), normal(sum(SIZES), 4, seed=3)
    time, conditions = torch.linspace(0.1, 0.9, 4), normal(4, 16, seed=2)
    together = denoise(model, crystals)
    for index in range(4):
        atoms = slice(int(crystals.ptr[index]), int(crystals.ptr[index + 1]))
        alone = denoise(
            model, crystals[index], noisy=noisy[atoms], estimate=estimate[atoms],
            time=time[index : index + 1], conditions=conditions[index : index + 1],
        )  # fmt: skip
        torch.testing.assert_close(alone, together[atoms], atol=1e-5, rtol=1e-4)


def test_every_input_matters_and_coordinates_do_not():
    model, crystals = tiny_prior().prior.denoiser, random_crystals()
    base = denoise(model, crystals)
    changes = {
        "noisy": normal(sum(SIZES), 4, seed=9),
        "time": torch.full((4,), 0.3),
        "conditions": torch.zeros(4, 16),
        "estimate": None,
        "crystals": crystals.replace(atom_types=crystals.atom_types % 99 + 1),
    }
    for name, value in changes.items():
        assert float((denoise(model, crystals, **{name: value}) - base).abs().max()) > 1e-3, name
    moved = crystals.replace(frac_coords=1 - crystals.frac_coords, lattices=2 * crystals.lattices)
    assert torch.equal(denoise(model, moved), base)  # only atom counts and elements are read
    flipped = slice(0, SIZES[0])
    inputs = [normal(sum(SIZES), 4, seed=seed) for seed in (1, 3)]
    reordered = [torch.cat((entry[flipped].flip(0), entry[SIZES[0] :])) for entry in inputs]
    kinds = crystals.atom_types.clone()
    kinds[flipped] = kinds[flipped].flip(0)
    other = denoise(model, crystals.replace(atom_types=kinds), noisy=reordered[0], estimate=reordered[1])
    assert float((other[flipped].flip(0) - base[flipped]).abs().max()) > 1e-3  # the place in the list is an input


def test_a_model_that_decodes_elements_is_not_told_them():
    model, crystals = tiny_prior(atom_type_predict=True).prior.denoiser, random_crystals()
    other = crystals.replace(atom_types=torch.zeros_like(crystals.atom_types))
    assert torch.equal(denoise(model, crystals), denoise(model, other))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"d_model": 15}, r"prior\.d_model: got 15 with nhead 2"),
        ({"num_layers": 0}, r"prior\.num_layers: got 0"),
        (
            {"prediction": "noise"},
            r"prior\.prediction: got 'noise'; expected one of 'preconditioned', 'x1', 'velocity'",
        ),
        ({"sampler": {"steps": -1}}, r"sampler\.steps: got -1"),
        ({"composition": {"d_model": 15, "nhead": 2, "num_layers": 1}}, r"composition\.d_model: got 15"),
    ],
)
def test_options_of_the_prior_name_what_is_wrong(options: dict[str, Any], match: str, without_type_checks: None):
    with pytest.raises(ConfigError, match=match):
        LatentPrior(**tiny_prior_config(**options))


def test_a_vae_that_decodes_elements_needs_no_composition_model():
    composition = {"d_model": 16, "nhead": 2, "num_layers": 1}
    with pytest.raises(ConfigError, match=r"prior\.composition.*set composition=null"):
        LatentPrior(**tiny_prior_config(atom_type_predict=True, composition=composition))


# ---- the loss --------------------------------------------------------------------------------------------------------


class Oracle(nn.Module):
    """Stands in for the denoiser, and keeps what it was told."""

    def __init__(self, answer: Callable[..., Tensor]) -> None:
        super().__init__()
        self.answer, self.calls = answer, []

    def forward(
        self, noisy: Tensor, time: Tensor, crystals: CrystalBatch, conditions: Tensor, estimate: Any, hints: Any = None
    ) -> Tensor:
        self.calls.append({"noisy": noisy, "time": time, "conditions": conditions, "estimate": estimate})
        return self.answer(noisy, time, crystals, conditions, estimate)


def flow_with(answer: Callable[..., Tensor], **options: Any) -> tuple[LatentFlow, Oracle]:
    prior = tiny_prior(**options).prior
    prior.fit_latents(2.0 + 3.0 * normal(100, 4, seed=5), torch.full((100, 4), 0.25))
    oracle = Oracle(answer)
    prior.denoiser = oracle  # type: ignore[assignment]
    return prior, oracle


def output_for(prediction: str, clean: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
    """What the network has to say so that the clean latents are estimated to be `clean`; `time` is (N, 1)."""
    if prediction == "velocity":
        return (clean - noisy) / (1 - time)
    skip, scale = (0.0, 1.0) if prediction == "x1" else preconditioning(time)
    return (clean - skip * noisy) / scale


def clean_for(prediction: str, output: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
    if prediction == "velocity":
        return noisy + (1 - time) * output
    skip, scale = (0.0, 1.0) if prediction == "x1" else preconditioning(time)
    return skip * noisy + scale * output


def flow_loss(prior: LatentFlow, latents: Tensor, crystals: CrystalBatch, *, again: bool = False) -> Tensor:
    draws = PriorNoise(
        noise=normal(crystals.num_nodes, 4, seed=7), time=torch.linspace(0.2, 0.8, len(crystals)), self_condition=again
    )
    return prior.flow_loss(latents, crystals, {}, draws)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_the_right_answer_is_zero(prediction: str):
    crystals, noise = random_crystals(), normal(sum(SIZES), 4, seed=7)
    latents = normal(sum(SIZES), 4, seed=8)

    def answer(noisy: Tensor, time: Tensor, *_: Any) -> Tensor:
        return output_for(prediction, prior.standardize(latents), noisy, time[crystals.batch][:, None])

    prior, oracle = flow_with(answer, prediction=prediction)
    assert float(flow_loss(prior, latents, crystals).abs().max()) < 1e-10
    time = torch.linspace(0.2, 0.8, 4)[crystals.batch][:, None]
    expected = (1 - time) * noise + time * (latents - prior.latent_mean) / prior.latent_std
    torch.testing.assert_close(oracle.calls[0]["noisy"], expected)
    prior.denoiser.answer = lambda *inputs: answer(*inputs) + 0.5  # type: ignore[union-attr,assignment]
    torch.testing.assert_close(flow_loss(prior, latents, crystals), torch.full((sum(SIZES),), 0.25))


def test_latents_are_standardised_over_posteriors():
    """Mean 0 and variance 1 of draws from all posteriors, and `signal` is the share that tells crystals apart."""
    prior = tiny_prior().prior
    mean = normal(50_000, 4) * torch.tensor([1.0, 2.0, 0.1, 5.0]) + torch.tensor([0.0, -3.0, 1.0, 10.0])
    variance = torch.tensor([0.25, 1.0, 0.99, 0.01]).expand(50_000, 4)
    prior.fit_latents(mean, variance)
    draws = prior.standardize(mean + variance.sqrt() * normal(50_000, 4, seed=1))
    torch.testing.assert_close(draws.mean(dim=0), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(draws.std(dim=0), torch.ones(4), atol=0.02, rtol=0)
    torch.testing.assert_close(prior.signal, torch.tensor([0.8, 0.8, 0.01, 25 / 25.01]), atol=0.01, rtol=0.02)


def test_latent_numbers_that_are_noise_do_not_count():
    prior, _ = flow_with(lambda noisy, *_: torch.cat((noisy[:, :2] * 0, noisy[:, 2:] * 0 + 9.0), dim=1))
    prior.signal.copy_(torch.tensor([3.0, 1.0, 0.0, 0.0]))
    latents = prior.latent_mean + prior.latent_std * torch.tensor([2.0, 4.0, 1.0, 1.0]).expand(sum(SIZES), 4)
    torch.testing.assert_close(
        flow_loss(prior, latents, random_crystals()), torch.full((sum(SIZES),), 0.75 * 4 + 0.25 * 16)
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_self_conditioning_sees_the_first_estimate_without_a_gradient(prediction: str):
    scale = nn.Parameter(torch.tensor(0.7))
    prior, oracle = flow_with(
        lambda noisy, time, crystals, conditions, estimate: scale * (noisy if estimate is None else estimate),
        prediction=prediction,
    )
    crystals, latents = random_crystals(), normal(sum(SIZES), 4, seed=8)
    loss = flow_loss(prior, latents, crystals, again=True)
    first, second = oracle.calls
    assert first["estimate"] is None
    time = torch.linspace(0.2, 0.8, 4)[crystals.batch][:, None]
    expected = clean_for(prediction, 0.7 * first["noisy"], first["noisy"], time)
    torch.testing.assert_close(second["estimate"], expected)
    assert not second["estimate"].requires_grad
    assert torch.equal(first["noisy"], second["noisy"])
    (gradient,) = torch.autograd.grad(loss.sum(), scale)
    target = output_for(prediction, prior.standardize(latents), first["noisy"], time)
    weights = prior.signal / prior.signal.sum()
    by_hand = (2 * (0.7 * expected - target) * expected * weights).sum()  # the estimate is a constant here
    torch.testing.assert_close(gradient, by_hand)
    flow_loss(prior, latents, crystals, again=False)
    assert len(oracle.calls) == 3


def test_self_conditioning_can_be_left_out():
    prior, oracle = flow_with(lambda noisy, *_: noisy, self_conditioning=False)
    flow_loss(prior, normal(sum(SIZES), 4), random_crystals(), again=True)
    assert [call["estimate"] for call in oracle.calls] == [None]
    with_it, without = (tiny_prior(self_conditioning=value).prior.denoiser for value in (True, False))
    assert (with_it.latent_embedder.in_features, without.latent_embedder.in_features) == (8, 4)


def training_losses(module: LatentPrior, batch: TrainingBatch, *, training: bool = True) -> dict[str, Tensor]:
    with torch.no_grad():
        return module.losses(batch, training=training)


def test_statistics_are_taken_for_what_is_trained_only():
    def statistics(trained: list[str]) -> list[Tensor]:
        module = LatentPrior(**tiny_prior_config(conditions=["energy"]), trained=trained)
        module.fit_statistics(random_crystals((4, 1, 7, 2)))
        prior = module.prior
        return [prior.latent_mean, prior.conditions.mean, prior.composition_conditions.mean]

    assert [bool(value.any()) for value in statistics(["flow", "composition"])] == [True, True, True]
    assert [bool(value.any()) for value in statistics(["flow"])] == [True, True, False]
    assert [bool(value.any()) for value in statistics(["composition"])] == [False, False, True]


def test_the_loss_is_a_weighted_sum_and_repeats_with_the_seed():
    module = tiny_prior(conditions=["energy"])
    batch = TrainingBatch.whole(random_crystals(), seed=(0, 1, 2))
    found = training_losses(module, batch)
    assert set(found) == {"loss", "flow_loss", "composition_nll"}
    torch.testing.assert_close(found["loss"], found["flow_loss"] + 0.1 * found["composition_nll"])
    assert training_losses(module, batch) == found
    assert training_losses(module, TrainingBatch.whole(random_crystals(), seed=(0, 1, 3))) != found
    assert set(training_losses(tiny_prior(atom_type_predict=True), batch)) == {"loss", "flow_loss"}


def test_the_loss_of_shares_is_the_loss_of_the_whole():
    """What two ranks compute of one batch, averaged, is what one computes."""
    module = tiny_prior(conditions=["energy"])
    crystals = random_crystals((4, 1, 7, 2, 3, 5))
    whole = TrainingBatch.whole(crystals, seed=(0, 0, 5))
    shared = {"seed": whole.seed, "world_size": 2, "total_crystals": 6, "total_atoms": 22}
    shares = [
        TrainingBatch(crystals=crystals[:3], indices=torch.arange(3), **shared),
        TrainingBatch(
            crystals=crystals[3:], indices=torch.arange(3, 6), crystal_offset=3, atom_offset=12, **shared
        ),
    ]  # fmt: skip
    expected = training_losses(module, whole)
    found = [training_losses(module, share) for share in shares]
    for name, value in expected.items():
        torch.testing.assert_close((found[0][name] + found[1][name]) / 2, value)


def test_conditions_are_dropped_in_training_only(monkeypatch: pytest.MonkeyPatch):
    module = tiny_prior(conditions=["energy"])
    batch = TrainingBatch.whole(random_crystals())
    seen = []
    forward = ConditionEmbedder.forward
    monkeypatch.setattr(
        ConditionEmbedder, "forward", lambda self, values, count: seen.append(values) or forward(self, values, count)
    )
    module.condition_dropout = {"all": 1.0, "each": 0.0}
    training_losses(module, batch)
    assert all(values["energy"].isnan().all() for values in seen)
    assert len(seen) == 2  # the flow's and the composition model's
    training_losses(module, batch, training=False)
    assert all(torch.equal(values["energy"], batch.crystals.properties["energy"]) for values in seen[2:])


@pytest.mark.parametrize(("latents", "noisy"), [("sample", True), ("mean", False)])
def test_training_sees_draws_from_the_posterior_or_its_mean(latents: str, noisy: bool, monkeypatch: pytest.MonkeyPatch):
    config = tiny_prior_config()
    module = LatentPrior(**config, latents=latents)  # type: ignore[arg-type]
    batch, seen = TrainingBatch.whole(random_crystals()), []
    zero = lambda given, *_: seen.append(given) or torch.zeros(len(given))  # noqa: E731
    monkeypatch.setattr(module.prior, "flow_loss", zero)
    for training in (True, False):
        training_losses(module, batch, training=training)
    mean = module.vae_module.vae.encode(batch.crystals).mode().detach()
    assert torch.equal(seen[0], mean) == (not noisy)
    assert torch.equal(seen[1], mean)


def test_averaging_weights_averages_no_whole_numbers():
    """An exponential average of whole numbers cuts them off: 3 becomes 2."""
    module = tiny_prior(conditions=["energy"])
    assert all(buffer.is_floating_point() for buffer in module.buffers())


def test_the_vae_is_frozen_and_stays_in_evaluation():
    module = tiny_prior()
    module.train()
    assert module.prior.training
    assert not module.vae_module.vae.training
    assert not any(p.requires_grad for p in module.vae_module.vae.parameters())
    assert all(p.requires_grad for name, p in module.prior.named_parameters() if "unknown" not in name)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"latents": "best"}, r"prior_module\.latents: got 'best'"),
        ({"time": {"mean": 0.0, "std": 0.0}}, r"prior_module\.time\.std: got 0\.0"),
        ({"time": {"median": 0.0}}, r"prior_module\.time\.median"),
        ({"condition_dropout": {"all": 1.5}}, r"prior_module: all is 1\.5; expected a share"),
        ({"condition_dropout": {"all": "x"}}, r"prior_module\.condition_dropout\.all: got 'x'"),
        ({"self_condition_probability": -0.1}, r"self_condition_probability is -0\.1"),
        ({"composition_weight": -1.0}, r"composition_weight: got -1\.0"),
    ],
)
def test_options_of_training_name_what_is_wrong(options: dict[str, Any], match: str, without_type_checks: None):
    with pytest.raises(ConfigError, match=match):
        LatentPrior(**tiny_prior_config(), **options)


# ---- sampling latents ------------------------------------------------------------------------------------------------


def sample_latents(prior: LatentFlow, crystals: CrystalBatch, values: Any = None, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return prior.sample_latents(
        crystals,
        values or {},
        options=SamplerOptions(**{"steps": 6, **options}),
        noise=lambda: torch.randn(crystals.num_nodes, 4, generator=generator),
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_latents_come_back_in_the_units_of_the_vae(prediction: str, solver: str):
    crystals, target = random_crystals(), normal(sum(SIZES), 4, seed=4)

    def answer(noisy: Tensor, time: Tensor, *_: Any) -> Tensor:
        return output_for(prediction, prior.standardize(target), noisy, time[crystals.batch][:, None])

    prior, _ = flow_with(answer, prediction=prediction)
    torch.testing.assert_close(sample_latents(prior, crystals, solver=solver), target, atol=1e-4, rtol=1e-4)


def test_guidance_goes_from_unconditional_past_conditional():
    prior = tiny_prior(conditions=["energy"]).prior
    crystals = random_crystals()
    asked = {"energy": torch.full((4,), 2.0)}
    nothing = {"energy": torch.full((4,), torch.nan)}
    plain, free = sample_latents(prior, crystals, asked, steps=1), sample_latents(prior, crystals, nothing, steps=1)
    assert float((plain - free).abs().max()) > 1e-3
    for scale in (0.0, 1.0, 2.5):
        found = sample_latents(prior, crystals, asked, steps=1, guidance_scale=scale)
        torch.testing.assert_close(found, free + scale * (plain - free), atol=1e-4, rtol=1e-4)
    for steps in (5,):  # with more steps the ends still are what they say
        both = (
            sample_latents(prior, crystals, asked, steps=steps),
            sample_latents(prior, crystals, nothing, steps=steps),
        )
        torch.testing.assert_close(sample_latents(prior, crystals, asked, steps=steps, guidance_scale=1.0), both[0])
        torch.testing.assert_close(sample_latents(prior, crystals, asked, steps=steps, guidance_scale=0.0), both[1])


def test_guidance_asks_twice_and_plain_sampling_once():
    prior, oracle = flow_with(lambda noisy, *_: noisy, conditions=["energy"])
    values = {"energy": torch.ones(4)}
    sample_latents(prior, random_crystals(), values)
    assert len(oracle.calls) == 6
    sample_latents(prior, random_crystals(), values, guidance_scale=2.0)
    assert len(oracle.calls) == 6 + 12


# ---- crystals from a prior -------------------------------------------------------------------------------------------


def mixed_template() -> CrystalBatch:
    """Crystals of different sizes whose atoms are in no order of elements."""
    kinds = [[8, 3, 8, 26, 15], [17], [8, 22, 38, 8, 8], [17, 11], [8, 8, 14], [9, 55]]
    return CrystalBatch.empty([len(entry) for entry in kinds]).replace(
        atom_types=torch.tensor([z for entry in kinds for z in entry])
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_element(module: LatentPrior) -> Tensor:
    """Make the prior give each element a latent of its own, whatever the noise; return the table."""
    table = normal(100, 4, seed=11)
    module.prior.denoiser = Oracle(  # type: ignore[assignment]
        lambda noisy, time, crystals, *_: module.prior.standardize(table[crystals.atom_types])
    )
    return table


@pytest.mark.parametrize("batch_size", [1, 2, 512])
def test_crystals_and_atoms_come_back_in_the_order_of_the_template(batch_size: int):
    module, template = tiny_prior(), mixed_template()
    table = by_element(module)
    found = module.sample(template, generator=seeded(), batch_size=batch_size)
    assert found.num_atoms.tolist() == template.num_atoms.tolist()
    assert found.atom_types.tolist() == template.atom_types.tolist()
    with torch.no_grad():  # the VAE takes atoms in any order
        vae = module.vae_module.vae
        expected = vae.to_crystals(vae.decode(table[template.atom_types], template), template)
    assert_same_crystals(found, expected)


def test_the_prior_sees_elements_in_their_canonical_order():
    module, template = tiny_prior(), mixed_template()
    seen = []
    original = module.prior.denoiser.forward
    module.prior.denoiser.forward = lambda *inputs: seen.append(inputs[2]) or original(*inputs)  # type: ignore[method-assign]
    module.sample(template, generator=seeded())
    ranks = element_order()[seen[0].atom_types]
    assert all(bool((part.diff() >= 0).all()) for part in ranks.split(seen[0].num_atoms.tolist()))


def test_the_order_of_different_atoms_does_not_change_the_crystal():
    module = tiny_prior()
    order = torch.tensor([2, 0, 3, 1])
    kinds = torch.tensor([22, 8, 38, 7])
    one = module.sample(CrystalBatch.empty([4]).replace(atom_types=kinds), generator=seeded())
    other = module.sample(CrystalBatch.empty([4]).replace(atom_types=kinds[order]), generator=seeded())
    torch.testing.assert_close(other.frac_coords, one.frac_coords[order])
    torch.testing.assert_close(other.lattices, one.lattices)


def test_what_is_asked_of_a_crystal_stays_with_it():
    """Batches are sorted by size; the values asked for are sorted with them."""
    module = tiny_prior(conditions=["energy"])
    module.prior.denoiser = Oracle(  # type: ignore[assignment]
        lambda noisy, time, crystals, conditions, estimate: conditions[crystals.batch, :4]
    )
    template, energies = mixed_template(), torch.linspace(-2, 2, 6)
    found = draw_crystals(
        module.vae_module.vae, module.prior, template.replace(conditions={"energy": energies}),
        options=DrawOptions(sampler={"steps": 2}), generator=seeded(), batch_size=2,
    )  # fmt: skip
    with torch.no_grad():
        latents = module.prior.conditions({"energy": energies}, 6)[template.batch, :4]
        vae = module.vae_module.vae
        expected = vae.to_crystals(vae.decode(latents, template), template)
    assert_same_crystals(found, expected)


@pytest.mark.parametrize("decodes_elements", [True, False])
def test_samples_are_a_function_of_the_seed(decodes_elements: bool):
    module = tiny_prior(atom_type_predict=decodes_elements, sampler={"steps": 3, "stochasticity": 0.5})
    template = CrystalBatch.empty([3, 5, 2, 5])
    before = torch.random.get_rng_state()
    a, b, c = (module.sample(template, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same_crystals(a, b, atol=0.0)
    assert float((a.lattices - c.lattices).abs().max()) > 1e-4
    assert a.num_atoms.tolist() == [3, 5, 2, 5]
    assert bool((a.atom_types > 0).all())
    assert not torch.equal(module.sample(template).lattices, module.sample(template).lattices)


@pytest.mark.parametrize("decodes_elements", [True, False])
@pytest.mark.parametrize("subsets", [True, False])
def test_a_chemical_system_is_kept_by_every_crystal(decodes_elements: bool, subsets: bool):
    module = tiny_prior(atom_type_predict=decodes_elements)
    template = CrystalBatch.empty([3, 9, 4] * 20)
    found = module.sample(
        template, generator=seeded(), chemical_system="Li-Mn-O", chemical_system_subsets=subsets, batch_size=16
    )
    systems = {tuple(sorted(set(kinds.tolist()))) for kinds in found.atom_types.split(found.num_atoms.tolist())}
    assert all(set(system) <= {3, 8, 25} for system in systems)
    if not decodes_elements and not subsets:
        assert systems == {(3, 8, 25)}
    elif not decodes_elements:
        assert len(systems) > 1
    assert not set(module.sample(template, generator=seeded()).atom_types.tolist()) <= {3, 8, 25}


def test_sampled_compositions_are_those_of_the_composition_model():
    module, sizes = tiny_prior(), torch.tensor([4, 4, 4])
    found = module.sample(CrystalBatch.empty(sizes), generator=seeded(5))
    expected = module.prior.sample_elements(sizes, {}, generator=seeded(5))
    assert found.atom_types.tolist() == expected.tolist()


def test_progress_is_told_and_devices_kept():
    done: list[int] = []
    tiny_prior().sample(CrystalBatch.empty([2] * 7), generator=seeded(), batch_size=3, advance=done.append)
    assert done == [3, 3, 1]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": 0.5}, "temperature: got 0.5; expected 1.0, as a learned prior has no"),
        ({"sampler": {"step": 5}}, "unknown step; expected some of analogues, composition_temperature, .*steps"),
        ({"sampler": {"steps": 0}}, r"sampler\.steps: got 0"),
        ({"sampler": {"stochasticity": "x"}}, r"sampler\.stochasticity: got 'x'"),
        ({"conditions": {"band_gap": 1.0}}, r"conditions\.band_gap.*it knows energy"),
        ({"chemical_system": "Li-Xx"}, "chemical_system: 'Xx' is not an element"),
        ({"chemical_system": ""}, "chemical_system: '' is not an element"),
        ({"chemical_system": []}, "chemical_system: got no element"),
        ({"chemical_system": {"Li": 1}}, "chemical_system: got {'Li': 1}"),
        ({"chemical_system": "Li-Mn-Fe-O"}, "4 elements do not fit into 2 atoms"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
)
def test_requests_of_samples_name_what_is_wrong(options: dict[str, Any], match: str, without_type_checks: None):
    with pytest.raises(ConfigError, match=match):
        tiny_prior(conditions=["energy"]).sample(CrystalBatch.empty([2, 5]), **options)


def test_elements_that_cannot_be_given_are_refused():
    template = mixed_template()
    with pytest.raises(ConfigError, match="decodes elements from its latents"):
        tiny_prior(atom_type_predict=True).sample(template)
    with pytest.raises(ConfigError, match="no composition model: give the elements"):
        tiny_prior(composition=None).sample(CrystalBatch.empty([2, 3]))
    assert len(tiny_prior(composition=None).sample(template)) == 6
    with pytest.raises(ConfigError, match="composition and chemical_system exclude each other"):
        tiny_prior().sample(template, chemical_system="Li-O")
    some = template.replace(atom_types=template.atom_types.clone().index_fill(0, torch.tensor([5]), 0))
    with pytest.raises(ConfigError, match="some atoms have element 0"):
        tiny_prior().sample(some, batch_size=1)


def test_what_needs_a_prior_is_refused_without_one():
    with pytest.raises(ConfigError, match="chemical_system, sampler: needs a learned prior"):
        tiny_module().sample(CrystalBatch.empty([2]), chemical_system="Li", sampler={"steps": 5})
    tiny_module().sample(CrystalBatch.empty([2]), chemical_system=None, sampler={})  # nothing is asked


@pytest.mark.parametrize("make", [tiny_module, lambda: tiny_prior().vae_module], ids=["vae", "prior"])
def test_what_sampling_does_not_know_is_named(make: Any):
    for ask in (make().sample, make().generate, make().sample_crystals):
        with pytest.raises(ConfigError, match=r"sample: unknown stepz, temprature; expected some of chemical_system, "):
            ask(CrystalBatch.empty([2]), stepz=5, temprature=1.0)


@pytest.mark.parametrize("given", ["Li-Mn-O", "O - Mn-Li", ["Li", 25, "O", "O"], [8, 3, 25], "3-25-8"])
def test_chemical_systems_are_read(given: Any):
    assert DrawOptions(chemical_system=given).elements == (3, 8, 25)
    assert DrawOptions(chemical_system=8).elements == (8,)
    assert DrawOptions().elements is None


def test_the_module_says_where_samples_come_from(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        tiny_prior().sample(CrystalBatch.empty([2]))
        VAEModule(**tiny_config()).sample(CrystalBatch.empty([2]))
    assert "from learned prior" in caplog.messages[0]
    assert "standard normal noise" in caplog.messages[1]


def test_samples_come_as_structures_and_atoms():
    module, template = tiny_prior(), CrystalBatch.empty([2, 5])
    structures: Any = module.sample(template, return_structures=True)
    atoms: Any = module.sample(template, return_atoms=True)
    assert [len(structure) for structure in structures] == [len(entry) for entry in atoms] == [2, 5]


def test_default_options_are_those_of_the_prior():
    module = tiny_prior(sampler={"steps": 3, "solver": "heun"})
    oracle = Oracle(lambda noisy, *_: noisy)
    module.prior.denoiser = oracle  # type: ignore[assignment]
    module.sample(CrystalBatch.empty([2]))
    assert len(oracle.calls) == module.prior.sampler.evaluations == 5
    module.sample(CrystalBatch.empty([2]), sampler={"steps": 2})
    assert len(oracle.calls) == 5 + replace(module.prior.sampler, steps=2).evaluations == 8


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_all_latents():
    module = tiny_prior(conditions=["energy"])
    crystals = random_crystals((4, 1, 7, 2, 3))
    module.fit_statistics(crystals, batch_size=2)
    with torch.no_grad():
        posterior = module.vae_module.vae.encode(crystals)
    torch.testing.assert_close(module.prior.latent_mean, posterior.mean.mean(dim=0), atol=1e-5, rtol=1e-4)
    total = posterior.mean.var(dim=0) + posterior.var.mean(dim=0)
    torch.testing.assert_close(module.prior.latent_std, total.sqrt(), atol=1e-5, rtol=1e-4)
    energies = crystals.properties["energy"]
    for embedder in (module.prior.conditions, module.prior.composition_conditions):
        assert float(embedder.mean[0]) == pytest.approx(float(energies.mean()), abs=1e-5)
        assert float(embedder.std[0]) == pytest.approx(float(energies.std()), abs=1e-5)
