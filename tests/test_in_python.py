"""One line each: `crystalvae.sample`, `reconstruct`, `embed`, `evaluate`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import crystalvae
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module import VAEModule
from tests.samples import rock_salt_and_friends


def test_sample_gives_the_crystals_of_the_command():
    crystals = crystalvae.sample(3, seed=1)
    again = VAEModule.load_from_checkpoint("mp20-symmetric-small").sample(3, generator=torch.Generator().manual_seed(1))
    assert isinstance(crystals, CrystalBatch)
    assert len(crystals) == 3
    assert torch.equal(crystals.atom_types, again.atom_types)
    torch.testing.assert_close(crystals.lattices, again.lattices, atol=1e-4, rtol=1e-4)
    assert not torch.equal(crystals.num_atoms, crystalvae.sample(3, seed=2).num_atoms)


def test_a_composition_is_kept():
    formulas = {
        structure.composition.reduced_formula
        for structure in crystalvae.sample(4, composition="LiFePO4").to_structure()
    }
    assert formulas == {"LiFePO4"}


def test_relaxed_samples_carry_their_outcome():
    crystals = crystalvae.sample(2, composition="Cu", formula_units=4, relax="emt", n_jobs=1)
    assert set(crystals.properties) >= {"relaxed", "converged", "energy", "energy_change", "displacement"}
    done = crystals.properties["relaxed"] == 1
    assert bool((crystals.properties["energy_change"][done] <= 1e-4).all())


def test_reconstruction_and_embedding_know_no_choice_of_cell(tmp_path: Path):
    structures = rock_salt_and_friends()[:2]
    supercells = [structure.copy() for structure in structures]
    crystals = crystalvae.reconstruct(structures)
    assert [len(structure) for structure in structures] == crystals.num_atoms.tolist()
    vectors = crystalvae.embed(structures)
    assert vectors.shape[0] == 2
    moved = [structure.translate_sites(range(len(structure)), [0.1, 0.2, 0.3]) for structure in supercells]
    torch.testing.assert_close(crystalvae.embed(moved), vectors, atol=1e-3, rtol=1e-3)
    structures[0].to(filename=str(tmp_path / "one.cif"))
    assert crystalvae.embed(tmp_path / "one.cif").shape == (1, vectors.shape[1])


def test_evaluate_returns_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(tmp_path))
    report = crystalvae.evaluate(rock_salt_and_friends(), data="prototypes", sections=["validity"], n_jobs=1)
    assert report.metrics()["structure_valid"].value == 1.0


def test_what_cannot_be_asked_is_named():
    with pytest.raises(ConfigError, match=r"sample: unknown formula; expected some of .*composition"):
        crystalvae.sample(2, formula="NaCl")
    with pytest.raises(
        ConfigError, match="potential: got 'dft'; expected one of chgnet, emt, mace, mattersim, orb, sevennet"
    ):
        crystalvae.sample(2, relax="dft")
    with pytest.raises(ConfigError, match=r"data: got 'mp_21'; expected one of"):
        crystalvae.evaluate(rock_salt_and_friends(), data="mp_21")
