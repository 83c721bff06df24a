"""Bottlenecks: what every one of them promises, and the discrete one in detail."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from crystalvae.commands.run_folder import essence
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.bottlenecks import codebook
from crystalvae.vae_module.bottlenecks.base import DEFAULT_BOTTLENECK, Posterior
from crystalvae.vae_module.bottlenecks.codebook import Codebooks
from crystalvae.vae_module.bottlenecks.gaussian import GaussianBottleneck
from crystalvae.vae_module.bottlenecks.vq import VQBottleneck
from tests.samples import assert_same_crystals, random_crystals, tiny_config, tiny_module, tiny_prior_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "vae_module" / "bottleneck"


def config_of(name: str, **options: Any) -> dict[str, Any]:
    """A bottleneck as the package ships it, with `options`."""
    return {**yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")), **options}


VQ = config_of("vq", num_codebooks=2, codebook_size=8)
BOTTLENECKS: dict[str, dict[str, Any]] = {
    "gaussian": config_of("gaussian"),
    "vq": VQ,
    "vq, gradients": {**VQ, "ema": False, "revive_below": None},
    "hierarchical": config_of("hierarchical", crystal_dim=3, width=8),
    "hierarchical, 3 levels": config_of("hierarchical", depth=3, crystal_dim=2, width=8, hierarchical_kl=False),
    "hierarchical, fixed priors": config_of("hierarchical", crystal_dim=3, width=8, learned_priors=False),
}


@pytest.fixture(params=BOTTLENECKS.values(), ids=BOTTLENECKS.keys())
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture
def crystals() -> CrystalBatch:
    return random_crystals()


def vae(config: dict[str, Any], **options: Any) -> VAEModule:
    """A tiny VAE with the bottleneck of `config`, and codes that differ."""
    module = tiny_module(bottleneck=config, **options)
    if isinstance(module.vae.bottleneck, VQBottleneck):
        books = module.vae.bottleneck.codebooks
        with torch.no_grad():
            books.codes.normal_(generator=torch.Generator().manual_seed(0))
            books.usage.copy_(1.0 + torch.arange(books.size).expand_as(books.usage))
    return module


def assert_same_posteriors(got: Posterior, expected: Posterior, rows: torch.Tensor | None = None) -> None:
    for name in ("mean", "var"):
        values = getattr(expected, name)
        torch.testing.assert_close(getattr(got, name), values if rows is None else values[rows], atol=1e-5, rtol=1e-4)


# ---- every bottleneck ------------------------------------------------------------------------------------------------


def test_the_shipped_options_are_all_here() -> None:
    shipped = {yaml.safe_load(path.read_text(encoding="utf-8"))["_target_"] for path in CONFIGS.glob("*.yaml")}
    assert shipped == {config["_target_"] for config in BOTTLENECKS.values()}


@torch.no_grad()
def test_the_research_interface_is_the_same(config: dict[str, Any], crystals: CrystalBatch) -> None:
    module = vae(config)
    encoded = module.encode(crystals)
    posterior = encoded["posterior"]
    assert isinstance(posterior, Posterior)
    for latents in (posterior.mode(), posterior.sample(torch.Generator().manual_seed(0)), posterior.mean):
        assert latents.shape == (crystals.num_nodes, module.latent_dim)
    assert posterior.var.shape == posterior.mean.shape
    encoded["x"] = posterior.mode()
    rebuilt = module.reconstruct(module.decode(encoded), crystals)
    assert_same_crystals(rebuilt, module.reconstruct_crystals(crystals))
    assert_same_crystals(rebuilt, module.reconstruct_crystals(crystals))
    with pytest.raises(ValueError, match=rf"expected the latent dimension {module.latent_dim}"):
        module.decode({**encoded, "x": torch.zeros(crystals.num_nodes, module.latent_dim + 1)})


@torch.no_grad()
def test_samples_follow_the_generator_and_the_template(config: dict[str, Any], crystals: CrystalBatch) -> None:
    module = vae(config)
    template = CrystalBatch.empty([3, 1, 5])
    first, again, other = (module.sample(template, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert_same_crystals(first, again, atol=0.0)
    assert first.num_atoms.tolist() == [3, 1, 5]
    assert not torch.equal(first.frac_coords, other.frac_coords)
    modes = [module.sample(template, generator=torch.Generator().manual_seed(seed), temperature=0.0) for seed in (1, 2)]
    assert_same_crystals(*modes, atol=0.0)
    for temperature in (-1.0, math.nan):
        with pytest.raises(ConfigError, match="temperature"):
            module.sample(template, temperature=temperature)


@torch.no_grad()
def test_a_crystal_alone_equals_the_same_crystal_in_a_batch(config: dict[str, Any], crystals: CrystalBatch) -> None:
    module = vae(config)
    together = module.vae.encode(crystals)
    rebuilt = module.reconstruct_crystals(crystals)
    for index in range(len(crystals)):
        assert_same_posteriors(module.vae.encode(crystals[index]), together, crystals.batch == index)
        assert_same_crystals(module.reconstruct_crystals(crystals[index]), rebuilt[index], atol=1e-4)


@torch.no_grad()
def test_permuting_atoms_permutes_latents(config: dict[str, Any]) -> None:
    module, crystals = vae(config), random_crystals((6,))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = crystals.replace(atom_types=crystals.atom_types[order], frac_coords=crystals.frac_coords[order])
    assert_same_posteriors(module.vae.encode(permuted), module.vae.encode(crystals), order)


def test_the_loss_has_the_terms_that_it_says(config: dict[str, Any], crystals: CrystalBatch) -> None:
    module, batch = vae(config, loss_weights={"kl": 0.3}), TrainingBatch.whole(crystals)
    for training in (True, False):
        values = {name: float(value.detach()) for name, value in module.losses(batch, training=training).items()}
        weights = module.vae.bottleneck.penalty_weights
        expected = values["recon_loss"] + 0.3 * values.get("kl_loss", 0.0)
        expected += sum(weight * values[name] for name, weight in weights.items())
        assert values["loss"] == pytest.approx(expected, rel=1e-5)
        assert all(values[name] > 1e-4 for name in weights)
        assert ("kl_loss" in values) == (not weights)


def test_gradients_reach_every_parameter(config: dict[str, Any], crystals: CrystalBatch) -> None:
    module = vae(config, loss_weights={"kl": 0.3}).train()
    module.losses(TrainingBatch.whole(crystals), training=True)["loss"].backward()
    idle = [key for key, value in module.named_parameters() if value.grad is None or not bool((value.grad != 0).any())]
    assert not idle


def test_bf16_mixed_trains(config: dict[str, Any], crystals: CrystalBatch) -> None:
    module = tiny_module(bottleneck=config, loss_weights={"kl": 1e-3}).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = module.losses(TrainingBatch.whole(crystals), training=True)
    losses["loss"].backward()
    assert all(bool(torch.isfinite(value.grad).all()) for value in module.parameters() if value.grad is not None)


def test_saved_and_loaded_models_say_the_same(config: dict[str, Any], crystals: CrystalBatch, tmp_path: Path) -> None:
    module = vae(config)
    module.save_checkpoint(tmp_path / "model.ckpt")
    loaded = VAEModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert type(loaded.vae.bottleneck) is type(module.vae.bottleneck)
    assert_same_posteriors(loaded.vae.encode(crystals), module.vae.encode(crystals))
    samples = [part.sample(crystals, generator=torch.Generator().manual_seed(0)) for part in (module, loaded)]
    assert_same_crystals(*samples, atol=0.0)


def test_the_default_is_the_gaussian_with_the_parameters_it_always_had(tmp_path: Path) -> None:
    module = tiny_module()
    assert isinstance(module.vae.bottleneck, GaussianBottleneck)
    assert not list(module.vae.bottleneck.state_dict())
    assert module.vae.quant_conv.weight.shape == (8, 16)
    assert module.vae.post_quant_conv.weight.shape == (16, 4)
    module.save_checkpoint(tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    content["crystalvae"]["config"].pop("bottleneck")  # as written by earlier versions
    torch.save(content, tmp_path / "earlier.ckpt")
    earlier = VAEModule.load_from_checkpoint(tmp_path / "earlier.ckpt", weights_only=True)
    assert_same_crystals(
        earlier.reconstruct_crystals(random_crystals()), module.reconstruct_crystals(random_crystals()), atol=0.0
    )
    named = tiny_module(bottleneck=DEFAULT_BOTTLENECK)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in named.state_dict().items())


def test_runs_of_earlier_versions_are_continued() -> None:
    assert essence(None) == essence(DEFAULT_BOTTLENECK) is None
    old, new = {"latent_dim": 4}, {"latent_dim": 4, "bottleneck": DEFAULT_BOTTLENECK, "objective": None}
    assert essence(old) == essence(new)
    assert essence(old) != essence({**new, "bottleneck": VQ})


@pytest.mark.parametrize("name", ["vq", "hierarchical"])
@pytest.mark.parametrize("latents", ["sample", "mean"])
def test_a_prior_is_trained_over_their_latents(name: str, latents: str, crystals: CrystalBatch) -> None:
    """A flow over the numbers of a latent; what it draws is quantised, or averaged over each crystal, to decode."""
    given = tiny_prior_config(atom_type_predict=True)
    torch.manual_seed(0)
    module = LatentPrior(**{**given, "vae": tiny_config(bottleneck=BOTTLENECKS[name]), "latents": latents})
    module.fit_statistics(crystals)
    assert module.prior.latent_dim == module.vae_module.latent_dim
    optimizer, seen = torch.optim.Adam(module.prior.parameters(), lr=1e-2), []
    for _ in range(15):
        optimizer.zero_grad()
        loss = module.losses(TrainingBatch.whole(crystals), training=True)["loss"]
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < seen[0]
    drawn = module.sample(CrystalBatch.empty([2, 3]), generator=torch.Generator().manual_seed(0))
    assert drawn.num_atoms.tolist() == [2, 3]
    assert bool(torch.isfinite(drawn.lattices).all())


def test_conditional_models_have_any_of_them(config: dict[str, Any], crystals: CrystalBatch) -> None:
    shipped = yaml.safe_load((CONFIGS.parents[1] / "condition" / "crystal_system.yaml").read_text(encoding="utf-8"))
    module = vae(config, condition=shipped["condition"])
    crystals = crystals.replace(properties={"spacegroup_number": torch.tensor([225.0, 194.0, 2.0, torch.nan])})
    module.losses(TrainingBatch.whole(crystals), training=True)["loss"].backward()
    options: dict[str, Any] = {"conditions": {"crystal_system": "cubic"}}
    drawn = module.sample(CrystalBatch.empty([2, 3]), generator=torch.Generator().manual_seed(0), **options)
    assert drawn.num_atoms.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codebooks": 3}, r"bottleneck.num_codebooks: got 3 for latent_dim 4; expected a divisor"),
        ({"num_codebooks": 0}, r"bottleneck.num_codebooks: got 0; expected a whole number of at least 1"),
        ({"codebook_size": 1}, r"bottleneck.codebook_size: got 1; .* at least 2"),
        ({"commitment_weight": -1.0}, r"bottleneck.commitment_weight: got -1.0; expected a number of at least 0"),
        ({"codebook_weight": 1.0}, r"bottleneck.codebook_weight: got 1.0 together with ema=true"),
        ({"codebook_weight": math.nan, "ema": False}, r"bottleneck.codebook_weight: got nan"),
        ({"ema": "yes"}, r"bottleneck.ema: got 'yes'; expected true or false"),
        ({"decay": 1.0}, r"bottleneck.decay: got 1.0; expected a number between 0 and 1"),
        ({"revive_below": 0.0}, r"bottleneck.revive_below: got 0.0; expected a share in \(0, 1\), or null"),
        ({"colour": 1}, r"bottleneck: .*colour"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_options_that_cannot_be_used_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_module(bottleneck={**VQ, **options})


@pytest.mark.usefixtures("without_type_checks")
def test_something_else_in_the_bottlenecks_place_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"bottleneck: got a Dropout; expected a Bottleneck"):
        tiny_module(bottleneck=torch.nn.Dropout())
    with pytest.raises(ConfigError, match=r"latent_dim: got 0"):
        VAEModule(**{**tiny_config(), "latent_dim": 0})


# ---- codebooks -------------------------------------------------------------------------------------------------------


def books(*, ema: bool = True, decay: float = 0.9, seed: int = 0) -> Codebooks:
    """Three codebooks of five codes of two numbers, standard normal."""
    made = Codebooks(count=3, size=5, width=2, ema=ema, decay=decay)
    with torch.no_grad():
        made.codes.normal_(generator=torch.Generator().manual_seed(seed))
    return made


def vectors(rows: int = 14, *, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))


def atoms_of(sizes: tuple[int, ...]) -> TrainingBatch:
    return TrainingBatch.whole(random_crystals(sizes), seed=(1, 2, 3))


def test_each_part_of_a_vector_gets_the_nearest_code() -> None:
    made, given = books(), vectors(40)
    indices = made.nearest(given)
    for book in range(3):
        distances = torch.cdist(given[:, 2 * book : 2 * book + 2], made.codes[book])
        assert torch.equal(indices[:, book], distances.argmin(dim=-1))
    codes = made.lookup(indices)
    assert torch.equal(codes[7, 2:4], made.codes[1, indices[7, 1]])
    assert torch.equal(made.nearest(codes), indices)


def test_gradients_pass_straight_through(crystals: CrystalBatch) -> None:
    """The encoder's output gets the decoder's gradient as it is; the codes get none of it."""
    for ema in (True, False):
        bottleneck = vae({**VQ, "ema": ema}).vae.bottleneck
        given = torch.randn(crystals.num_nodes, 4, requires_grad=True)
        posterior = bottleneck.posterior(given, crystals)
        torch.testing.assert_close(posterior.mean, posterior.codes)
        assert not torch.equal(posterior.mean, given)
        weights = torch.randn(crystals.num_nodes, 4)
        (bottleneck.features(posterior.sample(), crystals) * weights).sum().backward()
        torch.testing.assert_close(given.grad, weights)
        assert bottleneck.codebooks.codes.grad is None


def test_codebook_and_commitment_losses_pull_codes_and_vectors_together(crystals: CrystalBatch) -> None:
    bottleneck = vae({**VQ, "ema": False}).vae.bottleneck
    given = torch.randn(crystals.num_nodes, 4, requires_grad=True)
    posterior = bottleneck.posterior(given, crystals)
    losses = bottleneck.penalties(posterior, atoms=crystals.num_nodes)
    expected = (given - posterior.codes).square().mean()
    torch.testing.assert_close(losses["commitment_loss"], expected)
    torch.testing.assert_close(losses["codebook_loss"], expected)
    losses["commitment_loss"].backward(retain_graph=True)
    assert bottleneck.codebooks.codes.grad is None
    torch.testing.assert_close(given.grad, 2 * (given - posterior.codes).detach() / given.numel())
    before = given.grad.clone()
    losses["codebook_loss"].backward()
    assert torch.equal(given.grad, before)
    code = posterior.encoding_indices[0, 0]
    takers = posterior.encoding_indices[:, 0] == code
    pull = 2 * (bottleneck.codebooks.codes[0, code] - given[takers, :2]).sum(0).detach() / given.numel()
    torch.testing.assert_close(bottleneck.codebooks.codes.grad[0, code], pull)
    assert set(bottleneck.penalty_weights) == {"commitment_loss", "codebook_loss"}
    assert bottleneck.penalty_weights == {"commitment_loss": 0.25, "codebook_loss": 1.0}


def test_codes_are_the_ratio_of_moving_averages() -> None:
    """van den Oord et al. (2017), appendix A.1: N ← γN + (1-γ)n, m ← γm + (1-γ)Σz, e = m/N."""
    made, counts, decay = books(), torch.zeros(3, 5), 0.9
    totals = torch.zeros(3, 5, 2)
    for step in range(6):
        given = vectors(seed=step)
        indices = made.nearest(given)
        before = made.codes.clone()
        made.update(given, indices, atoms_of((14,)), revive=None)
        for book in range(3):
            for code in range(5):
                takers = given[indices[:, book] == code, 2 * book : 2 * book + 2]
                counts[book, code] = decay * counts[book, code] + (1 - decay) * len(takers)
                totals[book, code] = decay * totals[book, code] + (1 - decay) * takers.sum(dim=0)
                if counts[book, code] > 0:
                    expected = totals[book, code] / counts[book, code]
                    torch.testing.assert_close(made.codes[book, code], expected, atol=1e-5, rtol=1e-5)
                else:
                    assert torch.equal(made.codes[book, code], before[book, code])
        torch.testing.assert_close(made.usage, counts)


def test_codes_that_learn_by_gradients_are_counted_and_stay() -> None:
    made = books(ema=False)
    before, given = made.codes.detach().clone(), vectors()
    made.update(given, made.nearest(given), atoms_of((14,)), revive=None)
    assert torch.equal(made.codes, before)
    assert made.usage.sum(dim=-1).tolist() == pytest.approx([1.4] * 3)
    assert isinstance(made.codes, torch.nn.Parameter)


@pytest.mark.parametrize("ema", [True, False])
def test_dead_codes_come_back_where_atoms_are(ema: bool) -> None:
    made, given = books(ema=ema), vectors()
    with torch.no_grad():
        made.codes[:, 3] = 100.0  # where no atom will ever be
        made.usage.fill_(2.0)
        made.usage[:, 3] = 0.02
    kept = copy.deepcopy(made)
    kept.update(given, kept.nearest(given), atoms_of((14,)), revive=None)
    made.update(given, made.nearest(given), atoms_of((14,)), revive=0.05)
    assert bool((kept.codes[:, 3] == 100.0).all())
    parts = given.view(14, 3, 2)
    for book in range(3):
        assert bool((parts[:, book] == made.codes[book, 3]).all(dim=-1).any())
        assert float(made.usage[book, 3]) == pytest.approx(float(kept.usage[book].mean()))
    others = [0, 1, 2, 4]
    assert torch.equal(made.codes[:, others], kept.codes[:, others])
    assert torch.equal(made.usage[:, others], kept.usage[:, others])


def test_the_first_step_puts_all_codes_where_atoms_are() -> None:
    made, given = Codebooks(count=3, size=5, width=2, ema=True, decay=0.9), 10.0 + vectors()
    made.update(given, made.nearest(given), atoms_of((14,)), revive=0.05)
    assert float(made.codes.min()) > 5.0
    assert bool((made.usage > 0).all())


def test_all_ranks_learn_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over the shards of a global batch, and revived codes from anywhere in it."""
    given, whole = vectors(), atoms_of((14,))
    crystals = random_crystals((5, 9))
    shards = [
        replace(TrainingBatch.whole(crystals[rank], seed=whole.seed), total_atoms=14, atom_offset=offset, world_size=2)
        for rank, offset in enumerate((0, 5))
    ]
    expected = books()
    expected.usage[:, :2] = 3.0
    start = copy.deepcopy(expected)
    expected.update(given, expected.nearest(given), whole, revive=0.05)
    assert bool((expected.codes != start.codes).any())

    said: list[list[torch.Tensor]] = [[], []]
    for rank, rows in enumerate((slice(0, 5), slice(5, 14))):
        monkeypatch.setattr(codebook, "_over_ranks", lambda values, rank=rank: said[rank].append(values) or values)
        part = copy.deepcopy(start)
        part.update(given[rows], part.nearest(given[rows]), shards[rank], revive=0.05)
    for rank, rows in enumerate((slice(0, 5), slice(5, 14))):
        sums = iter([first + second for first, second in zip(*said, strict=True)])
        monkeypatch.setattr(codebook, "_over_ranks", lambda _, sums=sums: next(sums))
        part = copy.deepcopy(start)
        part.update(given[rows], part.nearest(given[rows]), shards[rank], revive=0.05)
        torch.testing.assert_close(part.codes, expected.codes)
        torch.testing.assert_close(part.usage, expected.usage)


