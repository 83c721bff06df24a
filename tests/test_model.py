"""What must be true of any model of crystals, shown on tiny ones with random weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalvae.data.augmentation import rotate, translate
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import periodic_difference, random_rotations
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module import DiagonalGaussianDistribution, VAEModule
from crystalvae.vae_module.decoders.transformer import DecodedCrystals
from crystalvae.vae_module.layers.attention import PaddingPlan
from crystalvae.vae_module.layers.transformer import SelfAttention, Transformer
from crystalvae.vae_module.reconstruction_errors import reconstruction_errors
from crystalvae.vae_module.vae import SCALED_LENGTH_RANGE
from tests.samples import SIZES, assert_same_crystals, random_crystals, tiny_config, tiny_module

OURS: dict[str, Any] = {}
PUBLISHED: dict[str, Any] = {
    "encoder": {"coord_features": "linear", "lattice_features": "matrix", "positions": "sinusoidal"},
    "decoder": {"coord_output": "raw", "positions": "sinusoidal"},
    "coord_loss": "mse",
    "bound_lattice": False,
}
VARIANTS = {
    "default": OURS,
    "published": PUBLISHED,
    "post-norm": {"encoder": {"norm_first": False}, "decoder": {"norm_first": False, "activation": "gelu_tanh"}},
    "csp": {"atom_type_predict": False},
    "csp without elements": {"atom_type_predict": False, "decoder": {"atom_type_input": False}},
    "raw, periodic": {"decoder": {"coord_output": "raw"}},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def module(request: pytest.FixtureRequest) -> VAEModule:
    return tiny_module(**request.param)


@pytest.fixture
def crystals() -> CrystalBatch:
    return random_crystals()


@torch.no_grad()
def hidden(module: VAEModule, crystals: CrystalBatch) -> torch.Tensor:
    """The encoder's output."""
    return module.vae.hidden(crystals)


def outputs(module: VAEModule, crystals: CrystalBatch) -> dict[str, torch.Tensor]:
    """All that a model says about crystals, with the posterior mean."""
    with torch.no_grad():
        posterior = module.vae.encode(crystals)
        decoded = module.vae.decode(posterior.mode(), crystals)
    values = {"mean": posterior.mean, "logvar": posterior.logvar, **vars(decoded)}
    return {name: value for name, value in values.items() if value is not None}


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, atol: float = 2e-5) -> None:
    assert got.keys() == expected.keys()
    for name, value in got.items():
        difference = value - expected[name]
        if name == "frac_coords":  # on the circle
            difference = difference - difference.round()
        torch.testing.assert_close(difference, torch.zeros_like(difference), atol=atol, rtol=0.0, msg=name)


# ---- batches are a matter of speed, not of results -------------------------------------------------------------------


def test_a_crystal_alone_equals_the_same_crystal_in_a_batch(module: VAEModule, crystals: CrystalBatch) -> None:
    together = outputs(module, crystals)
    for i in range(len(crystals)):
        alone = outputs(module, crystals[i])
        atoms = crystals.batch == i
        rows = {name: values[atoms if len(values) == crystals.num_nodes else [i]] for name, values in together.items()}
        assert_close(alone, rows)


def test_permuting_crystals_permutes_outputs(module: VAEModule, crystals: CrystalBatch) -> None:
    order = [2, 0, 3, 1]
    atoms = torch.cat([torch.nonzero(crystals.batch == i).flatten() for i in order])
    before, after = outputs(module, crystals), outputs(module, crystals[order])
    permuted = {name: values[atoms if len(values) == crystals.num_nodes else order] for name, values in before.items()}
    assert_close(after, permuted)


def test_crystals_of_equal_size_go_without_padding() -> None:
    crystals, module = random_crystals((3, 3, 3)), tiny_module()
    assert PaddingPlan.of(crystals).attend is None
    larger = CrystalBatch.cat([crystals, random_crystals((8,), seed=1)])
    assert PaddingPlan.of(larger).attend is not None
    together = outputs(module, larger)
    rows = {name: values[:9] if len(values) == 17 else values[:3] for name, values in together.items()}
    assert_close(outputs(module, crystals), rows)


