"""The hierarchy of latents: its KL, its order, its checks, and a VAE made of modules of one's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.bottlenecks.hierarchical import HierarchicalBottleneck, LadderBottleneck, LevelMLP
from crystalvae.vae_module.bottlenecks.hierarchical_config import HierarchicalConfig
from crystalvae.vae_module.hierarchical_vae import hierarchical_vae
from crystalvae.vae_module.objectives.kl_schedules import LinearSchedule
from tests.samples import assert_same_crystals, random_crystals, tiny_config

DIMS = (4, 3, 2)
"""Latent dimensions of an atom, then of the two levels of its crystal."""


def hierarchy(*, hierarchical_kl: bool = True, learned: bool = True, depth: int = 3) -> LadderBottleneck:
    """Linear maps of weights that show, between the levels."""
    dims = DIMS[:depth]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = LadderBottleneck(
            latent_dim=dims[0],
            crystal_dims=list(dims[1:]),
            features=6,
            decoded=5,
            depth=depth,
            encoders=[nn.Linear(6, 2 * size) for size in dims],
            decoders=[nn.Linear(size + (5 if k < depth - 1 else 0), 5) for k, size in enumerate(dims)],
            priors=[nn.Linear(dims[k + 1], 2 * dims[k]) for k in range(depth - 1)] if learned else None,
            hierarchical_kl=hierarchical_kl,
        )
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.5)
    return made.eval()


@pytest.fixture
def crystals() -> CrystalBatch:
    return random_crystals()


@pytest.fixture
def features(crystals: CrystalBatch) -> torch.Tensor:
    return torch.randn(crystals.num_nodes, 6, generator=torch.Generator().manual_seed(0))


def normal(output: torch.Tensor) -> Normal:
    mean, logvar = output.chunk(2, dim=-1)
    return Normal(mean, (0.5 * logvar).exp())


# ---- encode ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_level_1_reads_atoms_and_the_others_their_mean(crystals: CrystalBatch, features: torch.Tensor) -> None:
    made = hierarchy()
    posterior = made.posterior(features, crystals)
    assert made.latent_dim == sum(DIMS) == posterior.mean.shape[1]
    expected = normal(made.encoders[0](features))
    torch.testing.assert_close(posterior.mean[:, :4], expected.mean)
    torch.testing.assert_close(posterior.std[:, :4], expected.stddev)
    for index in range(len(crystals)):
        atoms = crystals.batch == index
        mean = features[atoms].mean(dim=0)
        for level, columns in ((1, slice(4, 7)), (2, slice(7, 9))):
            expected = normal(made.encoders[level](mean))
            for row in posterior.mean[atoms, columns]:
                torch.testing.assert_close(row, expected.mean)
            for row in posterior.std[atoms, columns]:
                torch.testing.assert_close(row, expected.stddev)


@torch.no_grad()
def test_draws_are_shared_by_the_atoms_of_a_crystal(features: torch.Tensor) -> None:
    made, crystals = hierarchy(), random_crystals()
    posterior = made.posterior(features, crystals)
    drawn = posterior.sample(torch.Generator().manual_seed(1))
    for index in range(len(crystals)):
        rows = drawn[crystals.batch == index]
        assert torch.equal(rows[:, 4:], rows[:1, 4:].expand(len(rows), -1))
        assert len(rows) == 1 or not torch.equal(rows[0, :4], rows[1, :4])
    noise = torch.randn(crystals.num_nodes, 9, generator=torch.Generator().manual_seed(2))
    got = (posterior.reparameterize(noise) - posterior.mean) / posterior.std
    torch.testing.assert_close(got[:, :4], noise[:, :4], atol=1e-4, rtol=1e-4)
    first = noise[crystals.ptr[:-1]][crystals.batch]
    torch.testing.assert_close(got[:, 4:], first[:, 4:], atol=1e-4, rtol=1e-4)
    assert torch.equal(posterior.mode(), posterior.mean)


# ---- KL --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("hierarchical_kl", [True, False])
@torch.no_grad()
def test_kl_is_that_of_torch_distributions(
    learned: bool, hierarchical_kl: bool, crystals: CrystalBatch, features: torch.Tensor
) -> None:
    """Σ_k KL(q(z_k | x) ‖ p(z_k | z_k+1)) of each crystal, a third of it where the weight is spread over 3 levels."""
    made = hierarchy(learned=learned, hierarchical_kl=hierarchical_kl)
    posterior = made.posterior(features, crystals)
    latents = posterior.sample(torch.Generator().manual_seed(3))
    got = made.kl(posterior, latents, crystals)
    metrics = made.metrics(posterior, latents, crystals)
    standard, sums = Normal(0.0, 1.0), torch.zeros(3)
    assert got.shape == (crystals.num_nodes, 9)
    for index in range(len(crystals)):
        atoms = crystals.batch == index
        mean = features[atoms].mean(dim=0)
        third, second = latents[atoms][0, 7:], latents[atoms][0, 4:7]
        priors = (
            [normal(made.priors[k](above)) for k, above in enumerate((second, third))] if learned else [standard] * 2
        )
        levels = torch.stack(
            [
                kl_divergence(normal(made.encoders[0](features[atoms])), priors[0]).sum(),
                kl_divergence(normal(made.encoders[1](mean)), priors[1]).sum(),
                kl_divergence(normal(made.encoders[2](mean)), standard).sum(),
            ]
        )
        expected = levels.sum() / (3 if hierarchical_kl else 1)
        torch.testing.assert_close(got[atoms].sum(), expected, atol=1e-3, rtol=1e-4)
        sums += levels
    names = ("kl_level_1", "kl_level_2", "kl_level_3")
    assert tuple(metrics) == names
    expected = [sums[0] / crystals.num_nodes, sums[1] / len(crystals), sums[2] / len(crystals)]
    torch.testing.assert_close(torch.stack([metrics[name] for name in names]), torch.stack(expected))


def test_learned_priors_start_as_standard_normal_and_learn_from_the_kl_alone(crystals: CrystalBatch) -> None:
    torch.manual_seed(0)
    made = HierarchicalBottleneck(latent_dim=4, crystal_dim=3, width=8)
    fixed = HierarchicalBottleneck(latent_dim=4, crystal_dim=3, width=8, learned_priors=False)
    fixed.load_state_dict({name: value for name, value in made.state_dict().items() if not name.startswith("priors")})
    features = 3.0 + torch.randn(crystals.num_nodes, 8)
    posterior = made.posterior(features, crystals)
    before = made.kl(posterior, posterior.mode(), crystals)
    torch.testing.assert_close(before, fixed.kl(posterior, posterior.mode(), crystals))
    optimizer = torch.optim.Adam(made.priors.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = made.kl(posterior, posterior.mode(), crystals).sum()
        loss.backward(retain_graph=True)
        optimizer.step()
    assert float(loss.detach()) < 0.7 * float(before.sum().detach())


# ---- decode ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_decoding_goes_from_the_deepest_latent_down(crystals: CrystalBatch, features: torch.Tensor) -> None:
    made, order = hierarchy(), []
    for level, decoder in enumerate(made.decoders):
        decoder.register_forward_hook(lambda *_, level=level: order.append(level))
    latents = made.posterior(features, crystals).mode()
    got = made.features(latents, crystals)
    assert order == [2, 1, 0]
    for index in range(len(crystals)):
        atoms = crystals.batch == index
        rows = latents[atoms]
        third = made.decoders[2](rows[0, 7:])
        second = made.decoders[1](torch.cat((rows[0, 4:7], third)))
        expected = made.decoders[0](torch.cat((rows[:, :4], second.expand(len(rows), -1)), dim=-1))
        torch.testing.assert_close(got[atoms], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_of_crystal_latents_that_differ_between_atoms_the_mean_counts(crystals: CrystalBatch) -> None:
    made = hierarchy()
    latents = torch.randn(crystals.num_nodes, 9, generator=torch.Generator().manual_seed(0))
    mean = torch.stack([latents[crystals.batch == index, 4:].mean(dim=0) for index in range(len(crystals))])
    shared = torch.cat((latents[:, :4], mean[crystals.batch]), dim=-1)
    torch.testing.assert_close(made.features(latents, crystals), made.features(shared, crystals), atol=1e-5, rtol=1e-5)


# ---- sampling --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_sampling_is_ancestral() -> None:
    """The deepest level from N(0, I), each other from its prior given the draw above; atoms of a crystal share it."""
    made, count = hierarchy(), 3_000
    template = CrystalBatch.empty([2] * count)
    drawn = made.sample_latents(template, temperature=1.0, generator=torch.Generator().manual_seed(0))
    pairs = drawn.view(count, 2, 9)
    assert torch.equal(pairs[:, 0, 4:], pairs[:, 1, 4:])
    third, second = pairs[:, 0, 7:], pairs[:, 0, 4:7]
    for values, prior in (
        (third, Normal(torch.zeros(2), torch.ones(2))),
        (second, normal(made.priors[1](third))),
        (pairs[:, 0, :4], normal(made.priors[0](second))),
        (pairs[:, 1, :4], normal(made.priors[0](second))),
    ):
        scaled = (values - prior.mean) / prior.stddev
        assert float(scaled.mean(dim=0).abs().max()) < 5 / math.sqrt(count)
        torch.testing.assert_close(scaled.T @ scaled / count, torch.eye(scaled.shape[1]), atol=0.15, rtol=0.0)
    still = made.sample_latents(template, temperature=0.0, generator=None).view(count, 2, 9)
    assert not still[..., 7:].any()
    torch.testing.assert_close(still[0, 0, 4:7], normal(made.priors[1](torch.zeros(2))).mean)
    torch.testing.assert_close(still[5, 1, :4], normal(made.priors[0](still[5, 1, 4:7])).mean)
    plain = hierarchy(learned=False).sample_latents(
        template, temperature=2.0, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(plain.std(dim=0), torch.full((9,), 2.0), atol=0.2, rtol=0.0)


def test_one_level_is_a_gaussian_with_networks_around_it(crystals: CrystalBatch, features: torch.Tensor) -> None:
    made = hierarchy(depth=1, learned=False)
    posterior = made.posterior(features, crystals)
    assert made.latent_dim == 4
    torch.testing.assert_close(made.kl(posterior, posterior.mode(), crystals), posterior.kl_per_dimension())
    assert made.sample_latents(crystals, temperature=1.0, generator=None).shape == (crystals.num_nodes, 4)


# ---- checks ----------------------------------------------------------------------------------------------------------


def modules(count: int) -> list[nn.Module]:
    return [nn.Linear(2, 2) for _ in range(count)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoders": []}, r"bottleneck.encoders: got an empty list; expected 2 torch modules"),
        ({"encoders": nn.Linear(1, 1)}, r"bottleneck.encoders: got a Linear; expected a list of torch modules"),
        ({"encoders": [nn.Linear(1, 1), "b"]}, r"bottleneck.encoders\[1\]: got a str; expected a torch.nn.Module"),
        ({"encoders": modules(3)}, r"bottleneck.encoders: got 3 modules with depth 2; expected 2: one for each"),
        ({"decoders": []}, r"bottleneck.decoders: got an empty list"),
        ({"decoders": [None, None]}, r"bottleneck.decoders\[0\]: got a NoneType"),
        ({"decoders": modules(1)}, r"bottleneck.decoders: got 1 modules with depth 2; expected 2"),
        ({"depth": 0}, r"bottleneck.depth: got 0; expected a whole number of levels, at least 1"),
        ({"depth": True}, r"bottleneck.depth: got True"),
        ({"depth": 2.0}, r"bottleneck.depth: got 2.0"),
        ({"priors": []}, r"bottleneck.priors: got an empty list; expected 1 torch modules: depth - 1"),
        ({"priors": modules(2)}, r"bottleneck.priors: got 2 modules with depth 2; expected 1: depth - 1"),
        ({"priors": ["a"]}, r"bottleneck.priors\[0\]: got a str"),
        (
            {"depth": 1, "encoders": modules(1), "decoders": modules(1), "priors": modules(1)},
            r"bottleneck.priors: depth 1 has no level with another above it; expected null",
        ),
        ({"kl_weight": -0.1}, r"bottleneck.kl_weight: got -0.1; expected a number of at least 0"),
        ({"kl_weight": "much"}, r"bottleneck.kl_weight: got 'much'"),
        ({"kl_weight": math.inf}, r"bottleneck.kl_weight: got inf"),
        ({"reconstruction_loss": "l1"}, r"bottleneck.reconstruction_loss: got 'l1'; expected one of 'periodic', 'mse'"),
        ({"beta_schedule": 0.5}, r"bottleneck.beta_schedule: got 0.5; expected a function"),
        ({"hierarchical_kl": 1}, r"bottleneck.hierarchical_kl: got 1; expected true or false"),
        ({"wiring": "up"}, r"bottleneck.wiring: got 'up'; expected one of 'direct', 'chained'"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_each_violation_has_its_own_message(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"encoders": modules(2), "decoders": modules(2), "depth": 2, "priors": modules(1)}
    HierarchicalConfig(**good)
    HierarchicalConfig(**{**good, "priors": None, "kl_weight": 0, "encoders": nn.ModuleList(modules(2))})
    with pytest.raises(ConfigError, match=message):
        HierarchicalConfig(**{**good, **changes})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, r"bottleneck.depth: got 0"),
        ({"crystal_dim": 0}, r"bottleneck.crystal_dim: got 0"),
        ({"width": 0}, r"bottleneck.width: got 0"),
        ({"depth": 1}, r"bottleneck.learned_priors: got true with depth 1"),
        ({"learned_priors": "yes"}, r"bottleneck.learned_priors: got 'yes'"),
        ({"hierarchical_kl": None}, r"bottleneck.hierarchical_kl: got None"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_options_that_cannot_be_used_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HierarchicalBottleneck(latent_dim=4, **options)


def test_modules_of_other_shapes_are_named(crystals: CrystalBatch, features: torch.Tensor) -> None:
    made = hierarchy()
    made.encoders[1] = nn.Linear(6, 5)
    with pytest.raises(
        ConfigError, match=r"bottleneck.encoders\[1\]: returned shape \(4, 5\); expected \(4, 6\), mean and"
    ):
        made.posterior(features, crystals)
    made = hierarchy()
    posterior = made.posterior(features, crystals)
    made.priors[0] = nn.Linear(3, 7)
    with pytest.raises(ConfigError, match=r"bottleneck.priors\[0\]: returned shape \(4, 7\); expected \(4, 8\)"):
        made.kl(posterior, posterior.mode(), crystals)
    made.decoders[0] = nn.Linear(9, 4)
    with pytest.raises(ConfigError, match=r"bottleneck.decoders\[0\]: returned shape \(14, 4\); expected \(14, 5\)"):
        made.features(posterior.mode(), crystals)
    with pytest.raises(
        ConfigError, match=r"bottleneck.crystal_dims: got \[3\] with depth 3; expected depth - 1 numbers"
    ):
        LadderBottleneck(
            latent_dim=4, crystal_dims=[3], features=6, decoded=5, depth=3, encoders=modules(3), decoders=modules(3)
        )  # fmt: skip


# ---- a VAE from modules of one's own ---------------------------------------------------------------------------------


def described(**changes: Any) -> HierarchicalConfig:
    return HierarchicalConfig(
        **{
            "encoders": [LevelMLP(6, 8, 8), LevelMLP(6, 8, 6)],
            "decoders": [LevelMLP(9, 8, 5), LevelMLP(3, 8, 5)],
            "priors": [LevelMLP(3, 8, 8)],
            "depth": 2,
            **changes,
        }
    )


def module_of(config: HierarchicalConfig, **options: Any) -> VAEModule:
    sizes = {"latent_dim": 4, "crystal_dims": [3], "features": 6, "decoded": 5}
    tiny = tiny_config()
    return hierarchical_vae(config, encoder=tiny["encoder"], decoder=tiny["decoder"], **sizes, **options)


def test_what_the_config_says_is_what_the_vae_does(crystals: CrystalBatch) -> None:
    config = described(
        kl_weight=0.5, reconstruction_loss="mse", beta_schedule=LinearSchedule(warmup=4), hierarchical_kl=False
    )
    module = module_of(config, loss_weights={"angles": 2.0})
    assert module.vae.bottleneck.encoders[0] is config.encoders[0]
    assert module.loss_weights["kl"] == 0.5
    assert module.loss_weights["angles"] == 2.0
    assert module.objective.coord_loss == "mse"
    assert [module.objective.kl_weight(step) for step in (0, 2, 9)] == [0.0, 0.25, 0.5]
    assert module.vae.bottleneck.level_weight == 1.0
    losses = module.losses(TrainingBatch.whole(crystals), step=0, training=True)
    assert {"kl_loss", "kl_level_1", "kl_level_2"} <= losses.keys()
    assert float(losses["loss"].detach()) == pytest.approx(float(losses["recon_loss"].detach()))  # at step 0
    halves = module_of(described(beta_schedule=lambda step: 0.5 if step else 2.0, kl_weight=0.1))
    assert [halves.objective.kl_weight(step) for step in (0, 1)] == [0.2, 0.05]


def test_it_is_saved_where_its_modules_say_how_they_are_built(crystals: CrystalBatch, tmp_path: Path) -> None:
    module = module_of(described(beta_schedule=LinearSchedule(warmup=4))).eval()
    module.save_checkpoint(tmp_path / "model.ckpt")
    loaded = VAEModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert_same_crystals(loaded.reconstruct_crystals(crystals), module.reconstruct_crystals(crystals), atol=0.0)
    assert loaded.objective.kl_weight(2) == module.objective.kl_weight(2) == 5e-6
    for changes, name in (
        ({"priors": [nn.Linear(3, 8)]}, "bottleneck: is a LadderBottleneck"),
        ({"beta_schedule": lambda _: 1.0}, "objective.schedule: is a function"),
    ):
        with pytest.raises(ConfigError, match=rf"{name}, and a checkpoint holds plain data; .*_target_"):
            module_of(described(**changes)).save_checkpoint(tmp_path / "other.ckpt")
    assert not (tmp_path / "other.ckpt").exists()


def test_what_the_config_decides_is_not_said_twice() -> None:
    options = {"coord_loss": "mse", "loss_weights": {"kl": 1.0}, "objective": {"schedule": None}}
    for key, value in options.items():
        with pytest.raises(ConfigError, match=rf"{key}.*decided by the HierarchicalConfig"):
            module_of(described(), **{key: value})


def test_learning_lowers_the_loss(crystals: CrystalBatch) -> None:
    torch.manual_seed(0)
    module = module_of(described(kl_weight=1e-3))
    optimizer, seen = torch.optim.Adam(module.parameters(), lr=1e-2), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = module.losses(TrainingBatch.whole(crystals), training=True)["loss"]
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.5 * seen[0]


def test_the_documented_example_trains(crystals: CrystalBatch) -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "bottlenecks.md"
    block = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    namespace: dict[str, Any] = {}
    exec(block, namespace)
    vae = namespace["vae"]
    vae.losses(TrainingBatch.whole(crystals), step=0, training=True)["loss"].backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    assert vae.sample(CrystalBatch.empty([2, 3])).num_atoms.tolist() == [2, 3]


def test_the_depth_is_the_number_of_encoders_unless_said() -> None:
    config = HierarchicalConfig(modules(2), modules(2))
    assert config.levels == 2
    assert HierarchicalConfig(modules(2), modules(2), 2).levels == 2
    with pytest.raises(ConfigError, match=r"decoders: got 3 modules with depth 2; expected 2"):
        HierarchicalConfig(modules(2), modules(3))


# ---- chained encoders, sizes that the modules tell, elements as yes-or-no questions ----------------------------------


class Recorded(nn.Module):
    """A linear map that remembers what it was given and what it gave."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        self.given, self.output = given, self.layer(given)
        return self.output


