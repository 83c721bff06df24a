"""CIFs with the space group, its operations and the asymmetric unit: the same structure for every reader."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import ase.io
import gemmi
import moyopy
import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from pymatgen.core import Structure
from pymatgen.core.lattice import Lattice

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.cif import parse_cif
from crystalvae.data.readers import read_crystals
from crystalvae.data.symmetric.source import ORBIT_SITES, SPACE_GROUP, symmetric
from crystalvae.data.symmetry import moyo_dataset
from crystalvae.data.writers import write_crystals
from tests.test_symmetric_description import random_symmetric

Arrays = tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N 3"], Float[np.ndarray, "3 3"]]


@cache
def crystal(number: int) -> CrystalBatch:
    """A crystal in the standard primitive cell, said to be in the symmetric description; the orbits say no more."""
    given = random_symmetric(number, np.random.default_rng(number))
    return given.replace(properties={SPACE_GROUP: torch.tensor([float(number)]), ORBIT_SITES: torch.tensor([[0]])})


def readers(text: str) -> dict[str, Arrays]:
    ours, theirs = parse_cif(text), Structure.from_str(text, fmt="cif", frac_tolerance=0.0)
    atoms = ase.io.read(io.StringIO(text), format="cif")
    assert not isinstance(atoms, list)
    small = gemmi.make_small_structure_from_block(gemmi.cif.read_string(text).sole_block())
    sites = small.get_all_unit_cell_sites()
    return {
        "this package": (ours.numbers, ours.frac_coords, ours.lattice),
        "pymatgen": (np.array(theirs.atomic_numbers), theirs.frac_coords, theirs.lattice.matrix),
        "ASE": (atoms.numbers, atoms.get_scaled_positions(), np.asarray(atoms.cell)),
        "gemmi": (
            np.array([site.element.atomic_number for site in sites]),
            np.array([site.fract.tolist() for site in sites]),
            np.array(small.cell.orth.mat.tolist()).T,
        ),
    }


def assert_same_structure(read: Arrays, given: CrystalBatch) -> None:
    """All atoms of the conventional cell are those of the primitive one, also in their hand."""
    numbers, frac_coords, lattice = read
    known, known_coords, known_lattice = given.to_arrays()[0]
    group = moyopy.SpaceGroupType(int(given.properties["space_group"]))
    centring = {"P": 1, "F": 4, "R": 3}.get(group.hm_short[0], 2)
    assert len(numbers) == centring * len(known)
    # The vectors of the primitive cell are lattice vectors of what was read, whole sums of 1/6 of its own.
    given_cell = Lattice(known_lattice)
    coefficients = {
        1: np.eye(3),
        2: {
            "C": [[0.5, -0.5, 0], [0.5, 0.5, 0], [0, 0, 1]],
            "A": [[1, 0, 0], [0, 0.5, 0.5], [0, -0.5, 0.5]],
            "I": [[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]],
        }.get(group.hm_short[0]),
        3: [[2 / 3, 1 / 3, 1 / 3], [-1 / 3, 1 / 3, 1 / 3], [-1 / 3, -2 / 3, 1 / 3]],
        4: [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
    }[centring]
    primitive = np.array(coefficients) @ lattice
    np.testing.assert_allclose(Lattice(primitive).parameters, given_cell.parameters, atol=2e-4)
    assert np.linalg.det(primitive) > 0
    placed = frac_coords @ lattice @ np.linalg.inv(primitive)
    apart = placed[:, None] - known_coords
    apart -= np.rint(apart)
    near = np.linalg.norm(apart @ known_lattice, axis=-1) < 2e-4
    assert (near & (numbers[:, None] == known)).sum(axis=0).tolist() == [centring] * len(known)


@pytest.mark.parametrize("number", range(1, 231))
def test_every_reader_finds_the_structure_and_its_space_group(number: int):
    given = crystal(number)
    (text,) = given.to_cif()
    for read in readers(text).values():
        assert_same_structure(read, given)
    small = gemmi.make_small_structure_from_block(gemmi.cif.read_string(text).sole_block())
    assert small.spacegroup is not None
    assert small.spacegroup.number == number


def test_what_is_listed_is_the_asymmetric_unit():
    given, _ = symmetric(CrystalBatch.cat([random_symmetric(n, np.random.default_rng(n)) for n in (5, 62, 166, 227)]))
    for crystal_, text in zip(given.to_arrays(), given.to_cif(), strict=True):
        block = gemmi.cif.read_string(text).sole_block()
        group = gemmi.make_small_structure_from_block(block).spacegroup
        assert group is not None
        counts = [int(value) for value in block.find_loop("_atom_site_symmetry_multiplicity")]
        assert sum(counts) == len(crystal_[0]) * {"P": 1, "F": 4, "R": 3}.get(group.centring_type(), 2)
        assert len(block.find_loop("_symmetry_equiv_pos_as_xyz")) == len(list(group.operations()))
    orbits = (given.properties[ORBIT_SITES] >= 0).sum(dim=1).tolist()
    listed = [
        gemmi.make_small_structure_from_block(gemmi.cif.read_string(text).sole_block()).sites for text in given.to_cif()
    ]
    assert [len(sites) for sites in listed] == orbits


def test_the_whole_cell_in_p1_by_choice(tmp_path: Path):
    given = crystal(225)
    bare = CrystalBatch(given.atom_types, given.frac_coords, given.lattices, given.num_atoms)
    assert given.to_cif(symmetry=False) == bare.to_cif()
    write_crystals(given, tmp_path / "p1", cif_symmetry=False)
    write_crystals(given, tmp_path / "full", formats=["cif", "poscar"])
    assert "'P 1'" in (tmp_path / "p1" / "0000.cif").read_text()
    assert "'F m -3 m'" in (tmp_path / "full" / "0000.cif").read_text()
    assert read_crystals(tmp_path / "full").crystals.num_atoms.tolist() == [4 * given.num_nodes]


@pytest.mark.parametrize("moved", ["atom", "cell", "element"])
def test_what_has_lost_its_symmetry_is_written_as_it_is(moved: str):
    given = crystal(62)
    changed = {
        "atom": {"frac_coords": given.frac_coords + torch.eye(given.num_nodes, 3) * 0.01},
        "cell": {"lattices": given.lattices @ torch.tensor([[1.0, 0, 0], [0.01, 1, 0], [0, 0, 1]])},
        "element": {"atom_types": given.atom_types + (torch.arange(given.num_nodes) == 0)},
    }[moved]
    broken = given.replace(**changed)
    assert broken.to_cif() == broken.to_cif(symmetry=False) != given.to_cif()


def test_coordinates_are_exactly_on_their_sites():
    given = crystal(225)
    noise = 3e-4 * torch.rand(given.frac_coords.shape, generator=torch.Generator().manual_seed(0)) / 10
    (text,) = given.replace(frac_coords=given.frac_coords + noise).to_cif()
    assert moyo_dataset(*readers(text)["this package"], 1e-5).number == 225
    assert len(readers(text)["this package"][0]) == 4 * given.num_nodes