def test_no_crystal_hears_of_another(module: VAEModule, crystals: CrystalBatch) -> None:
    """Changing one crystal altogether leaves what is said about the others to the last bit of the gradient."""
    frac_coords = crystals.frac_coords.clone().requires_grad_()
    posterior = module.vae.encode(crystals.replace(frac_coords=frac_coords))
    decoded = module.vae.decode(posterior.mode(), crystals)
    first = crystals.batch == 0
    (decoded.frac_coords[first].sum() + decoded.lengths_scaled[0].sum()).backward()
    assert frac_coords.grad is not None
    assert bool((frac_coords.grad[~first] == 0).all())
    assert bool((frac_coords.grad[first] != 0).any(dim=-1).all())


# ---- arbitrary choices in the description of a crystal ---------------------------------------------------------------


def permute_atoms(crystals: CrystalBatch, seed: int) -> tuple[CrystalBatch, torch.Tensor]:
    rng = np.random.default_rng(seed)
    starts = crystals.ptr[:-1].tolist()
    order = np.concatenate([start + rng.permutation(size) for start, size in zip(starts, SIZES, strict=True)])
    atoms = torch.from_numpy(order)
    return crystals.replace(atom_types=crystals.atom_types[atoms], frac_coords=crystals.frac_coords[atoms]), atoms


@pytest.mark.parametrize("name", ["default", "post-norm", "csp"])
def test_permuting_atoms_permutes_outputs(name: str, crystals: CrystalBatch) -> None:
    module = tiny_module(**VARIANTS[name])
    permuted, atoms = permute_atoms(crystals, seed=1)
    before, after = outputs(module, crystals), outputs(module, permuted)
    assert_close(
        after, {key: value[atoms] if len(value) == crystals.num_nodes else value for key, value in before.items()}
    )


def test_sinusoidal_positions_tell_atoms_apart(crystals: CrystalBatch) -> None:
    permuted, atoms = permute_atoms(crystals, seed=1)
    for part in ("encoder", "decoder"):
        module = tiny_module(**{part: {"positions": "sinusoidal"}})
        before, after = outputs(module, crystals), outputs(module, permuted)
        assert float((after["frac_coords"] - before["frac_coords"][atoms]).abs().max()) > 1e-3


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_wrapped_and_unwrapped_images_agree(seed: int) -> None:
    module, crystals = tiny_module(), random_crystals()
    cells = torch.randint(-3, 4, crystals.frac_coords.shape, generator=torch.Generator().manual_seed(seed))
    unwrapped = crystals.replace(frac_coords=crystals.frac_coords + cells)
    torch.testing.assert_close(hidden(module, unwrapped), hidden(module, crystals), atol=1e-3, rtol=0.0)
    linear = tiny_module(encoder={"coord_features": "linear"})
    if bool((cells != 0).any()):
        assert float((hidden(linear, unwrapped) - hidden(linear, crystals)).abs().max()) > 1e-2


def test_an_atom_may_cross_the_cells_edge_unnoticed(crystals: CrystalBatch) -> None:
    module = tiny_module()
    seen = []
    for edge in (1e-6, 1.0 - 1e-6):
        coords = crystals.frac_coords.clone()
        coords[3, 1] = edge
        seen.append(hidden(module, crystals.replace(frac_coords=coords)))
    torch.testing.assert_close(seen[0], seen[1], atol=2e-3, rtol=0.0)


def test_rotating_a_crystal_changes_nothing_unless_the_matrix_is_seen(crystals: CrystalBatch) -> None:
    rotations = random_rotations(len(crystals), torch.Generator().manual_seed(5))
    rotated = rotate(crystals, rotations)
    free = tiny_module()
    torch.testing.assert_close(hidden(free, rotated), hidden(free, crystals), atol=1e-4, rtol=0.0)
    bound = tiny_module(encoder={"lattice_features": "matrix"})
    for i in range(len(crystals)):
        atoms = crystals.batch == i
        assert float((hidden(bound, rotated) - hidden(bound, crystals))[atoms].abs().max()) > 1e-2


@pytest.mark.parametrize("lattice_features", ["parameters", "matrix"])
@pytest.mark.parametrize("coord_features", ["fourier", "linear"])
def test_the_encoder_sees_every_part_of_a_crystal(coord_features: str, lattice_features: str) -> None:
    crystals = random_crystals((3, 2))
    module = tiny_module(encoder={"coord_features": coord_features, "lattice_features": lattice_features})
    coords = crystals.frac_coords.clone()
    coords[0, 2] += 0.1
    angles = crystals.lattices.clone()
    angles[:, 0] += 0.3 * angles[:, 1] * angles[:, :1].norm(dim=-1) / angles[:, 1:2].norm(dim=-1)
    changes: dict[str, torch.Tensor] = {
        "atom_types": (crystals.atom_types + 1).remainder(100),
        "frac_coords": coords,
        "lattices": 1.1 * crystals.lattices,
    }
    before = hidden(module, crystals)
    for name, value in [*changes.items(), ("lattices", angles)]:
        assert float((hidden(module, crystals.replace(**{name: value})) - before).abs().max()) > 1e-2, name


