"""The same physics for every family of encoders and decoders, as far as the family promises it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from torch_geometric.nn import CGConv

from crystalvae.build import build
from crystalvae.data.augmentation import rotate, translate
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import random_rotations
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError, DataError
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.encoders.cgcnn import NodewiseCGConv, gaussian_basis
from crystalvae.vae_module.layers.gru import AtomGRU
from tests.samples import SIZES, random_crystals

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ENCODERS = ["transformer", "cgcnn", "cgcnn_residual", "mlp", "gru"]
DECODERS = ["transformer", "mlp", "gru"]
GRAPHS = ["cgcnn", "cgcnn_residual"]
PAIRS = [
    *((name, "transformer") for name in ENCODERS),
    *(("transformer", name) for name in DECODERS[1:]),
    ("gru", "gru"),
]


def part(kind: str, name: str, **options: Any) -> dict[str, Any]:
    """The config of a family as the package ships it, at a tiny width."""
    config = yaml.safe_load((CONFIGS / "vae_module" / kind / f"{name}.yaml").read_text(encoding="utf-8"))
    heads = {"nhead": 2} if name == "transformer" else {}
    return {**config, "d_model": 16, "num_layers": 2, **heads, **options}


def family(encoding: str, decoding: str, *, large: bool = True, **options: Any) -> VAEModule:
    """A tiny VAE in evaluation mode; `large` weights let every part of the input show in the output."""
    given = {kind: options.pop(kind, {}) for kind in ("encoder", "decoder")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = VAEModule(
            encoder=part("encoder", encoding, **given["encoder"]),
            decoder=part("decoder", decoding, **given["decoder"]),
            latent_dim=4,
            **options,
        ).eval()
        for name, parameter in module.named_parameters():
            if large and "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.fixture(params=PAIRS, ids="->".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def crystals() -> CrystalBatch:
    return random_crystals()


@torch.no_grad()
def outputs(module: VAEModule, crystals: CrystalBatch) -> dict[str, torch.Tensor]:
    """All that a model says, without coordinates as numbers: their vectors have no edge."""
    posterior = module.vae.encode(crystals)
    decoded = module.vae.decode(posterior.mode(), crystals)
    values = {"mean": posterior.mean, "logvar": posterior.logvar, **vars(decoded)}
    return {name: value for name, value in values.items() if value is not None and name != "frac_coords"}


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 1e-4) -> None:
    assert got.keys() == expected.keys()
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], atol=atol, rtol=1e-4, msg=name)


def permute_atoms(crystals: CrystalBatch) -> tuple[CrystalBatch, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    starts = crystals.ptr[:-1].tolist()
    atoms = torch.cat(
        [start + torch.randperm(size, generator=generator) for start, size in zip(starts, SIZES, strict=True)]
    )
    return crystals.replace(atom_types=crystals.atom_types[atoms], frac_coords=crystals.frac_coords[atoms]), atoms


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_crystal_alone_equals_the_same_crystal_in_a_batch(pair: tuple[str, str], crystals: CrystalBatch) -> None:
    module = family(*pair)
    together = outputs(module, crystals)
    for index in range(len(crystals)):
        atoms = crystals.batch == index
        rows = {name: value[atoms if len(value) == crystals.num_nodes else [index]] for name, value in together.items()}
        assert_close(outputs(module, crystals[index]), rows)


@pytest.mark.parametrize("training", [False, True])
def test_no_crystal_hears_of_another(pair: tuple[str, str], crystals: CrystalBatch, training: bool) -> None:
    """Not in training either, where a batch norm would let them."""
    module = family(*pair).train(training)
    frac_coords = crystals.frac_coords.clone().requires_grad_()
    posterior = module.vae.encode(crystals.replace(frac_coords=frac_coords))
    decoded = module.vae.decode(posterior.mode(), crystals)
    first = crystals.batch == 0
    (decoded.frac_coords[first].sum() + decoded.lengths_scaled[0].sum()).backward()
    assert frac_coords.grad is not None
    assert bool((frac_coords.grad[~first] == 0).all())
    assert bool((frac_coords.grad[first] != 0).any(dim=-1).all())


# ---- arbitrary choices in the description of a crystal ---------------------------------------------------------------


def test_permuting_atoms_permutes_outputs_but_for_sequences(pair: tuple[str, str], crystals: CrystalBatch) -> None:
    module = family(*pair)
    permuted, atoms = permute_atoms(crystals)
    before, after = outputs(module, crystals), outputs(module, permuted)
    rows = {name: value[atoms] if len(value) == crystals.num_nodes else value for name, value in before.items()}
    if "gru" in pair:
        assert float((after["coord_vectors"] - rows["coord_vectors"]).abs().max()) > 1e-2
    else:
        assert_close(after, rows)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_rotations_and_images_make_no_difference(name: str, crystals: CrystalBatch) -> None:
    module = family(name, "mlp")
    rotated = rotate(crystals, random_rotations(4, torch.Generator().manual_seed(2)))
    unwrapped = crystals.replace(frac_coords=crystals.frac_coords + torch.tensor([2.0, -1.0, 0.0]))
    hidden = module.vae.hidden(crystals)
    torch.testing.assert_close(module.vae.hidden(rotated), hidden, atol=2e-3, rtol=0.0)
    torch.testing.assert_close(module.vae.hidden(unwrapped), hidden, atol=2e-3, rtol=0.0)
    seeing = family(name, "mlp", encoder={"lattice_features": "matrix"})
    assert float((seeing.vae.hidden(rotated) - seeing.vae.hidden(crystals)).abs().max()) > 1e-2


@pytest.mark.parametrize("name", GRAPHS)
@torch.no_grad()
def test_the_graph_does_not_know_the_origin_and_the_encoder_does(name: str, crystals: CrystalBatch) -> None:
    encoder = family(name, "mlp").vae.encoder
    shifted = translate(crystals, torch.rand(4, 3, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(encoder.surroundings(shifted), encoder.surroundings(crystals), atol=2e-3, rtol=0.0)
    for index in range(len(crystals)):
        atoms = crystals.batch == index
        # Without this a decoder could not say where the atoms are.
        assert float((encoder(shifted) - encoder(crystals))[atoms].abs().max()) > 1e-2


@pytest.mark.parametrize("name", GRAPHS)
@torch.no_grad()
def test_messages_come_from_neighbours(name: str) -> None:
    """A chain of atoms 3 Å apart in a wide cell: each layer carries news one atom farther."""
    size, layers = 12, 2
    chain = CrystalBatch(
        atom_types=torch.full((size,), 6),
        frac_coords=torch.stack((torch.arange(size) / size, torch.zeros(size), torch.zeros(size)), dim=-1),
        lattices=torch.diag(torch.tensor([3.0 * size, 20.0, 20.0]))[None],
        num_atoms=torch.tensor([size]),
    )
    encoder = family(name, "mlp", encoder={"num_layers": layers, "cutoff": 4.0}).vae.encoder
    changed = chain.replace(atom_types=torch.where(torch.arange(size) == 0, 8, 6))
    difference = (encoder(changed) - encoder(chain)).abs().amax(dim=-1)
    heard = [distance for distance in range(1, size // 2) if float(difference[distance]) > 1e-6]
    assert heard == [1, 2]
    moved = chain.frac_coords.clone()
    moved[1, 1] = 0.03  # sideways: 0.6 Å
    difference = (
        (encoder.surroundings(chain.replace(frac_coords=moved)) - encoder.surroundings(chain)).abs().amax(dim=-1)
    )
    assert float(difference[0]) > 1e-3


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_every_encoder_sees_elements_coordinates_lattice_and_the_other_atoms(name: str) -> None:
    crystals = random_crystals((3, 2))
    encoder = family(name, "mlp").vae.encoder
    coords, elements = crystals.frac_coords.clone(), crystals.atom_types.clone()
    coords[0, 2] += 0.2
    elements[0] = elements[0] % 99 + 1
    before = encoder(crystals)
    for change in ({"frac_coords": coords}, {"atom_types": elements}, {"lattices": 1.2 * crystals.lattices}):
        difference = (encoder(crystals.replace(**change)) - before).abs().amax(dim=-1)
        assert float(difference[0]) > 1e-2
        assert float(difference[1]) > 1e-4, "atom 1 hears of what happens to atom 0"


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("atom_type_predict", [True, False])
def test_gradients_reach_every_parameter(
    pair: tuple[str, str], crystals: CrystalBatch, atom_type_predict: bool
) -> None:
    module = family(*pair, atom_type_predict=atom_type_predict).train()
    module.losses(TrainingBatch.whole(crystals), training=True)["loss"].backward()
    without = [
        name for name, value in module.named_parameters() if value.grad is None or not bool((value.grad != 0).any())
    ]
    assert not without
    assert all(bool(torch.isfinite(value.grad).all()) for value in module.parameters() if value.grad is not None)


def test_a_few_steps_lower_the_loss(pair: tuple[str, str], crystals: CrystalBatch) -> None:
    module = family(*pair, large=False)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    batch, seen = TrainingBatch.whole(crystals), []
    for _ in range(20):
        loss = module.losses(batch, training=False)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.5 * seen[0]


def test_bf16_mixed_trains_every_family(pair: tuple[str, str], crystals: CrystalBatch) -> None:
    module = family(*pair).train()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module.losses(TrainingBatch.whole(crystals), training=True)["loss"]
    full = module.losses(TrainingBatch.whole(crystals), training=True)["loss"]
    assert float(mixed.detach()) == pytest.approx(float(full.detach()), rel=0.2)
    mixed.backward()
    assert all(bool(torch.isfinite(value.grad).all()) for value in module.parameters() if value.grad is not None)


@pytest.mark.parametrize(
    ("kind", "name"), [*(("encoder", name) for name in ENCODERS), *(("decoder", name) for name in DECODERS)]
)
@torch.no_grad()
def test_dropout_acts_in_training_alone(kind: str, name: str, crystals: CrystalBatch) -> None:
    options: dict[str, Any] = {kind: {"dropout": 0.5, "num_layers": 1}}
    module = family(name, "mlp", **options) if kind == "encoder" else family("mlp", name, **options)
    assert_close(outputs(module, crystals), outputs(module, crystals), atol=0.0)
    module.train()
    assert not torch.equal(outputs(module, crystals)["coord_vectors"], outputs(module, crystals)["coord_vectors"])


# ---- checkpoints and configs -----------------------------------------------------------------------------------------


def test_saved_and_loaded_models_say_the_same(pair: tuple[str, str], crystals: CrystalBatch, tmp_path: Path) -> None:
    module = family(*pair)
    module.save_checkpoint(tmp_path / "model.ckpt")
    loaded = VAEModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert type(loaded.vae.encoder) is type(module.vae.encoder)
    assert type(loaded.vae.decoder) is type(module.vae.decoder)
    assert_close(outputs(loaded, crystals), outputs(module, crystals), atol=0.0)


def compose(*overrides: str) -> Any:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("train_vae", ["output_dir=x", *overrides])


@pytest.mark.parametrize("experiment", ["prototypes/vae_csp", "mp_20/vae_dng"])
@pytest.mark.parametrize("name", ENCODERS)
def test_every_family_is_a_choice_in_every_experiment(experiment: str, name: str) -> None:
    decoder = name if name in DECODERS else "transformer"
    config = compose(
        f"experiment={experiment}",
        f"vae_module/encoder={name}",
        f"vae_module/decoder={decoder}",
        "vae_module.encoder.d_model=16",
        "vae_module.decoder.d_model=32",
    )
    module = build("vae_module", config.vae_module)
    shipped = part("encoder", name)["_target_"]
    assert f"{type(module.vae.encoder).__module__}.{type(module.vae.encoder).__name__}" == shipped
    assert (module.vae.encoder.d_model, module.vae.decoder.d_model) == (16, 32)


def test_small_experiments_keep_their_width_for_other_families() -> None:
    for experiment, width in (("mp_20/vae_dng_small", 128), ("mp_20/vae_csp_small", 128), ("prototypes/vae_csp", 96)):
        own = compose(f"experiment={experiment}").vae_module
        other = compose(f"experiment={experiment}", "vae_module/encoder=cgcnn", "vae_module/decoder=mlp").vae_module
        for kind in ("encoder", "decoder"):
            assert (own[kind].d_model, own[kind].nhead, own[kind].num_layers) == (width, 4, 3)
            assert other[kind].d_model == width
            assert "nhead" not in other[kind]


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        ("encoder", "cgcnn", {"cutoff": 0.0}, r"encoder.cutoff: got 0.0; expected a distance in Å, above 0"),
        ("encoder", "cgcnn", {"cutoff": 31.0}, r"encoder.cutoff: got 31.0; .* at most 30"),
        (
            "encoder",
            "cgcnn",
            {"max_neighbours": 0},
            r"encoder.max_neighbours: got 0; expected a whole number of at least 1",
        ),
        ("encoder", "cgcnn_residual", {"num_radial": 1}, r"encoder.num_radial: got 1; .* at least 2"),
        ("encoder", "cgcnn_residual", {"num_layers": 0}, r"encoder.num_layers: got 0; .* at least 1"),
        ("encoder", "cgcnn", {"dim_feedforward": -1}, r"encoder.dim_feedforward: got -1; .* at least 1"),
        ("encoder", "mlp", {"dropout": 1.0}, r"encoder.dropout: got 1.0; expected a value in \[0, 1\)"),
        (
            "encoder",
            "mlp",
            {"coord_features": "cosine"},
            r"encoder.coord_features: got 'cosine'; .*'fourier', 'linear'",
        ),
        ("encoder", "gru", {"d_model": 15}, r"encoder.d_model: got 15; expected an even number"),
        ("encoder", "gru", {"d_model": 0}, r"encoder.d_model: got 0; .* at least 1"),
        ("encoder", "gru", {"num_layers": 2.5}, r"encoder.num_layers: got 2.5; .* at least 1"),
        (
            "encoder",
            "gru",
            {"lattice_features": "none"},
            r"encoder.lattice_features: got 'none'; .*'parameters', 'matrix'",
        ),
        ("encoder", "mlp", {"nhead": 2}, r"encoder: .*nhead"),
        ("decoder", "mlp", {"coord_output": "angle"}, r"decoder.coord_output: got 'angle'; .*'circle', 'raw'"),
        ("decoder", "mlp", {"atom_type_input": True}, r"decoder.atom_type_input: got true"),
        ("decoder", "mlp", {"num_layers": 0}, r"decoder.num_layers: got 0; .* at least 1"),
        ("decoder", "gru", {"d_model": 7}, r"decoder.d_model: got 7; expected an even number"),
        ("decoder", "gru", {"dropout": -0.1}, r"decoder.dropout: got -0.1; expected a value in \[0, 1\)"),
        ("decoder", "gru", {"max_num_elements": 0}, r"decoder.max_num_elements: got 0; .* at least 1"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_options_that_cannot_be_used_are_named(kind: str, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        family(name if kind == "encoder" else "mlp", name if kind == "decoder" else "mlp", **{kind: options})


# ---- details ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_given_elements_shape_the_structure(name: str, crystals: CrystalBatch) -> None:
    module = family("mlp", name, atom_type_predict=False)
    latents = torch.randn(crystals.num_nodes, 4, generator=torch.Generator().manual_seed(0))
    others = crystals.replace(atom_types=(crystals.atom_types + 7).remainder(99) + 1)
    first, second = (module.vae.decode(latents, batch) for batch in (crystals, others))
    assert first.atom_logits is None
    assert float((first.coord_vectors - second.coord_vectors).abs().max()) > 1e-2


@torch.no_grad()
def test_the_gru_starts_at_each_crystals_own_ends() -> None:
    """torch's own GRU, run over each crystal by itself."""
    crystals, stack = random_crystals(), family("gru", "mlp").vae.encoder.gru
    tokens = torch.randn(crystals.num_nodes, 16, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([stack.norm(rows + stack.gru(rows)[0]) for rows in tokens.split(list(SIZES))])
    torch.testing.assert_close(stack(tokens, crystals), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_pooled_network_hears_only_the_mean_of_the_others() -> None:
    crystals, stack = random_crystals((4,)), family("mlp", "mlp", encoder={"num_layers": 1}).vae.encoder.mlp
    layer = stack.layers[0]
    tokens = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    normed = layer.norm(tokens)
    both = torch.cat((layer.linear1.weight, layer.context.weight), dim=-1)
    inputs = torch.cat((normed, normed.mean(dim=0).expand(4, 16)), dim=-1)
    hidden = torch.nn.functional.gelu(inputs @ both.T + layer.linear1.bias)
    expected = stack.norm(tokens + hidden @ layer.linear2.weight.T + layer.linear2.bias)
    torch.testing.assert_close(stack(tokens, crystals), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_convolution_is_the_one_of_torch_geometric() -> None:
    torch.manual_seed(0)
    ours, theirs = NodewiseCGConv(16, dim=8), CGConv(16, dim=8)
    ours.load_state_dict(theirs.state_dict())
    edge_index = torch.randint(0, 10, (2, 50))
    inputs = (torch.randn(10, 16), edge_index, torch.randn(50, 8))
    torch.testing.assert_close(ours(*inputs), theirs(*inputs), atol=1e-5, rtol=1e-5)


def test_distances_are_described_by_gaussians() -> None:
    basis = gaussian_basis(torch.tensor([0.0, 2.0, 3.0, 40.0]), cutoff=6.0, count=4)
    centres = [0.0, 2.0, 4.0, 6.0]
    expected = [[2.718281828 ** (-(((d - c) / 2.0) ** 2)) for c in centres] for d in (0.0, 2.0, 3.0, 40.0)]
    torch.testing.assert_close(basis, torch.tensor(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_cell_without_a_graph_is_named(name: str, crystals: CrystalBatch) -> None:
    lattices = crystals.lattices.clone()
    lattices[1, 2] = lattices[1, 0]
    with pytest.raises(DataError, match=r"crystal 1 of 4 .*the cell has no volume"):
        family(name, "mlp").encode(crystals.replace(lattices=lattices))


def test_the_gru_leaves_the_settings_of_cudnn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    stack = AtomGRU(part="encoder", d_model=8, num_layers=1, dropout=0.0).eval()
    stack.gru.register_forward_hook(lambda *_: seen.append((own.enabled, own.deterministic)))
    own = torch.backends.cudnn
    monkeypatch.setattr(own, "deterministic", True)
    tokens = torch.randn(sum(SIZES), 8)
    stack(tokens, random_crystals())
    with torch.no_grad():
        stack(tokens, random_crystals())
    stack.train()(tokens, random_crystals())
    assert seen == [(False, True), (True, True), (True, True)]
    assert own.enabled