def test_codes_are_drawn_from_their_usage() -> None:
    made, atoms = books(), 20_000
    made.usage.copy_(torch.tensor([1.0, 0.0, 3.0, 4.0, 2.0]))
    shares = torch.tensor([0.1, 0.0, 0.3, 0.4, 0.2])
    torch.testing.assert_close(made.frequencies()[1], shares)
    for temperature in (1.0, 0.5, 2.0):
        drawn = made.draw(atoms, temperature=temperature, generator=torch.Generator().manual_seed(0))
        assert drawn.shape == (atoms, 3)
        expected = shares.pow(1 / temperature) / shares.pow(1 / temperature).sum()
        for book in range(3):
            got = torch.bincount(drawn[:, book], minlength=5) / atoms
            torch.testing.assert_close(got, expected, atol=5 * 0.5 / math.sqrt(atoms), rtol=0.0)
            assert float(got[1]) == 0.0, "a code that training never used"
        independent = ((drawn[:, 0] == 3) & (drawn[:, 1] == 3)).float().mean()
        assert float(independent) == pytest.approx(float(expected[3]) ** 2, abs=0.02)
    assert made.draw(4, temperature=0.0, generator=None).tolist() == [[3, 3, 3]] * 4
    torch.testing.assert_close(books().frequencies(), torch.full((3, 5), 0.2))