def test_every_fourier_frequency_counts() -> None:
    """Atoms at multiples of 1/4 look the same to the frequency 4 alone."""
    crystals = random_crystals((1,))
    few, many = (tiny_module(encoder={"num_frequencies": count}) for count in (1, 6))
    assert few.vae.encoder.frac_coords_embedder[0].in_features == 6
    assert many.vae.encoder.frac_coords_embedder[0].in_features == 36
    features = many.vae.encoder._coord_features(crystals.frac_coords)
    x = crystals.frac_coords[0]
    phases = [2 * math.pi * k * value for value in x.tolist() for k in range(1, 7)]
    expected = [function(phase) for function in (math.sin, math.cos) for phase in phases]
    torch.testing.assert_close(features[0], torch.tensor(expected), atol=1e-5, rtol=0.0)


# ---- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_the_transformer_equals_torchs_with_a_padding_mask(norm_first: bool, activation: str) -> None:
    torch.manual_seed(0)
    ours = Transformer(
        d_model=16, nhead=4, num_layers=3, dim_feedforward=24, dropout=0.0, norm_first=norm_first, activation=activation
    )  # fmt: skip
    layer = torch.nn.TransformerEncoderLayer(
        16,
        4,
        24,
        dropout=0.0,
        activation=torch.nn.GELU(approximate="tanh" if activation == "gelu_tanh" else "none"),
        batch_first=True,
        norm_first=norm_first,
    )
    norm = torch.nn.LayerNorm(16) if norm_first else None
    theirs = torch.nn.TransformerEncoder(layer, 3, norm=norm, enable_nested_tensor=False)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    ours.load_state_dict(theirs.state_dict())
    crystals = random_crystals()
    tokens = torch.randn(crystals.num_nodes, 16)
    padded, present = torch.zeros(4, 7, 16), torch.zeros(4, 7, dtype=torch.bool)
    for i in range(4):
        padded[i, : SIZES[i]], present[i, : SIZES[i]] = tokens[crystals.batch == i], True
    theirs.train()  # in evaluation torch takes a fused path that knows only the exact GELU
    expected = theirs(padded, src_key_padding_mask=~present)[present]
    torch.testing.assert_close(ours(tokens, PaddingPlan.of(crystals)), expected, atol=1e-5, rtol=1e-5)


def test_padding_and_flattening_undo_each_other(crystals: CrystalBatch) -> None:
    for batch in (crystals, random_crystals((3, 3))):
        plan, tokens = PaddingPlan.laid_out(batch, packed=False), torch.randn(batch.num_nodes, 5)
        grid = plan.pad(tokens)
        assert grid.shape == (batch.num_graphs, int(batch.num_atoms.max()), 5)
        for i, size in enumerate(batch.num_atoms.tolist()):
            assert torch.equal(grid[i, :size], tokens[batch.batch == i])
            assert not grid[i, size:].any()
        assert torch.equal(plan.flatten(grid), tokens)


def test_attention_of_one_atom_is_its_own_value() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(d_model=8, nhead=2, dropout=0.0)
    crystals, tokens = random_crystals((1, 1, 1)), torch.randn(3, 8)
    value = tokens @ attention.in_proj_weight[16:].T + attention.in_proj_bias[16:]
    torch.testing.assert_close(attention(tokens, PaddingPlan.of(crystals)), attention.out_proj(value))


def test_dropout_acts_in_training_alone(crystals: CrystalBatch) -> None:
    module = tiny_module(encoder={"dropout": 0.5}, decoder={"dropout": 0.5})
    assert torch.equal(hidden(module, crystals), hidden(module, crystals))
    module.train()
    assert not torch.equal(hidden(module, crystals), hidden(module, crystals))


# ---- decoding --------------------------------------------------------------------------------------------------------