@torch.no_grad()
def test_a_chained_encoder_reads_the_one_below(crystals: CrystalBatch, features: torch.Tensor) -> None:
    encoders = [Recorded(6, 8), Recorded(8, 6), Recorded(6, 4)]
    made = LadderBottleneck(
        latent_dim=4, crystal_dims=[3, 2], features=6, decoded=5, depth=3, encoders=encoders, wiring="chained",
        decoders=[nn.Linear(9, 5), nn.Linear(8, 5), nn.Linear(2, 5)],
    )  # fmt: skip
    posterior = made.posterior(features, crystals)
    first, second, third = (encoder.output for encoder in encoders)
    mean = torch.stack([first[crystals.batch == k].mean(dim=0) for k in range(crystals.num_graphs)])
    torch.testing.assert_close(encoders[1].given, mean)
    torch.testing.assert_close(encoders[2].given, second)
    expected = torch.cat((first[:, :4], second[crystals.batch, :3], third[crystals.batch, :2]), dim=1)
    torch.testing.assert_close(posterior.mean, expected)
    assert made.features(posterior.mode(), crystals).shape == (crystals.num_nodes, 5)


def test_a_chained_hierarchy_learns_and_is_saved(crystals: CrystalBatch, tmp_path: Path) -> None:
    target = f"{HierarchicalBottleneck.__module__}.HierarchicalBottleneck"
    config = {"_target_": target, "depth": 3, "crystal_dim": 5, "width": 12, "wiring": "chained"}
    module = VAEModule(**tiny_config(bottleneck=config)).eval()
    module.losses(crystals, step=0, training=True)["loss"].backward()
    bottleneck: Any = module.vae.bottleneck
    assert all(entry.grad is not None for entry in bottleneck.encoders.parameters())
    module.save_checkpoint(tmp_path / "model.ckpt")
    loaded = VAEModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert_same_crystals(loaded.reconstruct_crystals(crystals), module.reconstruct_crystals(crystals), atol=0.0)