def test_perplexity_counts_codes(crystals: CrystalBatch) -> None:
    bottleneck = VQBottleneck(latent_dim=4, num_codebooks=2, codebook_size=8)
    with torch.no_grad():
        bottleneck.codebooks.codes.copy_(torch.arange(8.0)[None, :, None].expand(2, 8, 2))
    many = random_crystals((8,))
    each = torch.arange(8.0)[:, None].expand(8, 4)
    for given, perplexity, used in ((each, 8.0, 1.0), (torch.zeros(8, 4), 1.0, 0.125)):
        posterior = bottleneck.posterior(given, many)
        found = bottleneck.metrics(posterior, posterior.mode(), many)
        assert float(found["perplexity"]) == pytest.approx(perplexity, rel=1e-5)
        assert float(found["codes_used"]) == pytest.approx(used)
    halves = bottleneck.posterior(torch.cat((torch.zeros(8, 2), each[:, :2]), dim=-1), many)
    assert float(bottleneck.metrics(halves, halves.mode(), many)["perplexity"]) == pytest.approx(4.5, rel=1e-5)


@torch.no_grad()
def test_latents_from_elsewhere_are_quantised(crystals: CrystalBatch) -> None:
    module = vae(VQ)
    posterior = module.vae.encode(crystals)
    near = posterior.mode() + 1e-4
    decoded = [module.vae.decode(latents, crystals) for latents in (posterior.mode(), near)]
    torch.testing.assert_close(decoded[0].lengths_scaled, decoded[1].lengths_scaled, atol=1e-5, rtol=1e-5)
    assert posterior.encoding_indices.shape == (crystals.num_nodes, 2)
    assert torch.equal(posterior.reparameterize(torch.randn(crystals.num_nodes, 4)), posterior.mode())
    assert not posterior.var.any()


def test_a_training_step_moves_the_codes_and_encoding_does_not(crystals: CrystalBatch) -> None:
    module = vae(VQ).train()
    module.log = module.log_dict = lambda *_, **__: None
    books, batch = module.vae.bottleneck.codebooks, TrainingBatch.whole(crystals)
    before = books.codes.clone()
    module.encode(crystals)
    module.losses(batch, training=True)
    assert torch.equal(books.codes, before)
    module.training_step(batch, 0)
    assert not torch.equal(books.codes, before)
