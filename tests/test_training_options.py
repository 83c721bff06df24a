"""Schedules by epochs, relative noise, widths and activations of MLPs, parts by name, and facts of samples."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from samples import random_crystals, rock_salt_and_friends, tiny_config, tiny_module
from torch import nn

import crystalvae
from crystalvae.data.augmentation import FeatureScales, jitter, rotate
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import random_rotations
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.evaluation.validity.contacts import sample_facts
from crystalvae.vae_module import VAEModule

GROUP = Path(__file__).resolve().parents[1] / "configs" / "vae_module" / "scheduler"
ADAM = {"_target_": "torch.optim.AdamW", "lr": 1e-3}


# ---- learning rate ---------------------------------------------------------------------------------------------------


def rate_after(folder: Path, scheduler: dict[str, Any], *, epochs: int, **options: Any) -> float:
    batches = [TrainingBatch.whole(random_crystals(), seed=(0, 0, 0))]
    loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.fit(VAEModule(**tiny_config(optimizer=ADAM, scheduler=scheduler)), loader, loader)
    return trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.filterwarnings("ignore")  # what Lightning says of tiny runs
def test_schedules_of_torch_go_by_epochs(tmp_path: Path):
    step = yaml.safe_load((GROUP / "step.yaml").read_text(encoding="utf-8"))
    plateau = yaml.safe_load((GROUP / "plateau.yaml").read_text(encoding="utf-8"))
    assert rate_after(tmp_path, {**step, "step_size": 2, "gamma": 0.1}, epochs=4) == pytest.approx(1e-5)
    never_better = {**plateau, "patience": 0, "threshold": 1e9, "threshold_mode": "abs", "factor": 0.1}
    assert rate_after(tmp_path, never_better, epochs=3) == pytest.approx(1e-5)
    assert rate_after(tmp_path, {**never_better, "patience": 3}, epochs=3) == pytest.approx(1e-3)
    assert rate_after(tmp_path, never_better, epochs=4, check_val_every_n_epoch=2) == pytest.approx(1e-4)
    with pytest.raises(ConfigError, match=r"vae_module\.scheduler\.monitor: a StepLR watches nothing"):
        rate_after(tmp_path, {**step, "monitor": "val/loss"}, epochs=1)


# ---- relative noise --------------------------------------------------------------------------------------------------


def test_relative_noise_has_the_standard_deviation_that_it_says():
    many = CrystalBatch.cat([random_crystals((2, 3), seed=k) for k in range(800)])
    scales = FeatureScales.of(many)
    torch.testing.assert_close(scales.lengths, many.lengths_scaled.std(dim=0, correction=0), atol=1e-5, rtol=1e-4)
    module = tiny_module(noise={"relative": 0.1})
    with pytest.raises(ConfigError, match=r"noise\.relative: has to know the training set"):
        module.losses(many, training=True, step=0)
    module.noise_scales = scales
    batch = TrainingBatch.whole(many, seed=(0, 0, 1))
    seen = module.noise(batch, many, batch.generator(), scales)
    moved = seen.frac_coords - many.frac_coords
    differences = {
        "frac_coords": moved - moved.round(),
        "lengths": seen.lengths_scaled - many.lengths_scaled,
        "angles": seen.angles_radians - many.angles_radians,
    }
    for name, values in differences.items():
        expected = 0.1 * getattr(scales, name)
        torch.testing.assert_close(values.std(dim=0), expected, rtol=0.08, atol=0.0)
        assert bool((values.mean(dim=0).abs() < 0.1 * expected).all())
    assert seen.atom_types.equal(many.atom_types)
    assert torch.isfinite(module.losses(many, training=True, step=0)["loss"])


def test_jitter_keeps_the_orientation_of_the_cell_and_cells_that_would_be_flat():
    crystals = random_crystals()
    generator = torch.Generator().manual_seed(3)
    turns = random_rotations(4, generator)
    coords, lengths, angles = (torch.randn(rows, 3, generator=generator) * 0.05 for rows in (14, 4, 4))
    one = rotate(jitter(crystals, coords, lengths, angles), turns)
    other = jitter(rotate(crystals, turns), coords, lengths, angles)
    torch.testing.assert_close(one.lattices, other.lattices, atol=1e-4, rtol=1e-4)
    same = jitter(crystals, coords * 0, lengths * 0, angles * 0)
    torch.testing.assert_close(same.lattices, crystals.lattices, atol=1e-4, rtol=1e-4)
    flat = jitter(crystals, coords, lengths, angles + 1.0)  # more than 360° together
    torch.testing.assert_close(flat.lattices, crystals.lattices)


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_relative_noise_is_a_share_of_a_standard_deviation(value: float):
    with pytest.raises(ConfigError, match=rf"noise\.relative: got {value}; expected"):
        tiny_module(noise={"relative": value})


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_hidden_widths_and_activations_of_mlps():
    options: dict[str, Any] = {"d_model": 8, "num_layers": None, "hidden_dims": [12, 6, 4]}
    outputs = {}
    for activation in ("gelu", "relu", "silu", "tanh"):
        torch.manual_seed(0)
        encoder: Any = crystalvae.build_encoder("mlp", activation=activation, **options)
        assert [layer.linear1.out_features for layer in encoder.mlp.layers] == [12, 6, 4]
        outputs[activation] = encoder(random_crystals()).detach()
    for one, other in combinations(outputs.values(), 2):
        assert not torch.allclose(one, other, atol=1e-3)
    torch.manual_seed(0)
    torch.testing.assert_close(crystalvae.build_encoder("mlp", **options)(random_crystals()), outputs["gelu"])
    config = tiny_config()
    for part, widths in (("encoder", [5]), ("decoder", [7, 6])):
        target = f"crystalvae.vae_module.{part}s.mlp.MLP{part.title()}"
        config[part] = {"_target_": target, "d_model": 8, "num_layers": None, "hidden_dims": widths}
    VAEModule(**config).losses(random_crystals(), step=0, training=True)["loss"].backward()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"hidden_dims": [8, 8]},
            r"encoder\.hidden_dims: says the number of layers and their widths; set enc",
        ),
        ({"hidden_dims": [8], "num_layers": None, "dim_feedforward": 4}, r"encoder\.hidden_dims: says"),
        ({"hidden_dims": []}, r"encoder\.hidden_dims: got \[\]"),
        ({"hidden_dims": [0], "num_layers": None}, r"encoder\.hidden_dims\[0\]: got 0"),
        ({"activation": "gelu_tanh"}, r"encoder\.activation: got 'gelu_tanh'; expected one of 'gelu', 'relu'"),
        ({"num_layers": None}, r"encoder\.num_layers: got None"),
        ({"depth": 3}, r"build_encoder\('mlp'\): unknown depth; expected some of activation, coord_features"),
    ],
)
def test_options_that_cannot_be_used_are_named(options: dict[str, Any], match: str, without_type_checks: None):
    with pytest.raises(ConfigError, match=match):
        crystalvae.build_encoder("mlp", **options)


@pytest.mark.parametrize("name", ["transformer", "transformer_small", "cgcnn", "cgcnn_residual", "mlp", "gru"])
def test_parts_are_built_by_name(name: str):
    size = {"d_model": 16, "num_layers": 1}
    encoder: Any = crystalvae.build_encoder(name, **size)
    crystals = random_crystals()
    assert encoder(crystals).shape == (crystals.num_nodes, 16)
    if name.startswith("cgcnn"):
        with pytest.raises(ConfigError, match=rf"build_decoder: got '{name}'; expected one of gru, mlp, transformer"):
            crystalvae.build_decoder(name)
        return
    decoder: Any = crystalvae.build_decoder(name, **size)
    assert isinstance(decoder, nn.Module)
    assert decoder(torch.zeros(crystals.num_nodes, 16), crystals).atom_logits.shape == (crystals.num_nodes, 100)


# ---- facts of samples ------------------------------------------------------------------------------------------------


def test_samples_have_their_shortest_contact_and_say_by_which_test_they_are_valid():
    facts = sample_facts(CrystalBatch.from_structures(rock_salt_and_friends()[:2]))
    radii = [1.66 + 1.02, 2 * 0.76]  # Cordero et al. 2008: Na and Cl, C and C
    distances = [2.82, 3.567 * 3**0.5 / 4]
    assert np.allclose(facts["shortest_contact"], np.divide(distances, radii), rtol=1e-4)
    assert set(facts["valid_test"]) == {"distances >= 0.5 Å and volume >= 0.1 Å^3 (CDVAE)"}
    assert facts["valid"].tolist() == [True, True]
