"""Enantiomorphs stay what they are: a left-handed cell is a choice of axes, not another crystal."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import spglib
import torch
from ase import Atoms
from ase.db import connect
from pymatgen.core import Lattice, Structure

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.canonical import canonical
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.dataset_file import save_dataset
from crystalvae.data.readers import read_crystals
from crystalvae.data.writers import FORMATS, write_crystals
from tests.samples import tiny_module

QUARTZ = {152: "P3_121", 154: "P3_221"}
"""Space groups of right and left quartz, mirror images of each other."""


def quartz(number: int, *, left_handed: bool) -> Structure:
    """Quartz of a space group, its cell as the International Tables have it or with a and b exchanged."""
    sites = [[0.4697, 0.0, 0.0], [0.4135, 0.2669, 0.1191]]
    if number == 152:  # the mirror image of the other
        sites = [[x, y, -z] for x, y, z in sites]
    structure = Structure.from_spacegroup(QUARTZ[number], Lattice.hexagonal(4.913, 5.405), ["Si", "O"], sites)
    if not left_handed:
        return structure
    swap = [1, 0, 2]
    return Structure(structure.lattice.matrix[swap], structure.species, structure.frac_coords[:, swap])


def space_groups(crystals: CrystalBatch) -> list[int]:
    found = []
    for numbers, coords, lattice in crystals.to_arrays():
        dataset = spglib.get_symmetry_dataset((lattice, coords, numbers), symprec=1e-3)
        assert dataset is not None
        found.append(dataset.number)
    return found


def atoms(structure: Structure) -> Atoms:
    matrix = structure.lattice.matrix
    return Atoms(structure.atomic_numbers, scaled_positions=structure.frac_coords, cell=matrix, pbc=True)


def parameters_tell_all(crystals: CrystalBatch) -> CrystalBatch:
    """Rebuild cells from lengths and angles, which is all that a model and a CIF know of them."""
    from crystalvae.data.lattice import lattice_from_parameters

    return crystals.replace(lattices=lattice_from_parameters(crystals.lengths, crystals.angles_radians))


@pytest.fixture(params=[(number, hand) for number in QUARTZ for hand in (False, True)], ids=str)
def case(request: pytest.FixtureRequest) -> tuple[int, Structure]:
    number, hand = request.param
    return number, quartz(number, left_handed=hand)


def test_the_samples_are_what_they_should_be() -> None:
    for number in QUARTZ:
        for hand in (False, True):
            structure = quartz(number, left_handed=hand)
            assert (np.linalg.det(structure.lattice.matrix) < 0) == hand
            cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
            found = spglib.get_symmetry_dataset(cell, symprec=1e-3)
            assert found is not None
            assert found.number == number


def test_structures_atoms_and_pyg_batches_keep_their_hand(case: tuple[int, Structure]) -> None:
    number, structure = case
    given = CrystalBatch(
        torch.tensor(structure.atomic_numbers),
        torch.tensor(structure.frac_coords % 1.0).float(),
        torch.tensor(structure.lattice.matrix.copy()).float()[None],
        torch.tensor([len(structure)]),
    )
    for crystals in (
        CrystalBatch.from_structures([structure]),
        CrystalBatch.from_atoms([atoms(structure)]),
        CrystalBatch.from_pyg(given.to_pyg()),
        given.right_handed(),
    ):
        assert float(torch.linalg.det(crystals.lattices)) > 0
        assert space_groups(parameters_tell_all(crystals)) == [number]
        assert bool(((crystals.frac_coords >= 0) & (crystals.frac_coords < 1)).all())
        assert space_groups(canonical(crystals)) == [number]
        (back,) = crystals.to_atoms()
        assert space_groups(CrystalBatch.from_atoms([back])) == [number]


@pytest.mark.parametrize("niggli", [False, True])
@pytest.mark.parametrize("kind", ["extxyz", "db", "POSCAR", "traj", "json", "safetensors"])
def test_every_reader_keeps_the_hand(case: tuple[int, Structure], tmp_path: Path, kind: str, niggli: bool) -> None:
    number, structure = case
    path = tmp_path / (kind if kind == "POSCAR" else f"quartz.{kind}")
    if kind == "json":
        path.write_text(json.dumps([structure.as_dict()]))
    elif kind == "db":
        with connect(path) as database:
            database.write(atoms(structure))
    elif kind == "safetensors":
        save_dataset(CrystalDataset(CrystalBatch.from_structures([structure]), ["quartz"]), path)
    else:
        ase.io.write(path, atoms(structure))
    crystals = read_crystals(path, niggli=niggli).crystals
    assert space_groups(parameters_tell_all(crystals)) == [number]


@pytest.mark.parametrize("name", FORMATS)
def test_every_writer_keeps_the_hand(case: tuple[int, Structure], tmp_path: Path, name: str) -> None:
    number, structure = case
    write_crystals(CrystalBatch.from_structures([structure]), tmp_path / "out", formats=[name])
    files = {"cif": ".", "extxyz": "samples.extxyz", "poscar": "0000.vasp", "db": "samples.db"}
    path = tmp_path / "out" / files[name]
    assert space_groups(parameters_tell_all(read_crystals(path).crystals)) == [number]


def test_a_model_sees_the_crystal_and_not_its_mirror_image() -> None:
    module = tiny_module().eval()
    for number in QUARTZ:
        one = quartz(number, left_handed=False)
        other = Structure(-one.lattice.matrix, one.species, -one.frac_coords)
        mirrored = quartz(306 - number, left_handed=False)
        vectors = module.embed([one, other, mirrored])
        torch.testing.assert_close(vectors[0], vectors[1], rtol=1e-4, atol=1e-4)
        assert float((vectors[0] - vectors[2]).abs().max()) > 1e-3