def test_decoding_twice_gives_the_same_and_writes_nothing(module: VAEModule, crystals: CrystalBatch) -> None:
    encoded = module.encode(crystals)
    encoded["x"] = encoded["posterior"].sample(torch.Generator().manual_seed(0))
    before = copy.copy(encoded)
    contents = {name: value.clone() for name, value in encoded.items() if isinstance(value, torch.Tensor)}
    first, second = module.decode(encoded), module.decode(encoded)
    assert first is not second
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert encoded.keys() == before.keys()
    assert all(encoded[name] is before[name] for name in encoded)
    assert all(torch.equal(encoded[name], value) for name, value in contents.items())


def test_the_dicts_are_views_on_the_typed_core(module: VAEModule, crystals: CrystalBatch) -> None:
    encoded = module.encode(crystals)
    torch.testing.assert_close(encoded["x"], hidden(module, crystals))
    assert torch.equal(encoded["batch"], crystals.batch)
    assert torch.equal(encoded["token_idx"], crystals.token_idx)
    output = module.decode({**encoded, "x": encoded["posterior"].mode()})
    core = outputs(module, crystals)
    for name, key in {"frac_coords": "frac_coords", "lengths": "lengths_scaled", "angles": "angles"}.items():
        torch.testing.assert_close(output[name], core[key])
    torch.testing.assert_close(output["lattices"], torch.cat((core["lengths_scaled"], core["angles"]), dim=-1))
    assert ("atom_types" in output) == module.atom_type_predict
    assert_same_crystals(module.reconstruct(output, crystals), module.reconstruct_crystals(crystals))


def test_decoding_the_encoders_output_is_refused_with_what_to_do(crystals: CrystalBatch) -> None:
    module = tiny_module()
    with pytest.raises(ValueError, match=r"16 numbers.*4.*posterior"):
        module.decode(module.encode(crystals))


def test_pyg_batches_are_welcome(module: VAEModule, crystals: CrystalBatch) -> None:
    encoded = module.encode(crystals.to_pyg())
    torch.testing.assert_close(encoded["x"], module.encode(crystals)["x"])
    output = module.decode({**encoded, "x": encoded["posterior"].mode()})
    assert_same_crystals(module.reconstruct(output, crystals.to_pyg()), module.reconstruct(output, crystals))


def decoded_like(crystals: CrystalBatch, *, circle: bool = True) -> DecodedCrystals:
    """What a perfect decoder says."""
    phase = 2 * torch.pi * crystals.frac_coords
    return DecodedCrystals(
        atom_logits=50.0 * torch.nn.functional.one_hot(crystals.atom_types, 100).float(),
        frac_coords=crystals.frac_coords,
        coord_vectors=torch.stack((phase.cos(), phase.sin()), dim=-1) if circle else None,
        lengths_scaled=crystals.lengths_scaled,
        angles=crystals.angles_radians,
    )


