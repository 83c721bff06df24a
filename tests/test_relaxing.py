"""Relaxing what was sampled: order, what cannot be relaxed, what is written. The potential is EMT, for its speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from pymatgen.core import Structure

from crystalvae.commands.relaxing import Relaxer
from crystalvae.commands.sample import sample
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError

CU, FE = 29, 26
FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(tmp_path / "cache"))

    def build(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
            return compose("sample", ["relax=true", "potential=emt", "n_jobs=1", *overrides])

    return build


def relaxer(config: DictConfig) -> Relaxer:
    found = Relaxer.from_config(config)
    assert found is not None
    return found


def cell(number: int, side: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array([number] * 4), FCC, side * np.eye(3)


def test_crystals_keep_their_order_and_those_that_cannot_be_relaxed_stay_as_they_are(config):
    crystals = CrystalBatch.from_arrays([cell(CU, 3.9), cell(FE, 3.7), cell(CU, 0.4), cell(CU, 3.3)])
    relaxed, rows = relaxer(config())(crystals)
    sides = relaxed.lattices.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(sides[[0, 3]], torch.full((2, 3), 3.59), atol=0.02, rtol=0)  # EMT's copper
    torch.testing.assert_close(relaxed[torch.tensor([1, 2])].lattices, crystals[torch.tensor([1, 2])].lattices)
    assert relaxed.atom_types.tolist() == crystals.atom_types.tolist()
    assert rows["relaxed"].tolist() == rows["converged"].tolist() == [True, False, False, True]
    assert rows["energy_change"][[0, 3]].max() < -0.05
    assert rows["energy"][0] == pytest.approx(rows["energy"][3], abs=1e-3)
    assert rows.loc[[1, 2], ["energy", "energy_change", "displacement"]].isna().all(axis=None)
    assert "Fe" in rows["relax_failure"][1] or "26" in rows["relax_failure"][1]
    assert "Å" in rows["relax_failure"][2]
    assert rows["relax_failure"][[0, 3]].tolist() == ["", ""]


def test_steps_that_run_out_are_relaxed_but_not_converged(config):
    _, rows = relaxer(config("relaxation.max_steps=2"))(CrystalBatch.from_arrays([cell(CU, 3.9)]))
    assert rows[["relaxed", "converged"]].to_numpy().tolist() == [[True, False]]


def test_without_relax_there_is_none(config):
    assert Relaxer.from_config(config("relax=false")) is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("relax=maybe", "relax: got 'maybe'; expected true or false"),
        ("relaxation.fmax=-1", "relaxation.fmax=-1"),
        ("n_jobs=0", "n_jobs"),
        ("potential.calculator._target_=nowhere.Potential", "'nowhere.Potential' is none of the parts"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_is_sampled(config, override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        sample(config(override))


def test_the_command_writes_relaxed_crystals(config, tmp_path: Path):
    asked = ["num_samples=3", "chemical_system=Cu-Au", "num_atoms=4", "cif_symmetry=false"]
    asked += [f"output_dir={tmp_path}/out"]
    message = sample(config(*asked))
    table = pd.read_csv(tmp_path / "out" / "samples.csv", dtype={"id": str})
    assert "relaxed with EMT" in message
    assert True in table["relaxed"].tolist()
    sample(config(*asked[:-1], f"output_dir={tmp_path}/raw", "relax=false"))
    raw = pd.read_csv(tmp_path / "raw" / "samples.csv", dtype={"id": str})
    assert "relaxed" not in raw
    for name, was_relaxed, volume in zip(table["id"], table["relaxed"], table["volume"], strict=True):
        before, after = (Structure.from_file(tmp_path / folder / f"{name}.cif") for folder in ("raw", "out"))
        assert sorted(before.species) == sorted(after.species)
        assert after.volume == pytest.approx(volume, rel=1e-4)
        assert np.allclose(before.lattice.parameters, after.lattice.parameters) != was_relaxed