def test_the_modules_tell_the_sizes_and_bce_the_element_loss(crystals: CrystalBatch, tmp_path: Path) -> None:
    tiny = tiny_config()
    parts = {"encoder": tiny["encoder"], "decoder": tiny["decoder"]}
    module = hierarchical_vae(described(reconstruction_loss="bce"), **parts)
    bottleneck: Any = module.vae.bottleneck
    assert (bottleneck.dims, bottleneck.input_dim, bottleneck.output_dim) == ((4, 3), 6, 5)
    objective: Any = module.objective
    assert (objective.element_loss, objective.coord_loss) == ("bce", "periodic")
    module.save_checkpoint(tmp_path / "model.ckpt")
    loaded = VAEModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    first, second = (entry.losses(crystals, step=0, training=False)["loss"] for entry in (module.eval(), loaded))
    torch.testing.assert_close(first, second)
    with pytest.raises(ConfigError, match=r"objective\.element_loss: decided by the HierarchicalConfig"):
        hierarchical_vae(described(reconstruction_loss="bce"), **parts, objective={"element_loss": "cross_entropy"})
    with pytest.raises(ConfigError, match=r"latent_dim: a Flatten without linear layers does not tell it; say it"):
        hierarchical_vae(described(encoders=[nn.Flatten(), nn.Flatten()]), **parts)