def test_a_perfect_decoder_gives_back_the_crystals(crystals: CrystalBatch) -> None:
    rebuilt = tiny_module().vae.to_crystals(decoded_like(crystals), crystals)
    assert rebuilt.atom_types.tolist() == crystals.atom_types.tolist()
    torch.testing.assert_close(rebuilt.lengths, crystals.lengths, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(rebuilt.angles, crystals.angles, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(rebuilt.volumes, crystals.volumes, atol=0.0, rtol=1e-4)
    errors = reconstruction_errors(rebuilt, crystals)
    assert float(errors["element_accuracy"]) == 1.0
    assert all(float(errors[name]) < 1e-3 for name in ("coord_error", "length_error", "angle_error"))


def test_coordinates_on_the_circle_are_the_angle_of_their_vector(crystals: CrystalBatch) -> None:
    core = outputs(tiny_module(), crystals)
    vectors, coords = core["coord_vectors"], core["frac_coords"]
    assert bool(((coords >= 0) & (coords < 1)).all())
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    phase = 2 * torch.pi * coords
    torch.testing.assert_close(unit, torch.stack((phase.cos(), phase.sin()), dim=-1), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("name", ["default", "post-norm", "raw, periodic"])
@torch.no_grad()
def test_the_lattice_is_read_from_the_mean_over_atoms(name: str) -> None:
    """Atoms that all have the same latent say together what each says alone, however many they are."""
    module = tiny_module(**VARIANTS[name])
    latent = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    alone = module.vae.decode(latent, CrystalBatch.empty([1]))
    together = module.vae.decode(latent.expand(14, 4), CrystalBatch.empty([2, 5, 7]))
    torch.testing.assert_close(together.lengths_scaled, alone.lengths_scaled.expand(3, 3), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.angles, alone.angles.expand(3, 3), atol=1e-4, rtol=1e-4)


def test_a_predicted_element_zero_becomes_hydrogen(crystals: CrystalBatch) -> None:
    decoded = decoded_like(crystals.replace(atom_types=torch.zeros_like(crystals.atom_types)))
    assert set(tiny_module().vae.to_crystals(decoded, crystals).atom_types.tolist()) == {1}


def test_reconstruction_errors_are_in_angstrom_and_degrees(crystals: CrystalBatch) -> None:
    shift = torch.tensor([0.1, 0.0, 0.0]) / crystals.lengths[:, :1]
    errors = reconstruction_errors(translate(crystals, shift), crystals)
    assert float(errors["coord_error"]) == pytest.approx(0.1, abs=1e-4)
    assert float(errors["length_error"]) == 0.0
    longer = reconstruction_errors(crystals.replace(lattices=1.1 * crystals.lattices), crystals)
    assert float(longer["length_error"]) == pytest.approx(0.1 * float(crystals.lengths.mean()), rel=1e-4)
    assert float(longer["angle_error"]) == pytest.approx(0.0, abs=1e-3)


# ---- structure prediction --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["csp", "csp without elements"])
def test_structure_prediction_never_predicts_elements(name: str, crystals: CrystalBatch) -> None:
    module = tiny_module(**VARIANTS[name])
    assert not module.atom_type_predict
    assert not any("atom_types_head" in parameter for parameter in module.state_dict())
    posterior = module.vae.encode(crystals)
    assert module.vae.decode(posterior.mode(), crystals).atom_logits is None
    sampled = module.sample(crystals, temperature=3.0)
    assert sampled.atom_types.tolist() == crystals.atom_types.tolist()
    assert module.reconstruct_crystals(crystals).atom_types.tolist() == crystals.atom_types.tolist()
    assert "atom_types" not in module.losses(TrainingBatch.whole(crystals), training=False)
    with pytest.raises(ConfigError, match="elements"):
        module.sample(CrystalBatch.empty([2, 3]))


@torch.no_grad()
def test_given_elements_shape_the_structure(crystals: CrystalBatch) -> None:
    latents = torch.randn(crystals.num_nodes, 4, generator=torch.Generator().manual_seed(0))
    others = crystals.replace(atom_types=(crystals.atom_types + 7).remainder(100).clamp_min(1))
    told = tiny_module(atom_type_predict=False)
    first, second = (told.vae.decode(latents, batch).frac_coords for batch in (crystals, others))
    assert float(periodic_difference(first, second).abs().max()) > 1e-2
    for blind in (tiny_module(), tiny_module(**VARIANTS["csp without elements"])):
        first, second = (blind.vae.decode(latents, batch).frac_coords for batch in (crystals, others))
        assert torch.equal(first, second)


def test_the_research_decode_wants_the_given_elements(crystals: CrystalBatch) -> None:
    module = tiny_module(atom_type_predict=False)
    latents = torch.zeros(crystals.num_nodes, 4)
    with pytest.raises(ValueError, match="atom_types"):
        module.decode({"x": latents, "num_atoms": crystals.num_atoms})


def test_elements_cannot_be_given_and_predicted_at_once() -> None:
    with pytest.raises(ConfigError, match="atom_type_input"):
        VAEModule(**tiny_config(decoder={"atom_type_input": True}))


# ---- sampling --------------------------------------------------------------------------------------------------------


def test_absurd_latents_still_make_sensible_cells() -> None:
    crystals = CrystalBatch.empty([1, 2, 20] * 20)
    sampled = tiny_module().sample(crystals, temperature=100.0, generator=torch.Generator().manual_seed(0))
    for values in (sampled.lattices, sampled.frac_coords, sampled.angles):
        assert bool(torch.isfinite(values).all())
    low, high = SCALED_LENGTH_RANGE
    assert float(sampled.lengths_scaled.min()) >= low - 1e-4
    assert float(sampled.lengths_scaled.max()) <= high + 1e-2
    assert bool((torch.linalg.det(sampled.lattices) > 0.05 * low**3).all())
    assert bool(((sampled.angles > 0) & (sampled.angles < 180)).all())
    assert bool(((sampled.atom_types >= 1) & (sampled.atom_types <= 99)).all())
    assert bool(((sampled.frac_coords >= 0) & (sampled.frac_coords < 1)).all())


def test_the_same_seed_samples_the_same_crystals(module: VAEModule, crystals: CrystalBatch) -> None:
    first, again, other = (
        module.sample(crystals, generator=torch.Generator().manual_seed(seed)) for seed in (11, 11, 12)
    )
    assert_same_crystals(first, again, atol=0.0)
    assert not torch.equal(first.lattices, other.lattices)
    assert not torch.equal(first.frac_coords, other.frac_coords)


def test_temperature_scales_the_latents(crystals: CrystalBatch) -> None:
    module = tiny_module()
    cold = module.sample(crystals, temperature=0.0)
    at_zero = module.vae.to_crystals(module.vae.decode(torch.zeros(crystals.num_nodes, 4), crystals), crystals)
    assert_same_crystals(cold, at_zero, atol=0.0)
    warm = module.sample(crystals, temperature=0.5, generator=torch.Generator().manual_seed(1))
    by_size = crystals.num_atoms.argsort(stable=True)
    ordered = crystals[by_size]
    latents = 0.5 * torch.randn(crystals.num_nodes, 4, generator=torch.Generator().manual_seed(1))
    expected = module.vae.to_crystals(module.vae.decode(latents, ordered), ordered)
    assert_same_crystals(warm[by_size], expected, atol=0.0)
    for temperature in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="temperature"):
            module.sample(crystals, temperature=temperature)


def test_samples_come_as_crystals_atoms_or_structures() -> None:
    module, template = tiny_module(), CrystalBatch.empty([3, 1])
    kinds = ({}, {"return_atoms": True}, {"return_structures": True})
    crystals, atoms, structures = (
        module.sample(template, **kind, generator=torch.Generator().manual_seed(0)) for kind in kinds
    )
    assert isinstance(crystals, CrystalBatch)
    assert crystals.num_atoms.tolist() == [3, 1]
    assert [len(entry) for entry in atoms] == [len(entry) for entry in structures] == [3, 1]
    assert atoms[0].numbers.tolist() == list(structures[0].atomic_numbers) == crystals[0].atom_types.tolist()
    with pytest.raises(ValueError, match="exclude"):
        module.sample(template, return_atoms=True, return_structures=True)


@pytest.mark.parametrize("name", ["default", "published"])
def test_the_research_snippet_runs_as_written(name: str, crystals: CrystalBatch, tmp_path: Any) -> None:
    tiny_module(**VARIANTS[name]).save_checkpoint(tmp_path / "checkpoint.ckpt")
    batch = crystals
    vae = VAEModule.load_from_checkpoint(str(tmp_path / "checkpoint.ckpt"), weights_only=False)
    encoded = vae.encode(batch)
    z = encoded["posterior"].sample()
    encoded["x"] = z
    decoder_out = vae.decode(encoded)
    batch_recon = vae.reconstruct(decoder_out, batch)
    sampled = vae.sample(batch, return_atoms=False, return_structures=False)
    assert isinstance(encoded["posterior"], DiagonalGaussianDistribution)
    assert isinstance(batch_recon, CrystalBatch)
    assert isinstance(sampled, CrystalBatch)
    assert batch_recon.num_atoms.tolist() == sampled.num_atoms.tolist() == list(SIZES)


# ---- config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"encoder": {"coord_features": "polar"}}, "coord_features.*polar.*fourier"),
        ({"encoder": {"lattice_features": "volume"}}, "lattice_features"),
        ({"encoder": {"positions": "learned"}}, "positions"),
        ({"encoder": {"num_frequencies": 0}}, "num_frequencies"),
        ({"encoder": {"d_model": 15}}, "multiple of nhead"),
        ({"encoder": {"num_layers": 0}}, "num_layers"),
        ({"encoder": {"dropout": 1.5}}, "dropout"),
        ({"encoder": {"activation": "relu"}}, "activation"),
        ({"encoder": {"width": 3}}, "width"),
        ({"decoder": {"coord_output": "square"}}, "coord_output"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"coord_loss": "l1"}, "coord_loss"),
        ({"loss_weights": {"colour": 1.0}}, "loss_weights.colour"),
        ({"loss_weights": {"kl": -1.0}}, "loss_weights.kl"),
        ({"augmentation": {"reflect": True}}, "augmentation.reflect"),
        ({"noise": {"mask_ratio": 1.5}}, "mask_ratio"),
        ({"noise": {"displacement": -0.1}}, "displacement"),
    ],
)
def test_configs_that_cannot_be_used_are_refused_by_key(
    change: dict[str, Any], match: str, without_type_checks: None
) -> None:
    with pytest.raises(ConfigError, match=match):
        VAEModule(**tiny_config(**change))
