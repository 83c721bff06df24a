"""Checkpoints of earlier format versions load, and give what they gave.

`tests/checkpoints/v1_*.ckpt` were written by the last commit with format version 1 (110126a) from the tiny models of
`tests/samples.py`, `v1_expected.pt` by the same code from what those models made; likewise `v2_*` by the last one with
format version 2. Files of later versions are added by the commit that changes the format, written by the one before.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crystalvae.checkpoints import format as checkpoints
from crystalvae.checkpoints.upgrades import FORMAT_VERSION, KEY, UPGRADES, upgraded
from crystalvae.data.batch import CrystalBatch
from crystalvae.predictor_module.predictor import LatentPredictor
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.vae_module import VAEModule
from tests.samples import assert_same_crystals

FOLDER = Path(__file__).parent / "checkpoints"
STORED = {
    version: torch.load(FOLDER / f"v{version}_expected.pt", weights_only=True) for version in range(1, FORMAT_VERSION)
    if (FOLDER / f"v{version}_expected.pt").is_file()
}  # fmt: skip


def inputs(version: int) -> CrystalBatch:
    return CrystalBatch(**STORED[version]["inputs"])


def expected(version: int, name: str) -> CrystalBatch:
    fields = dict(STORED[version]["expected"][name])
    fields.setdefault("num_atoms", STORED[version]["inputs"]["num_atoms"])
    return CrystalBatch(**fields)


def test_there_is_a_way_from_every_version_and_a_file_to_prove_it():
    assert set(UPGRADES) == set(range(1, FORMAT_VERSION))
    assert set(STORED) == set(UPGRADES)


@pytest.mark.parametrize("version", STORED)
@pytest.mark.parametrize("name", ["vae", "hierarchical", "adaptive_norm", "concat"])
def test_vae_of_an_earlier_version(version: int, name: str):
    module = VAEModule.load_from_checkpoint(FOLDER / f"v{version}_{name}.ckpt", weights_only=True)
    asked = {"conditions": {"density": 3.0}} if module.config["condition"] else {}
    assert_same_crystals(module.reconstruct_crystals(inputs(version), **asked), expected(version, name))
    assert module.statistics["num_atoms"] == {1: 3, 4: 2}


@pytest.mark.parametrize("version", STORED)
def test_prior_of_an_earlier_version(version: int):
    module = VAEModule.load_from_checkpoint(FOLDER / f"v{version}_prior.ckpt")
    drawn = module.sample(CrystalBatch.empty([2, 3, 4]), generator=torch.Generator().manual_seed(0))
    assert_same_crystals(drawn, expected(version, "prior"), atol=1e-4)
    assert LatentPrior.load_from_checkpoint(FOLDER / f"v{version}_prior.ckpt").prior is not None


@pytest.mark.parametrize("version", STORED)
def test_predictor_of_an_earlier_version(version: int):
    module = LatentPredictor.load_from_checkpoint(FOLDER / f"v{version}_predictor.ckpt")
    torch.testing.assert_close(
        module.predict(inputs(version)), STORED[version]["expected"]["predictor"]["prediction"], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("version", STORED)
@pytest.mark.parametrize("name", ["vae", "hierarchical", "adaptive_norm", "concat"])
def test_a_run_of_an_earlier_version_is_resumed(version: int, name: str):
    """Lightning hands the checkpoint to the module first; averaged weights are there twice, and optimisers know
    parameters by their order alone."""
    content = torch.load(FOLDER / f"v{version}_{name}.ckpt", weights_only=True)
    content["current_model_state"] = {key: value + 1 for key, value in content["state_dict"].items()}
    module = VAEModule.load_from_checkpoint(FOLDER / f"v{version}_{name}.ckpt", weights_only=True)
    module.on_load_checkpoint(content)
    for weights in (content["state_dict"], content["current_model_state"]):
        assert list(weights) == list(module.state_dict())
        module.load_state_dict(weights)


@pytest.mark.parametrize("prefix", ["", "vae_module."])
def test_what_tells_conditions_is_found_inside_a_prior_too(prefix: str):
    told = ["encoder.part.norm.weight", "encoder.embedder.mean"]
    others = ["decoder.injection.weight", "quant_conv.weight"]
    vae = {"condition": {"names": ["density"], "decoder": False}}
    config = {"vae": vae, "prior": {}} if prefix else vae
    weights = {f"{prefix}vae.{name}": torch.zeros(1) for name in (*told, *others)}
    after = upgraded({KEY: {"format_version": 2, "config": config}, "state_dict": weights})["state_dict"]
    assert [key.removeprefix(f"{prefix}vae.") for key in after] == [
        "encoder.norm.weight",
        "encoder_conditions.embedder.mean",
        *others,  # of a decoder that is told none, and so is not wrapped
    ]


def test_upgrading_writes_nothing_into_what_it_is_given():
    before = torch.load(FOLDER / "v1_vae.ckpt", weights_only=True)
    again = torch.load(FOLDER / "v1_vae.ckpt", weights_only=True)
    after = upgraded(before)
    assert before[KEY] == again[KEY]
    assert list(before["state_dict"]) == list(again["state_dict"])
    assert after[KEY]["format_version"] == FORMAT_VERSION
    assert "src." not in str(after[KEY]["config"])
    assert upgraded(after)[KEY] == after[KEY]


@pytest.mark.parametrize("version", [0, 99, "2", None, True, 1.0])
def test_a_version_without_a_way_to_ours_is_refused(version: object, tmp_path: Path):
    content = torch.load(FOLDER / "v1_vae.ckpt", weights_only=True)
    content[KEY]["format_version"] = version
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(checkpoints.CheckpointError, match="checkpoint format version"):
        VAEModule.load_from_checkpoint(tmp_path / "odd.ckpt")
