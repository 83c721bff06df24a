"""Bundled models: half precision on disk, the same crystals out, and hashes that are checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.commands.publish import SMALL, publish
from crystalvae.errors import CheckpointError, ConfigError, OutputError
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.vae_module import VAEModule
from tests.samples import random_crystals, tiny_module, tiny_prior


def options(ckpt_path: Path | str, name: str, output_dir: Path, *, prior_storage: str = "half") -> DictConfig:
    given = {"ckpt_path": str(ckpt_path), "name": name, "output_dir": str(output_dir), "prior_storage": prior_storage}
    return OmegaConf.create({**given, "overwrite": False})


@pytest.fixture
def published(tmp_path, monkeypatch):
    module = tiny_module()
    module.save_checkpoint(tmp_path / "best.ckpt")
    publish(options(tmp_path / "best.ckpt", "tiny", tmp_path / "models"))
    monkeypatch.setattr(bundled, "folder", lambda: tmp_path / "models")
    return module, tmp_path / "models" / "tiny.ckpt"


def test_large_weights_are_halved_and_small_ones_kept(published):
    module, path = published
    weights = torch.load(path, weights_only=True)["state_dict"]
    for name, value in module.state_dict().items():
        expected = value.half() if value.numel() > SMALL and value.is_floating_point() else value
        assert weights[name].dtype == expected.dtype
        assert torch.equal(weights[name], expected)
    assert any(value.dtype == torch.float16 for value in weights.values())


def test_published_model_loads_by_name_and_decodes_the_same(published):
    module, _ = published
    crystals = random_crystals()
    loaded = VAEModule.load_from_checkpoint("tiny")
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values() if value.is_floating_point())
    expected, got = module.eval().reconstruct_crystals(crystals), loaded.reconstruct_crystals(crystals)
    torch.testing.assert_close(got.lattices, expected.lattices, atol=0.05, rtol=0.01)


def test_hash_is_written_and_checked(published):
    _, path = published
    assert json.loads((path.parent / bundled.MANIFEST).read_text()) == {
        "tiny": hashlib.sha256(path.read_bytes()).hexdigest()
    }
    with path.open("ab") as file:
        file.write(b"!")
    with pytest.raises(CheckpointError, match="sha256 differs"):
        bundled.find("tiny")


def test_bundled_models_are_what_was_published():
    for name in bundled.models():
        module = VAEModule.load_from_checkpoint(name)
        assert module.statistics["num_crystals"] > 0


@pytest.mark.parametrize("name", ["../evil", "Upper", "", "a b"])
def test_names_are_plain(tmp_path, name: str):
    with pytest.raises(ConfigError, match="name: got"):
        publish(options("x.ckpt", name, tmp_path))


def test_weights_beyond_half_precision_are_refused(tmp_path):
    module = tiny_module()
    with torch.no_grad():
        max(module.parameters(), key=lambda p: p.numel()).fill_(1e6)
    module.save_checkpoint(tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match="half precision"):
        publish(options(tmp_path / "best.ckpt", "x", tmp_path))


def test_a_model_is_only_replaced_where_that_is_said(published):
    _, path = published
    before = path.read_bytes()
    again = options(path.parents[1] / "best.ckpt", "tiny", path.parent)
    with pytest.raises(OutputError, match=r"tiny\.ckpt: there is such a model already.*overwrite=true"):
        publish(again)
    again.overwrite = True
    publish(again)
    assert path.read_bytes() == before


def test_an_unknown_storage_is_refused(tmp_path):
    tiny_module().save_checkpoint(tmp_path / "best.ckpt")
    with pytest.raises(ConfigError, match=r"prior_storage.*int8"):
        publish(options(tmp_path / "best.ckpt", "x", tmp_path, prior_storage="int4"))


def test_matrices_of_a_prior_are_stored_in_eight_bits(tmp_path, monkeypatch):
    prior = tiny_prior()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    prior.save_checkpoint(tmp_path / "best.ckpt")
    publish(options(tmp_path / "best.ckpt", "tiny", tmp_path / "models", prior_storage="int8"))
    monkeypatch.setattr(bundled, "folder", lambda: tmp_path / "models")
    packed = torch.load(tmp_path / "models" / "tiny.ckpt", weights_only=True)[checkpoints.PACKED]
    exact, loaded = prior.state_dict(), LatentPrior.load_from_checkpoint("tiny").state_dict()
    assert packed
    assert all(name.startswith("vae_module.prior.") for name in packed)
    for name, value in exact.items():
        if name in packed:
            assert packed[name]["values"].dtype == torch.int8
            allowed = value.abs().amax(dim=1, keepdim=True) / 127 / 2 * 1.0001
            assert bool(((loaded[name] - value).abs() <= allowed).all())
        else:
            torch.testing.assert_close(loaded[name], value, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {"values": torch.zeros(2, 3, dtype=torch.int8)},
        {"values": torch.zeros(2, 3), "scales": torch.ones(2)},
        {"values": torch.zeros(2, 3, dtype=torch.int8), "scales": torch.ones(3)},
        {"values": [[1, 2]], "scales": [1.0]},
    ],
)
def test_damaged_eight_bit_matrices_are_refused(tmp_path, entry: object):
    module = tiny_module()
    module.save_checkpoint(tmp_path / "whole.ckpt")
    content = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    checkpoints.write({**content, checkpoints.PACKED: {"vae.quant_conv.weight": entry}}, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=r"vae\.quant_conv\.weight"):
        VAEModule.load_from_checkpoint(tmp_path / "bad.ckpt")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "something else"),
        ('{"a": 7}', "something else"),
        ('{"a": "xyz"}', "something else"),
    ],
)
def test_a_damaged_list_of_models_is_not_written_over(tmp_path: Path, text: str, reason: str) -> None:
    tiny_module().save_checkpoint(tmp_path / "model.ckpt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sha256.json").write_text(text)
    with pytest.raises(OutputError, match=reason):
        publish(options(tmp_path / "model.ckpt", "tiny", tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sha256.json"]
    assert (tmp_path / "out" / "sha256.json").read_text() == text


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c["state_dict"].pop(next(iter(c["state_dict"]))),
        lambda c: next(iter(c["state_dict"].values())).fill_(float("nan")),
        lambda c: c["crystalvae"].update(config={"_target_": "os.system"}),
        lambda c: c["crystalvae"].update(statistics={"num_atoms": {0: 1}}),
        lambda c: c["crystalvae"].update(kind="x"),
    ],
)
def test_nothing_is_published_that_does_not_load(tmp_path: Path, damage) -> None:
    tiny_module().save_checkpoint(tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    damage(content)
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError):
        publish(options(tmp_path / "model.ckpt", "tiny", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
