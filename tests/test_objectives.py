"""Schedules, KL terms, reconstruction options, the cluster loss and active units, each against its formula."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.distributions import Bernoulli, Normal, kl_divergence

from crystalvae.build import trusting
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.loader import CrystalLoader
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import CheckpointError, ConfigError
from crystalvae.vae_module import DiagonalGaussianDistribution, VAEModule
from crystalvae.vae_module.layers.pooling import mean_over_atoms
from crystalvae.vae_module.objectives import batch_mean as batch_mean_module
from crystalvae.vae_module.objectives.batch_mean import batch_mean
from crystalvae.vae_module.objectives.cluster import cluster_loss
from crystalvae.vae_module.objectives.elbo import ELBO, PUBLISHED_WEIGHTS
from crystalvae.vae_module.objectives.kl_schedules import (
    CyclicalSchedule,
    LinearSchedule,
    NoSchedule,
    Schedule,
    SigmoidSchedule,
)
from crystalvae.vae_module.objectives.kl_terms import (
    CapacityELBO,
    FreeBitsELBO,
    capacity,
    capacity_penalty,
    free_bits_penalty,
)
from crystalvae.vae_module.objectives.latent_statistics import LatentStatistics
from tests.samples import SIZES, random_crystals, tiny_config, tiny_module
from tests.test_model import decoded_like

SCHEDULES = "crystalvae.vae_module.objectives.kl_schedules"
TERMS = "crystalvae.vae_module.objectives.kl_terms"
ELBO_TARGET = "crystalvae.vae_module.objectives.elbo.ELBO"
LINEAR = {"_target_": f"{SCHEDULES}.LinearSchedule", "warmup": 8}
OPTIMIZER = {"_target_": "torch.optim.AdamW", "lr": 3e-3}


def inverse_step(step: int, scale: float = 1.0) -> float:
    """A schedule of a user's own."""
    return scale / (1 + step)


@pytest.fixture
def crystals() -> CrystalBatch:
    return random_crystals()


def elbo(kind: type[ELBO] = ELBO, *, kl: float = 0.5, **options: Any) -> ELBO:
    return kind(**{"weights": {"kl": kl}, "coord_loss": "periodic", "latent_dim": 4, **options})


def losses(objective: ELBO, crystals: CrystalBatch, *, kl: torch.Tensor | None = None, **options: Any) -> dict:
    """What an objective says of a decoder that is right about everything: KL of 14 atoms and 4 latent dimensions."""
    kl = torch.linspace(0.0, 0.55, 56).view(14, 4) if kl is None else kl
    batch = TrainingBatch.whole(crystals)
    return objective(decoded_like(crystals), crystals, batch, means=torch.zeros(14, 4), kl=kl, **options)


# ---- schedules -------------------------------------------------------------------------------------------------------

FORMULAS = {
    "none": (NoSchedule, {}, lambda t: 1.0),
    "linear": (LinearSchedule, {"warmup": 40}, lambda t: min(1.0, t / 40)),
    "sigmoid": (SigmoidSchedule, {"warmup": 40}, lambda t: 1 / (1 + math.exp(-10 * (t / 40 - 0.5)))),
    "steep sigmoid": (
        SigmoidSchedule,
        {"warmup": 40, "steepness": 3.0},
        lambda t: 1 / (1 + math.exp(-3 * (t / 40 - 0.5))),
    ),
    "cyclical": (CyclicalSchedule, {"cyclical_period": 20}, lambda t: min(1.0, (t % 20) / 10)),
    "sawtooth": (CyclicalSchedule, {"cyclical_period": 20, "ramp_share": 1.0}, lambda t: (t % 20) / 20),
}


@pytest.mark.parametrize("kl_start", [0, 7])
@pytest.mark.parametrize("name", FORMULAS)
def test_schedules_follow_their_formulas(name: str, kl_start: int) -> None:
    kind, options, formula = FORMULAS[name]
    schedule = kind(kl_start=kl_start, **options)
    for step in range(150):
        expected = 0.0 if step < kl_start else formula(step - kl_start)
        assert schedule(step) == pytest.approx(expected, abs=1e-12), step
    assert schedule(31) == schedule(31), "no state"


