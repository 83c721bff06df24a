"""Conditional VAEs: every family hears what it is told, and is an unconditional model where nobody asks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crystalvae.build import trusting
from crystalvae.checkpoints.format import load_shared_weights
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.composition import densities, element_fractions
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.conditions.embedder import ConditionEmbedder
from crystalvae.vae_module.conditions.injection import Conditioning
from crystalvae.vae_module.conditions.values import asked_values, condition_values, drop_conditions, told
from crystalvae.vae_module.layers.modulation import AdaptiveLayerNorm, Concatenation, Modulation
from crystalvae.vae_module.vae import CrystalVAE
from tests.samples import assert_same_crystals, random_crystals, rock_salt_and_friends, tiny_config, tiny_module
from tests.test_families import ENCODERS, PAIRS, part

INJECTIONS = ("adaptive_norm", "concat")
NAMES = ["crystal_system", "density", "chemical_system", "energy"]


def known_crystals() -> CrystalBatch:
    """Random crystals of known space groups, but for one."""
    batch = random_crystals()
    groups = torch.tensor([225.0, 1.0, torch.nan, 62.0])
    return batch.replace(properties={**batch.properties, "space_group": groups})


def conditional(
    encoder: str = "transformer", decoder: str = "transformer", *, large: bool = True, **options: Any
) -> VAEModule:
    """A tiny conditional VAE of any families; `large` weights let what it is told show in the output."""
    condition = {"names": NAMES, "d_model": 8, **options.pop("condition", {})}
    parts = {"encoder": part("encoder", encoder), "decoder": part("decoder", decoder)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = VAEModule(**parts, latent_dim=4, condition=condition, **options).eval()
        for name, parameter in module.named_parameters():
            if large and ("norm" not in name or "modulation" in name):
                nn.init.normal_(parameter, std=0.3)
    module.vae.fit_conditions(known_crystals())
    return module


def decoded_vectors(module: VAEModule, latents: Tensor, crystals: CrystalBatch) -> Tensor:
    vectors = module.vae.decode(latents, crystals).coord_vectors
    assert vectors is not None
    return vectors


# ---- what crystals are -----------------------------------------------------------------------------------------------


def test_densities_and_fractions_are_pymatgens():
    structures = rock_salt_and_friends()
    crystals = CrystalBatch.from_structures(structures)
    expected = torch.tensor([float(structure.density) for structure in structures])
    torch.testing.assert_close(densities(crystals), expected, rtol=1e-4, atol=0.0)
    for row, structure in zip(element_fractions(crystals), structures, strict=True):
        fractions = {element.Z: amount for element, amount in structure.composition.fractional_composition.items()}
        assert {z: pytest.approx(float(row[z])) for z in row.nonzero()[:, 0].tolist()} == fractions


def test_what_has_unknown_elements_or_no_volume_has_no_density():
    crystals = random_crystals((2, 2, 2))
    atoms = crystals.atom_types.clone()
    atoms[0] = 0
    lattices = crystals.lattices.clone()
    lattices[1, 2] = 0.0
    broken = crystals.replace(atom_types=atoms, lattices=lattices)
    assert densities(broken).isnan().tolist() == [True, True, False]
    values = condition_values(broken, ["chemical_system", "composition"])
    for given in values.values():
        assert given.isnan().all(dim=1).tolist() == [True, False, False]
        assert not given[1:].isnan().any()


def test_conditions_are_read_or_computed():
    crystals = known_crystals()
    values = condition_values(crystals, ["density", "composition", "chemical_system", "energy"])
    torch.testing.assert_close(values["density"], densities(crystals))
    torch.testing.assert_close(values["energy"], crystals.properties["energy"])
    assert torch.equal(values["chemical_system"], (values["composition"] > 0).float())
    torch.testing.assert_close(values["composition"].sum(dim=1), torch.ones(4))
    by_number = crystals.replace(properties={"spacegroup_number": torch.tensor([225.0, 1.0, torch.nan, 62.0])})
    for name in ("crystal_system", "space_group"):
        one, other = (condition_values(batch, [name])[name] for batch in (crystals, by_number))
        torch.testing.assert_close(one, other, equal_nan=True)


def test_without_being_strict_what_is_not_there_is_unknown():
    values = condition_values(random_crystals(), ["crystal_system", "band_gap", "energy"], strict=False)
    assert values["crystal_system"].isnan().all()
    assert values["band_gap"].isnan().all()
    assert not values["energy"].isnan().any()


def test_elements_are_asked_for_by_formula():
    values = asked_values({"chemical_system": "Li-Fe-O", "composition": "Fe2O3"}, ["chemical_system", "composition"], 2)
    assert [row.nonzero()[:, 0].tolist() for row in values["chemical_system"]] == [[3, 8, 26]] * 2
    assert values["composition"][0, [26, 8]].tolist() == pytest.approx([0.4, 0.6])
    assert float(values["composition"].sum()) == pytest.approx(2.0)


def test_a_list_asks_something_of_each_crystal():
    values = asked_values({"density": [1.0, None, 3.0], "crystal_system": ["cubic", None, None]}, NAMES, 3)
    torch.testing.assert_close(values["density"], torch.tensor([1.0, torch.nan, 3.0]), equal_nan=True)
    assert values["crystal_system"].isnan().tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"density": [1.0, 2.0]}, r"conditions\.density: got 2 values for 3 crystals; expected one each, or one value"),
        ({"density": [1.0, "much", 2.0]}, r"conditions\.density: got 'much'; expected a number"),
        ({"chemical_system": "Li-Xx"}, r"conditions\.chemical_system: 'Xx' is not an element"),
        ({"chemical_system": 3}, r"conditions\.chemical_system: got 3; expected symbols such as Li-Mn-O"),
        ({"composition": "Fe2X"}, r"conditions\.composition=Fe2X"),
        ({"composition": ["NaCl", 5, None]}, r"conditions\.composition: got 5; expected a formula such as LiFePO4"),
    ],
)
def test_requests_that_make_no_sense_are_named(asked: dict[str, Any], match: str):
    with pytest.raises(ConfigError, match=match):
        asked_values(asked, [*NAMES, "composition"], 3)


def test_element_vectors_are_embedded_unknown_and_dropped_whole():
    embedder = ConditionEmbedder(names=["composition"], d_model=4)
    nn.init.normal_(embedder.unknown)
    values = condition_values(random_crystals((2, 3)), ["composition"])
    network: Any = embedder.embedders["composition"]
    torch.testing.assert_close(embedder(values, 2), network(values["composition"]))
    draws = torch.tensor([[0.9, 0.1], [0.9, 0.9]])
    dropped = drop_conditions(values, draws, drop_all=0.0, drop_each=0.5)
    assert dropped["composition"].isnan().all(dim=1).tolist() == [True, False]
    torch.testing.assert_close(embedder(dropped, 2)[0], embedder.unknown[0])


# ---- injection -------------------------------------------------------------------------------------------------------


def test_an_adaptive_norm_is_torchs_norm_scaled_and_shifted():
    adaptive, norm = AdaptiveLayerNorm(6, d_condition=3), nn.LayerNorm(6)
    for own, theirs in ((adaptive.weight, norm.weight), (adaptive.bias, norm.bias)):
        nn.init.normal_(theirs)
        own.data.copy_(theirs)
    tokens, condition = torch.randn(5, 6), torch.randn(2, 3)[[0, 0, 1, 1, 1]]
    torch.testing.assert_close(adaptive(tokens, condition), norm(tokens))  # to begin with
    modulation: Any = adaptive.modulation
    for parameter in modulation.parameters():
        nn.init.normal_(parameter)
    scale, shift = modulation.linear(nn.functional.silu(condition)).chunk(2, dim=-1)
    torch.testing.assert_close(adaptive(tokens, condition), norm(tokens) * (1 + scale) + shift)


def test_a_norm_is_told_conditions_exactly_where_it_was_built_for_them():
    tokens, condition = torch.randn(5, 6), torch.randn(5, 3)
    plain = AdaptiveLayerNorm(6)
    torch.testing.assert_close(plain(tokens), nn.LayerNorm(6)(tokens))
    assert list(plain.state_dict()) == ["weight", "bias"]
    with pytest.raises(ValueError, match="built without d_condition"):
        plain(tokens, condition)
    with pytest.raises(ValueError, match="got no conditions"):
        AdaptiveLayerNorm(6, d_condition=3)(tokens)


def test_concatenation_is_a_residual_network_on_both():
    injection = Concatenation(d_model=6, d_condition=3)
    tokens, condition = torch.randn(3, 6), torch.randn(2, 3)[[0, 1, 1]]
    assert torch.equal(injection(tokens, condition), tokens)
    nn.init.normal_(injection.linear2.weight)
    inner = nn.functional.silu(injection.linear1(torch.cat((tokens, condition), dim=-1)))
    torch.testing.assert_close(injection(tokens, condition), tokens + injection.linear2(inner))


def test_modulation_starts_as_the_identity():
    tokens, condition = torch.randn(3, 4), torch.randn(3, 3)
    torch.testing.assert_close(Modulation(d_model=4, d_condition=3)(tokens, condition), tokens)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_layer_norm_of_an_encoder_adapts(name: str):
    encoder = conditional(name, "mlp").vae.encoder
    assert not [module for module in encoder.modules() if type(module) is nn.LayerNorm]
    assert any(isinstance(module, AdaptiveLayerNorm) for module in encoder.modules())


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("pair", PAIRS, ids="->".join)
def test_a_new_conditional_model_is_the_unconditional_one(pair: tuple[str, str], injection: str):
    crystals = known_crystals()
    module = conditional(*pair, large=False, condition={"injection": injection})
    plain = VAEModule(encoder=part("encoder", pair[0]), decoder=part("decoder", pair[1]), latent_dim=4).eval()
    new, unused = load_shared_weights(module, plain.state_dict())
    assert not unused
    assert all("modulation" in name or name.startswith(("vae.encoder_cond", "vae.decoder_cond")) for name in new)
    assert_same_crystals(module.reconstruct_crystals(crystals), plain.reconstruct_crystals(crystals), atol=1e-4)


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("pair", PAIRS, ids="->".join)
@torch.no_grad()
def test_encoders_and_decoders_hear_each_condition_of_their_own_crystal(pair: tuple[str, str], injection: str):
    module = conditional(*pair, condition={"injection": injection})
    crystals = module.condition.known(known_crystals())
    latents = torch.randn(crystals.num_nodes, 4, generator=torch.Generator().manual_seed(0))
    hidden = module.vae.hidden(crystals)
    first = crystals.batch == 0
    for name in NAMES:
        changed = crystals.conditions[name].clone()
        changed[0] = torch.nan
        other = crystals.replace(conditions={**crystals.conditions, name: changed})
        difference = (module.vae.hidden(other) - hidden).abs().amax(dim=-1)
        assert bool((difference[first] > 1e-4).all()), name
        assert bool((difference[~first] < 1e-5).all()), name
        vectors = decoded_vectors(module, latents, other) - decoded_vectors(module, latents, crystals)
        assert bool((vectors[first].abs().amax(dim=(1, 2)) > 1e-4).all()), name
        assert bool((vectors[~first].abs() < 1e-4).all()), name


@pytest.mark.parametrize(("inside", "outside"), [("encoder", "decoder"), ("decoder", "encoder")])
@torch.no_grad()
def test_one_of_the_two_can_be_told_alone(inside: str, outside: str):
    module = conditional(condition={outside: False})
    crystals = known_crystals()
    asked = module.condition.known(crystals)
    latents = torch.zeros(crystals.num_nodes, 4)
    heard = {
        "encoder": not torch.equal(module.vae.hidden(asked), module.vae.hidden(crystals)),
        "decoder": not torch.equal(
            module.vae.decode(latents, asked).frac_coords, module.vae.decode(latents, crystals).frac_coords
        ),
    }
    assert heard == {inside: True, outside: False}
    if outside == "decoder":
        with pytest.raises(ConfigError, match=r"decoder takes none \(condition\.decoder=false\)"):
            module.sample(crystals, conditions={"density": 2.0})


def test_what_has_no_layer_norm_can_only_concatenate(without_type_checks: None):
    class Plain(nn.Module):
        d_model, atom_type_predict, atom_type_input = 4, True, False

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, crystals: CrystalBatch) -> Tensor:
            return self.linear(crystals.frac_coords)

    decoder = part("decoder", "mlp")
    for built in (Plain(), {"_target_": "torch.nn.SiLU"}):
        with (
            trusting(["torch.nn."]),
            pytest.raises(ConfigError, match=r"condition\.injection: this encoder has no layer"),
        ):
            VAEModule(encoder=built, decoder=decoder, latent_dim=4, condition={"names": ["density"]})
    told_by_output = {"names": ["density"], "injection": "concat"}
    module = VAEModule(encoder=Plain(), decoder=decoder, latent_dim=4, condition=told_by_output)
    assert module.vae.hidden(known_crystals()).shape == (14, 4)


def test_layer_norms_are_built_for_conditions_that_they_are_told():
    parts = {"decoder": part("decoder", "mlp"), "latent_dim": 4}
    encoder = {**part("encoder", "mlp"), "d_condition": 8}
    with pytest.raises(ConfigError, match=r"encoder\.d_condition: got 8, but none of its layer norms takes conditions"):
        VAEModule(encoder=encoder, **parts)
    plain = VAEModule(encoder=part("encoder", "mlp"), **parts).vae
    with pytest.raises(ConfigError, match="this encoder has no layer norm to adapt"):
        CrystalVAE(
            encoder=plain.encoder, decoder=plain.decoder, bottleneck=plain.bottleneck,
            conditioning=Conditioning(names=["density"]),
        )  # fmt: skip


def test_conditions_travel_with_their_crystals():
    crystals = Conditioning(names=["density", "composition"]).known(known_crystals())
    assert set(crystals.conditions) == {"density", "composition"}
    picked = CrystalBatch.cat([crystals[[2, 0]], crystals[1]])
    torch.testing.assert_close(picked.conditions["density"], crystals.conditions["density"][[2, 0, 1]])
    torch.testing.assert_close(picked.conditions["composition"], crystals.conditions["composition"][[2, 0, 1]])
    assert not CrystalBatch.cat([crystals, known_crystals()]).conditions
    assert crystals.to("cpu").conditions["density"].tolist() == crystals.conditions["density"].tolist()
    assert crystals.num_bytes - known_crystals().num_bytes == 4 * (4 + 4 * 100)
    with pytest.raises(ValueError, match=r"CrystalBatch\.conditions\['density'\]: expected 4 rows, got \(2,\)"):
        crystals.replace(conditions={"density": torch.zeros(2)})


# ---- the module ------------------------------------------------------------------------------------------------------


def test_unconditional_models_draw_the_same_noise_and_keep_their_parameters():
    """Conditions cost nothing where there are none: same parameters, same losses as ever."""
    module = tiny_module()
    assert module.condition.names == ()
    assert not [name for name in module.state_dict() if "conditions" in name or "modulation" in name]
    batch = TrainingBatch.whole(known_crystals(), seed=(1, 2, 3))
    assert module.condition.dropped(batch.crystals, batch, batch.generator()) is batch.crystals
    assert module.condition.known(batch.crystals) is batch.crystals


def test_training_tells_what_crystals_are_but_for_what_is_dropped(monkeypatch: pytest.MonkeyPatch):
    module = conditional(condition={"dropout": {"all": 1.0}}).train()
    crystals = known_crystals()
    seen: list[CrystalBatch] = []
    module.vae.encoder.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    module.vae.decoder.register_forward_hook(lambda _, args, __: seen.append(args[1]))
    module.losses(TrainingBatch.whole(crystals), training=True)
    module.losses(TrainingBatch.whole(crystals), training=False)
    everything = condition_values(crystals, NAMES)
    for batch in seen[:2]:
        assert all(value.isnan().all() for value in told(batch, NAMES).values())
    for batch in seen[2:]:
        for name, value in told(batch, NAMES).items():
            torch.testing.assert_close(value, everything[name], equal_nan=True)


def test_encoder_and_decoder_are_told_the_same_and_ranks_share_out_what_is_dropped():
    module = conditional(condition={"dropout": {"all": 0.3, "each": 0.3}})
    many = CrystalBatch.cat([known_crystals()] * 16)
    whole = TrainingBatch.whole(many)
    dropped = told(module.condition.dropped(many, whole, whole.generator()), NAMES)
    share = float(dropped["energy"].isnan().float().mean())
    assert 0.2 < share < 0.8
    half = many[32:]
    rank = TrainingBatch(
        crystals=half,
        indices=torch.arange(32),
        world_size=2,
        total_crystals=64,
        total_atoms=many.num_nodes,
        crystal_offset=32,
        atom_offset=many[:32].num_nodes,
    )
    for name, value in told(module.condition.dropped(half, rank, rank.generator()), NAMES).items():
        torch.testing.assert_close(value, dropped[name][32:], equal_nan=True)


def test_gradients_reach_every_parameter():
    for injection in INJECTIONS:
        module = conditional(condition={"injection": injection, "dropout": {"all": 0.0}}).train()
        module.losses(TrainingBatch.whole(known_crystals()), training=True)["loss"].backward()
        for name, value in module.named_parameters():
            assert value.grad is not None, name
            assert bool(torch.isfinite(value.grad).all()), name
        for coder in (module.vae.encoder_conditions, module.vae.decoder_conditions):
            kind: Any = coder
            assert float(kind.embedder.unknown.grad[0].abs().sum()) > 0  # one has no known crystal system
            assert all(float(value.grad.abs().sum()) > 0 for value in kind.embedder.embedders.parameters())


@torch.no_grad()
def test_asking_changes_what_is_sampled_and_asking_nothing_does_not():
    module = conditional()
    template = CrystalBatch.empty([3, 2])

    def draw(**options: Any) -> CrystalBatch:
        return module.sample_crystals(template, generator=torch.Generator().manual_seed(0), **options)

    free, cubic, both = draw(), draw(conditions={"crystal_system": "cubic"}), draw(conditions={"density": [None, 9.0]})
    assert_same_crystals(draw(conditions={}), free, atol=0.0)
    assert_same_crystals(draw(conditions={"crystal_system": None}), free, atol=0.0)
    assert float((cubic.lattices - free.lattices).abs().amax(dim=(1, 2)).min()) > 1e-3
    assert_same_crystals(both[0], free[0])
    assert float((both.lattices[1] - free.lattices[1]).abs().max()) > 1e-3


@torch.no_grad()
def test_reconstructions_are_told_what_crystals_are_or_what_is_asked():
    module, crystals = conditional(), known_crystals()
    own = module.reconstruct_crystals(crystals)
    encoded = module.encode(crystals)
    encoded["x"] = encoded["posterior"].mode()
    assert_same_crystals(module.reconstruct(module.decode(encoded), crystals), own)
    values = {name: value.clone() for name, value in encoded["conditions"].items()}
    asked = {"energy": crystals.properties["energy"].tolist(), "density": densities(crystals).tolist()}
    swapped = module.reconstruct_crystals(crystals, conditions={"crystal_system": "cubic", **asked})
    values["crystal_system"][:] = 6.0
    values["chemical_system"][:] = math.nan
    assert_same_crystals(module.reconstruct(module.decode({**encoded, "conditions": values}), crystals), swapped)
    assert float((swapped.lattices - own.lattices).abs().max()) > 1e-3
    del encoded["conditions"]
    unknown = {name: torch.full_like(value, math.nan) for name, value in values.items()}
    free = module.reconstruct(module.decode({**encoded, "conditions": unknown}), crystals)
    assert_same_crystals(module.reconstruct(module.decode(encoded), crystals), free)


def test_a_given_lattice_of_a_template_tells_no_density():
    """Structure prediction starts from unit cells of 1 Å³, whose density means nothing."""
    module = conditional(atom_type_predict=False)
    template = CrystalBatch.empty([2]).replace(atom_types=torch.tensor([11, 17]))
    seen: list[CrystalBatch] = []
    module.vae.decoder.register_forward_hook(lambda _, args, __: seen.append(args[1]))
    module.sample_crystals(template, conditions={"crystal_system": "cubic"})
    values = told(seen[0], NAMES)
    assert values["density"].isnan().all()
    assert values["crystal_system"].tolist() == [6.0]


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (
            {"band_gap": 1.0},
            r"conditions\.band_gap: .*not trained on it; it knows crystal_system, density, chem",
        ),
        ({"crystal_system": "round"}, r"conditions\.crystal_system: got 'round'; expected one of tri.*, cubic$"),
    ],
)
def test_what_a_model_does_not_know_lists_what_there_is(asked: dict[str, Any], match: str):
    module = conditional()
    for ask in (lambda: module.sample(CrystalBatch.empty([2]), conditions=asked),
                lambda: module.reconstruct_crystals(known_crystals(), conditions=asked)):  # fmt: skip
        with pytest.raises(ConfigError, match=match):
            ask()


def test_nothing_can_be_asked_of_an_unconditional_model():
    for ask in (tiny_module().sample_crystals, tiny_module().reconstruct_crystals):
        with pytest.raises(ConfigError, match=r"got density; this model was trained without any"):
            ask(known_crystals(), conditions={"density": 1.0})


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({}, r"condition\.names: got none; expected a list"),
        ({"names": []}, r"condition\.names: got none"),
        ({"names": "density"}, r"condition\.names: got 'density'; expected a list"),
        ({"names": ["density", "density"]}, r"condition\.names: got density, density; expected each once"),
        ({"names": ["a.b"]}, r"condition\.names: got 'a\.b'; expected the name"),
        ({"names": ["keys"]}, r"condition\.names: got 'keys'; expected the name"),
        ({"names": [3]}, r"condition\.names: got 3"),
        ({"names": ["density"], "how": 1}, r"condition\.how: unknown; expected some of names, classes, injection"),
        ({"names": ["density"], "injection": "film"}, r"condition\.injection: got 'film'; .*'adaptive_norm', 'concat'"),
        ({"names": ["density"], "encoder": False, "decoder": False}, r"condition: got encoder=false and decoder=false"),
        ({"names": ["density"], "decoder": "yes"}, r"condition\.decoder: got 'yes'; expected one of True, False"),
        ({"names": ["density"], "d_model": 0}, r"condition\.d_model: got 0; .* at least 1"),
        ({"names": ["density"], "dropout": {"all": 2.0}}, r"condition\.dropout\.all: got 2\.0; .*shares in \[0, 1\]"),
        ({"names": ["density"], "dropout": {"some": 0.1}}, r"condition\.dropout\.some: got 0\.1; expected all"),
        ({"names": ["density"], "dropout": 0.1}, r"condition\.dropout: got 0\.1; expected"),
    ],
)
def test_options_that_cannot_be_used_are_named(config: dict[str, Any], match: str, without_type_checks: None):
    with pytest.raises(ConfigError, match=match):
        VAEModule(**tiny_config(condition=config))


def test_saved_and_loaded_models_say_the_same(tmp_path: Path):
    module = conditional("cgcnn", "gru", condition={"names": ["density", "composition"]})
    module.save_checkpoint(tmp_path / "model.ckpt")
    loaded = VAEModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.condition == module.condition
    crystals = known_crystals()
    assert_same_crystals(loaded.reconstruct_crystals(crystals), module.reconstruct_crystals(crystals), atol=0.0)
    mean: Any = loaded.vae.decoder_conditions.embedder.mean
    assert float(mean[0]) == pytest.approx(float(densities(crystals).mean()))
