"""Requests that a model cannot meet are refused, or answered with a warning, before anything is sampled."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from test_docs import compose

from crystalvae.checks import check_seed
from crystalvae.commands.cluster import cluster
from crystalvae.commands.evaluate import evaluate
from crystalvae.commands.train import check_it_ends
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.composition import parse_composition
from crystalvae.errors import ConfigError, OutputError, printable
from crystalvae.sampling import SampleRequest, request_template
from tests.samples import tiny_module


def test_seeds_that_repeat_smaller_ones_are_refused() -> None:
    """2^32 is 0 to a generator: two runs that look different would be the same."""
    same = [torch.rand(3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 2**32)]
    assert torch.equal(*same)
    assert check_seed("seed", 2**32 - 1) == 2**32 - 1
    for seed in (2**32, 10**20, -1, 1.5, True, None):
        with pytest.raises(ConfigError, match="seed: got"):
            check_seed("seed", seed)
    with pytest.raises(ConfigError, match="seed: got 4294967296"):
        SampleRequest(number=1, seed=2**32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_atoms": 10_001}, "num_atoms: got 10001 atoms"),
        ({"composition": "LiF", "formula_units": 10**8}, "formula_units: got 100000000 atoms"),
    ],
)
def test_crystals_beyond_all_memory_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SampleRequest(number=1, **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("formula", ["Li1e400", "Li1000000000", "Li999999999999999999999"])
def test_formulas_beyond_all_memory_are_refused(formula: str) -> None:
    with pytest.raises(ConfigError, match=f"composition={formula}: .*expected"):
        parse_composition(formula)


def test_conditions_far_outside_training_are_warned_of_and_absurd_ones_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = tiny_module(condition={"names": ["band_gap"], "d_model": 8})
    module.statistics = {"num_atoms": {2: 1}, "dataset": "x"}
    gaps = torch.linspace(0.0, 4.0, 32)
    crystals = CrystalBatch.empty([2] * 32).replace(properties={"band_gap": gaps}, atom_types=torch.full((64,), 11))
    module.vae.fit_conditions(crystals)

    def ask(value: float) -> None:
        request = SampleRequest(number=2, num_atoms=2, conditions={"band_gap": value})
        request_template(module, request, generator=torch.Generator().manual_seed(0))

    with caplog.at_level(logging.WARNING):
        ask(3.0)
        assert "standard deviations" not in caplog.text
        ask(30.0)
        assert "conditions.band_gap: 30 is 23 standard deviations from the mean of the training set" in caplog.text
    with pytest.raises(ConfigError, match=r"conditions\.band_gap: got 1e\+30, which is too far .*: mean 2, "):
        ask(1e30)
    module.statistics["conditions"] = {"band_gap": [0.0, 4.0]}
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ask(4.0)
        assert not caplog.text
        ask(4.5)
        assert "(in training: mean 2, standard deviation 1.21, range 0 to 4)" in caplog.text
    with pytest.raises(ConfigError, match=r"got -5, which is negative; in training: .*range 0 to 4"):
        ask(-5.0)


def test_training_has_an_end() -> None:
    from omegaconf import OmegaConf

    for given in ({"max_epochs": None}, {"max_epochs": None, "max_steps": -1}, {}):
        with pytest.raises(ConfigError, match=r"trainer\.max_epochs: got null"):
            check_it_ends(OmegaConf.create(given))
    for given in ({"max_epochs": 3}, {"max_epochs": None, "max_steps": 5}, {"max_time": "00:00:01:00"}):
        check_it_ends(OmegaConf.create(given))


def test_control_characters_are_shown_and_letters_stay() -> None:
    assert printable("mp-1 Å β 石英\n\t") == "mp-1 Å β 石英\n\t"
    assert printable("a\x1b[2Jb\r\x07\u202ec\x9b") == "a\\x1b[2Jb\\r\\x07\\u202ec\\x9b"


def test_evaluation_says_at_the_start_that_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="cannot write to output_dir="):
        evaluate(compose("evaluate", "generated=nothing-there", "data=prototypes", "output_dir=file/below"))


def test_cluster_prints_ten_clusters_and_all_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(tmp_path / "cache"))
    module = tiny_module()
    module.statistics = {"num_atoms": {2: 1}, "dataset": "prototypes"}
    module.save_checkpoint(tmp_path / "vae.ckpt")
    given = ["ckpt_path=vae.ckpt", "data=prototypes", "data.source.num_crystals=200", "k=12", "n_jobs=1", "split=train"]
    given += ["num_crystals=40", "device=cpu"]
    short = cluster(compose("cluster", *given))
    assert len(short.splitlines()) == 12
    assert short.splitlines()[-1] == "  … and 2 clusters more; verbose=true shows all"
    assert len(cluster(compose("cluster", *given, "verbose=true", "overwrite=true")).splitlines()) == 13