def test_schedules_at_points_that_can_be_told_by_hand() -> None:
    assert [LinearSchedule(warmup=4)(t) for t in (0, 1, 2, 4, 9)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    sigmoid = SigmoidSchedule(warmup=100)
    assert sigmoid(50) == 0.5
    assert sigmoid(0) == pytest.approx(1 - sigmoid(100)) == pytest.approx(0.0066929, abs=1e-6)
    assert sigmoid(10**9) == 1.0
    cyclical = CyclicalSchedule(cyclical_period=10)
    assert [cyclical(t) for t in (0, 1, 5, 9, 10, 11, 1000, 1003)] == [0.0, 0.2, 1.0, 1.0, 0.0, 0.2, 0.0, 0.6]
    assert [NoSchedule(kl_start=3)(t) for t in (0, 2, 3, 4)] == [0.0, 0.0, 1.0, 1.0]


@given(st.integers(0, 10**7), st.integers(1, 10**6), st.integers(0, 1000))
def test_factors_lie_between_nothing_and_the_whole(step: int, length: int, start: int) -> None:
    for schedule in (
        LinearSchedule(warmup=length, kl_start=start),
        SigmoidSchedule(warmup=length, kl_start=start),
        CyclicalSchedule(cyclical_period=length, kl_start=start),
    ):
        assert 0.0 <= schedule(step) <= 1.0
        assert start == 0 or schedule(start - 1) == 0.0


def test_the_weight_is_the_factor_times_beta() -> None:
    objective = elbo(kl=0.3, schedule=LinearSchedule(warmup=10))
    assert [objective.kl_weight(t) for t in (0, 5, 10, 99)] == pytest.approx([0.0, 0.15, 0.3, 0.3])
    assert elbo(kl=0.3).kl_weight(0) == 0.3
    assert elbo(kl=1.0, schedule=inverse_step).kl_weight(3) == 0.25


@pytest.mark.parametrize(("unit", "expected"), [("step", 0.5 * 6 / 8), ("epoch", 0.5 * 2 / 8)])
def test_time_is_counted_in_steps_or_epochs(unit: str, expected: float, crystals: CrystalBatch) -> None:
    values = losses(elbo(schedule=LinearSchedule(warmup=8), schedule_unit=unit), crystals, step=6, epoch=2)
    assert float(values["kl_weight"]) == pytest.approx(expected)
    assert float(values["loss"] - values["recon_loss"]) == pytest.approx(expected * float(values["kl_loss"]))


# ---- KL terms --------------------------------------------------------------------------------------------------------


def test_kl_between_gaussians_equals_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 3.0):
        first, second = (scale * torch.randn(20, 6, generator=generator) for _ in range(2))
        theirs = kl_divergence(*(Normal(v[:, :3], (0.5 * v[:, 3:]).exp()) for v in (first, second)))
        a, b = DiagonalGaussianDistribution(first), DiagonalGaussianDistribution(second)
        torch.testing.assert_close(a.kl_per_dimension(b), theirs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.kl(b), theirs.sum(-1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.kl(a), torch.zeros(20), atol=1e-5, rtol=0.0)
        standard = DiagonalGaussianDistribution(torch.zeros(20, 6))
        torch.testing.assert_close(a.kl(standard), a.kl())


def test_the_kl_is_per_atom_or_per_crystal(crystals: CrystalBatch) -> None:
    kl = torch.rand(14, 4, generator=torch.Generator().manual_seed(0))
    for reduction, count in (("mean", 14), ("sum", 4)):
        values = losses(elbo(reductions={"kl": reduction}), crystals, kl=kl)
        assert float(values["kl_loss"]) == pytest.approx(float(kl.sum()) / count)
        assert float(values["loss"]) == pytest.approx(0.5 * float(kl.sum()) / count, rel=1e-4)


@pytest.mark.parametrize(("time", "allowed"), [(0, 0.0), (10, 2.0), (25, 5.0), (50, 10.0), (51, 10.0), (10**6, 10.0)])
def test_capacity_grows_linearly_and_stays(time: int, allowed: float, crystals: CrystalBatch) -> None:
    assert capacity(time, capacity_max=10.0, capacity_num_iter=50) == pytest.approx(allowed)
    objective = elbo(CapacityELBO, kl=3.0, capacity_max=10.0, capacity_num_iter=50)
    values = losses(objective, crystals, step=time)
    kl = float(values["kl_loss"])
    assert float(values["capacity"]) == pytest.approx(allowed)
    assert float(values["kl_penalty"]) == pytest.approx(abs(kl - allowed))
    assert float(values["loss"]) == pytest.approx(3.0 * abs(kl - allowed), rel=1e-4)
    assert float(values["kl_weight"]) == 3.0


@pytest.mark.parametrize(("allowed", "sign"), [(0.5, 1.0), (2.0, -1.0)])
def test_capacity_pulls_the_kl_from_both_sides(allowed: float, sign: float) -> None:
    kl = torch.tensor([0.25, 0.75]).requires_grad_()
    capacity_penalty(kl, allowed).backward()
    assert kl.grad is not None
    assert kl.grad.tolist() == [sign, sign]


def test_free_bits_cost_the_floor_and_stop_gradients_below_it() -> None:
    kl = torch.tensor([0.0, 0.05, 0.1, 0.2, 3.0]).requires_grad_()
    penalty = free_bits_penalty(kl, 0.1)
    assert float(penalty.detach()) == pytest.approx(0.1 + 0.1 + 0.1 + 0.2 + 3.0)
    penalty.backward()
    assert kl.grad is not None
    assert kl.grad.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_free_bits_are_of_the_batch_mean_and_reach_the_posterior(crystals: CrystalBatch) -> None:
    """One latent dimension with a mean KL below the floor, although one atom's is above; three others above it."""
    values = torch.zeros(14, 8)
    values[0, 0] = 1.0  # KL ½ for one atom, 1/28 in the mean
    values[:, 1:4] = 1.0
    parameters = values.requires_grad_()
    kl = DiagonalGaussianDistribution(parameters).kl_per_dimension()
    result = losses(elbo(FreeBitsELBO, free_bits=0.1), crystals, kl=kl)
    assert float(result["kl_penalty"].detach()) == pytest.approx(0.1 + 3 * 0.5)
    assert float(result["kl_loss"].detach()) == pytest.approx(0.5 / 14 + 3 * 0.5)
    result["loss"].backward()
    assert parameters.grad is not None
    assert not parameters.grad[:, 0].any()
    torch.testing.assert_close(parameters.grad[:, 1:4], torch.full((14, 3), 0.5 / 14))


def test_no_floor_and_no_capacity_are_the_plain_kl(crystals: CrystalBatch) -> None:
    plain = losses(elbo(), crystals)["loss"]
    torch.testing.assert_close(losses(elbo(FreeBitsELBO, free_bits=0.0), crystals)["loss"], plain)
    none = elbo(CapacityELBO, capacity_max=0.0, capacity_num_iter=1)
    torch.testing.assert_close(losses(none, crystals, step=5)["loss"], plain)


def test_penalties_of_the_bottleneck_are_weighted_and_named(crystals: CrystalBatch) -> None:
    objective = elbo()
    penalties = {"commitment_loss": torch.tensor(3.0), "codebook_loss": torch.tensor(5.0)}
    values = objective(
        decoded_like(crystals),
        crystals,
        TrainingBatch.whole(crystals),
        means=torch.zeros(14, 4),
        kl=None,
        penalties=penalties,
        penalty_weights={"commitment_loss": 0.25, "codebook_loss": 2.0},
    )
    assert float(values["loss"] - values["recon_loss"]) == pytest.approx(0.25 * 3 + 2 * 5)
    assert float(values["commitment_loss"]) == 3.0
    assert "kl_loss" not in values


@pytest.mark.parametrize(
    "objective",
    [
        elbo(schedule=LinearSchedule(warmup=3)),
        elbo(FreeBitsELBO, free_bits=0.1),
        elbo(CapacityELBO, capacity_max=1.0, capacity_num_iter=10),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_what_acts_on_a_kl_refuses_a_bottleneck_without(objective: ELBO, crystals: CrystalBatch) -> None:
    batch = TrainingBatch.whole(crystals)
    with pytest.raises(ConfigError, match="does not have"):
        objective(decoded_like(crystals), crystals, batch, means=torch.zeros(14, 4), kl=None)


# ---- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curved", ["free bits", "capacity", "cluster"])
def test_curved_terms_are_those_of_the_whole_batch(curved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of 6 and 2 rows: the mean of their gradients is the gradient of one process with all 8."""
    rows = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    parts = [rows[:6], rows[6:]]

    def share(values: torch.Tensor) -> torch.Tensor:
        return values.T @ values / 4 if curved == "cluster" else values.sum(0) / 4

    def term(values: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
        if curved == "cluster":
            return cluster_loss(values, batch, components=2)
        mean = batch_mean(values.sum(0) / batch.mean_crystals, batch)
        return free_bits_penalty(mean, 0.5) if curved == "free bits" else capacity_penalty(mean, 5.0)

    def gradient(values: torch.Tensor, batch: TrainingBatch) -> tuple[float, torch.Tensor]:
        values = values.clone().requires_grad_()
        result = term(values, batch)
        result.backward()
        assert values.grad is not None
        return float(result.detach()), values.grad

    whole = replace(TrainingBatch.whole(CrystalBatch.empty([1] * 8)), total_crystals=8)
    expected, gradients = gradient(rows, whole)
    together = sum(share(part) for part in parts)
    monkeypatch.setattr(batch_mean_module.dist, "all_reduce", lambda total: total.copy_(together))
    shares = [gradient(part, replace(whole, world_size=2)) for part in parts]
    assert [value for value, _ in shares] == pytest.approx([expected, expected], rel=1e-5)
    torch.testing.assert_close(torch.cat([found for _, found in shares]) / 2, gradients, atol=1e-5, rtol=1e-4)


# ---- reconstruction options ------------------------------------------------------------------------------------------


def test_binary_cross_entropy_is_that_of_independent_classes(crystals: CrystalBatch) -> None:
    logits = torch.randn(14, 100, generator=torch.Generator().manual_seed(0))
    decoded = replace(decoded_like(crystals), atom_logits=logits)
    hot = F.one_hot(crystals.atom_types, 100).float()
    expected = {
        "bce": -Bernoulli(logits=logits).log_prob(hot).sum(-1),
        "cross_entropy": F.cross_entropy(logits, crystals.atom_types, reduction="none"),
    }
    for name, per_atom in expected.items():
        for reduction, count in (("mean", 14), ("sum", 4)):
            objective = elbo(element_loss=name, reductions={"atom_types": reduction})
            kl = torch.zeros(14, 4)
            got = objective(decoded, crystals, TrainingBatch.whole(crystals), means=kl, kl=kl)["atom_types"]
            assert float(got) == pytest.approx(float(per_atom.sum()) / count, rel=1e-5)


@pytest.mark.parametrize("element_loss", ["cross_entropy", "bce"])
def test_both_element_losses_learn_the_element(element_loss: str, crystals: CrystalBatch) -> None:
    logits = torch.zeros(14, 100, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    kl = torch.zeros(14, 4)
    for _ in range(30):
        decoded = replace(decoded_like(crystals), atom_logits=logits)
        objective = elbo(element_loss=element_loss)
        optimizer.zero_grad()
        objective(decoded, crystals, TrainingBatch.whole(crystals), means=kl, kl=kl)["loss"].backward()
        optimizer.step()
    assert torch.equal(logits.argmax(-1), crystals.atom_types)


def test_sums_are_the_means_times_what_is_in_a_crystal(crystals: CrystalBatch) -> None:
    module = tiny_module()
    with torch.no_grad():
        decoded = module.vae.decode(module.vae.encode(crystals).mode(), crystals)
    kl, batch = torch.zeros(14, 4), TrainingBatch.whole(crystals)
    parts = ("atom_types", "frac_coords", "lengths", "angles")
    mean = elbo()(decoded, crystals, batch, means=kl, kl=kl)
    total = elbo(reductions=dict.fromkeys(parts, "sum"))(decoded, crystals, batch, means=kl, kl=kl)
    factors = {"atom_types": 14 / 4, "frac_coords": 3 * 14 / 4, "lengths": 3.0, "angles": 3.0}
    for name, factor in factors.items():
        assert float(total[name]) == pytest.approx(factor * float(mean[name]), rel=1e-5)
        one = elbo(reductions={name: "sum"})(decoded, crystals, batch, means=kl, kl=kl)
        changed = {part for part in parts if not torch.equal(one[part], mean[part])}
        assert changed == {name}


# ---- cluster loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("crystals_", "latents", "k"), [(9, 4, 2), (9, 4, 4), (3, 4, 3), (3, 4, 4), (1, 2, 1)])
def test_the_cluster_loss_is_that_of_the_gram_matrix(crystals_: int, latents: int, k: int) -> None:
    rows = torch.randn(crystals_, latents, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = rows @ rows.T / crystals_
    expected = torch.linalg.svdvals(gram)[:k].sqrt().sum()
    got = cluster_loss(rows.float(), TrainingBatch.whole(CrystalBatch.empty([1] * crystals_)), components=k)
    # Singular values that are 0 count as the square roots of rounding errors in the formula taken literally.
    assert float(got) == pytest.approx(float(expected), abs=2e-4)
    assert float(got) == pytest.approx(float(torch.linalg.svdvals(rows)[:k].sum()) / math.sqrt(crystals_), rel=1e-4)


def test_the_cluster_loss_has_finite_gradients_that_shrink_the_leading_directions() -> None:
    batch = TrainingBatch.whole(CrystalBatch.empty([1] * 6))
    line = torch.outer(torch.arange(1.0, 7.0), torch.tensor([3.0, 4.0, 0.0])).requires_grad_()
    cluster_loss(line, batch, components=3).backward()  # two of the three singular values are 0
    assert line.grad is not None
    assert bool(torch.isfinite(line.grad).all())
    norm = math.sqrt(91)
    torch.testing.assert_close(line.grad, line.detach() / (5 * norm) / math.sqrt(6), atol=1e-4, rtol=1e-3)
    same = torch.zeros(6, 3).requires_grad_()
    loss = cluster_loss(same, batch, components=3)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert same.grad is not None
    assert not same.grad.any()


def test_the_cluster_loss_is_of_crystals_and_weighted(crystals: CrystalBatch) -> None:
    means = torch.randn(14, 4, generator=torch.Generator().manual_seed(0))
    kl, batch = torch.zeros(14, 4), TrainingBatch.whole(crystals)
    objective = elbo(cluster_weight=0.3, cluster_components=2)
    values = objective(decoded_like(crystals), crystals, batch, means=means, kl=kl)
    expected = cluster_loss(mean_over_atoms(means, crystals), batch, components=2)
    torch.testing.assert_close(values["cluster_loss"], expected)
    assert float(values["loss"] - values["recon_loss"]) == pytest.approx(0.3 * float(expected), rel=1e-4)
    assert "cluster_loss" not in losses(elbo(), crystals)


# ---- active units ----------------------------------------------------------------------------------------------------


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    means = 100.0 + torch.tensor([0.0, 0.05, 0.2, 1.0]) * torch.randn(500, 4, generator=generator)
    kl = torch.rand(500, 4, generator=generator)
    whole = LatentStatistics.of(means, kl)
    merged = LatentStatistics.merged(
        LatentStatistics.of(a, b) for a, b in zip(means.split([7, 200, 293]), kl.split([7, 200, 293]), strict=True)
    )
    torch.testing.assert_close(merged.variance, means.double().var(0, correction=0).float(), atol=1e-5, rtol=1e-3)
    for found in (whole, merged):
        assert found.active_units == 2  # variances 0, 0.0025, 0.04, 1; the limit is 0.01
        assert float(found.count) == 500
        torch.testing.assert_close(found.kl, kl.mean(0))
    stacked = merged.gathered(lambda value: torch.stack([value, value]))
    torch.testing.assert_close(stacked.variance, merged.variance)
    assert float(stacked.count) == 1000
    assert set(merged.metrics()) == {"active_units", *(f"kl_dim_{i}" for i in range(4))}
    assert set(LatentStatistics.of(means, None).metrics()) == {"active_units"}


# ---- bad options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule_unit": "hour"}, r"objective.schedule_unit: got 'hour'; expected one of 'step', 'epoch'"),
        ({"element_loss": "l1"}, r"objective.element_loss: got 'l1'; expected one of 'cross_entropy', 'bce'"),
        ({"reductions": {"lengths": "max"}}, r"objective.reductions.lengths: got 'max'; expected one of 'mean', 'sum'"),
        ({"reductions": {"colour": "sum"}}, r"objective.reductions.colour: unknown part; expected some of atom_types"),
        ({"cluster_weight": -1.0}, r"objective.cluster_weight: got -1.0; expected a number of at least 0"),
        ({"cluster_components": 0}, r"objective.cluster_components: got 0; expected a whole number of at least 1"),
        (
            {"cluster_weight": 1.0, "cluster_components": 5},
            r"cluster_components: got 5; expected at most latent_dim",
        ),
        ({"schedule": 3}, r"objective.schedule: got 3; expected a function"),
        (
            {"schedule": {**LINEAR, "warmup": 0}},
            r"objective.schedule.warmup: got 0; expected a whole number",
        ),
        ({"schedule": {**LINEAR, "kl_start": -1}}, r"objective.schedule.kl_start: got -1; expected"),
        (
            {"schedule": {"_target_": f"{SCHEDULES}.SigmoidSchedule", "warmup": 5, "steepness": 0.0}},
            r"objective.schedule.steepness: got 0.0; expected a number above 0",
        ),
        (
            {"schedule": {"_target_": f"{SCHEDULES}.CyclicalSchedule", "cyclical_period": 0}},
            r"objective.schedule.cyclical_period: got 0; expected",
        ),
        (
            {"schedule": {"_target_": f"{SCHEDULES}.CyclicalSchedule", "cyclical_period": 5, "ramp_share": 1.5}},
            r"objective.schedule.ramp_share: got 1.5; expected a share in \(0, 1\]",
        ),
        ({"_target_": f"{TERMS}.FreeBitsELBO", "free_bits": -0.1}, r"objective.free_bits: got -0.1; expected"),
        (
            {"_target_": f"{TERMS}.CapacityELBO", "capacity_max": math.inf, "capacity_num_iter": 5},
            r"objective.capacity_max: got inf; expected a number of at least 0",
        ),
        (
            {"_target_": f"{TERMS}.CapacityELBO", "capacity_max": 5.0, "capacity_num_iter": 0},
            r"objective.capacity_num_iter: got 0; expected a whole number of at least 1",
        ),
        ({"_target_": f"{TERMS}.CapacityELBO"}, r"objective: .*capacity_max"),
        ({"colour": 1}, r"objective: .*colour"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("without_type_checks")
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VAEModule(**tiny_config(objective={"_target_": ELBO_TARGET, **options}))


@pytest.mark.parametrize("factor", [-0.1, math.nan, math.inf])
def test_a_schedule_that_gives_no_weight_is_refused(factor: float) -> None:
    with pytest.raises(ConfigError, match=r"objective.schedule: gave .* at step 3"):
        elbo(schedule=lambda step: factor).kl_weight(3)


# ---- training --------------------------------------------------------------------------------------------------------

TRAINED = {
    "linear": {"schedule": LINEAR},
    "sigmoid by epoch": {
        "schedule": {"_target_": f"{SCHEDULES}.SigmoidSchedule", "warmup": 3},
        "schedule_unit": "epoch",
    },
    "cyclical": {"schedule": {"_target_": f"{SCHEDULES}.CyclicalSchedule", "cyclical_period": 5, "kl_start": 2}},
    "free bits": {"_target_": f"{TERMS}.FreeBitsELBO", "free_bits": 0.25, "schedule": LINEAR},
    "capacity": {"_target_": f"{TERMS}.CapacityELBO", "capacity_max": 4.0, "capacity_num_iter": 10},
    "bce, sums": {"element_loss": "bce", "reductions": dict.fromkeys((*PUBLISHED_WEIGHTS,), "sum")},
    "cluster": {"cluster_weight": 0.1, "cluster_components": 2},
}


def trainer(folder: Path, *, epochs: int, **options: Any) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=CSVLogger(folder, name="csv"),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,
    )


def logged(folder: Path, name: str) -> list[float]:
    """A metric's values in the order of steps, over all the runs in a folder; a run's last value of a step counts."""
    found: dict[int, float] = {}
    for path in sorted(folder.glob("csv/version_*/metrics.csv")):
        for row in csv.DictReader(path.read_text().splitlines()):
            if row.get(name):
                found[int(row["step"])] = float(row[name])
    return [found[step] for step in sorted(found)]


def fresh(objective: dict[str, Any], **options: Any) -> VAEModule:
    torch.manual_seed(0)
    config = {"loss_weights": {"kl": 0.01}, "optimizer": OPTIMIZER, "augmentation": {"translate": True}, **options}
    return VAEModule(**tiny_config(objective={"_target_": ELBO_TARGET, **objective}, **config))


def loaders() -> tuple[CrystalLoader, CrystalLoader]:
    train = random_crystals(SIZES * 4, seed=1)
    return CrystalLoader(train, batch_size=4, shuffle=True), CrystalLoader(train, batch_size=8, shuffle=False)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*batch_size")
@pytest.mark.parametrize("name", TRAINED)
def test_every_objective_trains_saves_loads_and_samples(name: str, tmp_path: Path) -> None:
    module = fresh(TRAINED[name], loss_weights={"kl": 1e-3})
    best = ModelCheckpoint(tmp_path / "kept", monitor="val/recon_loss", filename="best")
    stopping = EarlyStopping(monitor="val/loss", patience=100, check_finite=True)
    trainer(tmp_path, epochs=8, callbacks=[best, stopping]).fit(module, *loaders())
    for part in ("loss", "recon_loss", "kl_loss", "kl_weight", "atom_types", "frac_coords", "lengths", "angles"):
        values = logged(tmp_path, f"train/{part}")
        assert len(values) == 32, part
        assert all(math.isfinite(value) for value in values)
    recon = logged(tmp_path, "val/recon_loss")
    assert recon[-1] < 0.95 * recon[0]
    assert best.best_model_score is not None
    assert float(best.best_model_score) == pytest.approx(min(recon), rel=1e-6)
    assert all(0 <= value <= 4 for value in logged(tmp_path, "val/active_units"))
    per_number = [logged(tmp_path, f"val/kl_dim_{i}")[-1] for i in range(4)]
    kl = logged(tmp_path, "val/kl_loss")[-1] * (4 / 14 if "sums" in name else 1.0)
    assert sum(per_number) == pytest.approx(kl, rel=1e-3)
    loaded = VAEModule.load_from_checkpoint(best.best_model_path, weights_only=True)
    assert type(loaded.objective) is type(module.objective)
    assert loaded.config["objective"] == module.config["objective"]
    sample = loaded.sample(CrystalBatch.empty([2, 3]))
    assert bool(torch.isfinite(sample.lattices).all())


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*batch_size")
@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_the_schedule_goes_on_after_resuming(unit: str, tmp_path: Path) -> None:
    schedule = {"_target_": f"{SCHEDULES}.CyclicalSchedule", "cyclical_period": 6, "kl_start": 1}
    objective = {"schedule": schedule, "schedule_unit": unit}
    still: dict[str, Any] = {"enable_checkpointing": False}
    trainer(tmp_path / "whole", epochs=5, **still).fit(fresh(objective), *loaders())
    first = trainer(tmp_path / "parts", epochs=2, **still)
    first.fit(fresh(objective), *loaders())
    first.save_checkpoint(tmp_path / "stopped.ckpt")
    trainer(tmp_path / "parts", epochs=5, **still).fit(
        fresh(objective), *loaders(), ckpt_path=tmp_path / "stopped.ckpt", weights_only=True
    )
    factor = CyclicalSchedule(cyclical_period=6, kl_start=1)
    expected = [0.01 * factor(step if unit == "step" else step // 4) for step in range(20)]
    for folder in ("whole", "parts"):
        assert logged(tmp_path / folder, "train/kl_weight") == pytest.approx(expected), folder
    assert logged(tmp_path / "parts", "train/loss") == pytest.approx(logged(tmp_path / "whole", "train/loss"), rel=1e-4)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_schedule_of_ones_own_is_kept_by_name(tmp_path: Path, crystals: CrystalBatch) -> None:
    own = {"_target_": f"{__name__}.inverse_step", "_partial_": True, "scale": 3.0}
    with pytest.raises(ConfigError, match=r"inverse_step.*trusted_targets"):
        fresh({"schedule": own})
    with trusting([f"{__name__}."]):
        module = fresh({"schedule": own})
    assert module.objective.kl_weight(2) == pytest.approx(0.01 * 3.0 / 3)
    path = tmp_path / "own.ckpt"
    module.save_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"inverse_step.*trusted_targets"):
        VAEModule.load_from_checkpoint(path)
    loaded = VAEModule.load_from_checkpoint(path, trusted_targets=(f"{__name__}.",))
    assert loaded.objective.kl_weight(2) == module.objective.kl_weight(2)


@pytest.mark.parametrize(
    "target",
    ["crystalvae.checkpoints.format.write", f"{SCHEDULES}.check_count", "os.system", f"{TERMS}.free_bits_penalty"],
)
def test_a_checkpoint_names_no_function_as_its_schedule(target: str, tmp_path: Path) -> None:
    module = tiny_module()
    module.config["objective"] = {"_target_": ELBO_TARGET, "schedule": {"_target_": target, "_partial_": True}}
    module.save_checkpoint(tmp_path / "hostile.ckpt")
    with pytest.raises(CheckpointError, match="not one of this package's parts"):
        VAEModule.load_from_checkpoint(tmp_path / "hostile.ckpt")


def loss_of(module: VAEModule, batch: TrainingBatch, *, training: bool) -> dict[str, float]:
    with torch.no_grad():
        return {name: float(value) for name, value in module.losses(batch, training=training).items()}


def test_a_model_that_says_nothing_has_the_plain_bound(crystals: CrystalBatch) -> None:
    said = tiny_module(objective={"_target_": ELBO_TARGET})
    unsaid = tiny_module()
    for training in (False, True):
        batch = TrainingBatch.whole(crystals)
        assert loss_of(unsaid, batch, training=training) == loss_of(said, batch, training=training)
    assert isinstance(unsaid.objective.schedule, Schedule)
    assert list(unsaid.objective.state_dict()) == []
