"""The canonical description: one for each crystal, whatever way it was written down, and still that crystal."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Element, Lattice, Structure

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.canonical import CanonicalSource, canonical, element_order
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.symmetry import CRYSTAL_SYSTEMS, crystal_system_indices
from crystalvae.errors import ConfigError
from tests.samples import assert_same_crystals, random_crystals, rock_salt_and_friends


def textbook() -> dict[str, tuple[Structure, int]]:
    """Crystals with their space groups."""
    salt, diamond, wurtzite, triclinic = rock_salt_and_friends()

    def built(group: str, lattice: Lattice, species: list[str], coords: list[list[float]]) -> Structure:
        return Structure.from_spacegroup(group, lattice, species, coords)

    return {
        "NaCl": (salt, 225),
        "diamond": (diamond, 227),
        "wurtzite": (wurtzite, 186),
        "Li O2, triclinic": (triclinic, 1),
        "CsCl": (built("Pm-3m", Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]), 221),
        "perovskite": (
            built("Pm-3m", Lattice.cubic(3.9), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]),
            221,
        ),
        "rutile": (built("P4_2/mnm", Lattice.tetragonal(4.59, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]), 136),
        "zinc blende": (built("F-43m", Lattice.cubic(5.41), ["Zn", "S"], [[0, 0, 0], [0.25, 0.25, 0.25]]), 216),
        "spinel": (
            built(
                "Fd-3m:2",
                Lattice.cubic(8.08),
                ["Mg", "Al", "O"],
                [[0.125, 0.125, 0.125], [0.5, 0.5, 0.5], [0.2624, 0.2624, 0.2624]],
            ),
            227,
        ),
        "quartz": (
            built(
                "P3_221",
                Lattice.hexagonal(4.914, 5.405),
                ["Si", "O"],
                [[0.4697, 0, 2 / 3], [0.4133, 0.2672, 0.7855]],
            ),
            154,
        ),
        "CrB": (
            built("Cmcm", Lattice.orthorhombic(2.97, 7.86, 2.93), ["Cr", "B"], [[0, 0.146, 0.25], [0, 0.44, 0.25]]),
            63,
        ),
    }


TEXTBOOK = textbook()
CRYSTALS = CrystalBatch.from_structures([structure for structure, _ in TEXTBOOK.values()])
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def changed(crystals: CrystalBatch, change: Callable[..., Arrays], seed: int) -> CrystalBatch:
    rng = np.random.default_rng(seed)
    return CrystalBatch.from_arrays([change(*entry, rng) for entry in crystals.to_arrays()])


def other_origin(numbers: np.ndarray, coords: np.ndarray, lattice: np.ndarray, rng: np.random.Generator) -> Arrays:
    return numbers, coords + rng.random(3), lattice


def other_order(numbers: np.ndarray, coords: np.ndarray, lattice: np.ndarray, rng: np.random.Generator) -> Arrays:
    order = rng.permutation(len(numbers))
    return numbers[order], coords[order], lattice


def other_axes(numbers: np.ndarray, coords: np.ndarray, lattice: np.ndarray, rng: np.random.Generator) -> Arrays:
    while True:
        basis = rng.integers(-1, 2, (3, 3))
        if round(np.linalg.det(basis)) == 1:
            return numbers, coords @ np.linalg.inv(basis), basis @ lattice


def other_orientation(numbers: np.ndarray, coords: np.ndarray, lattice: np.ndarray, rng: np.random.Generator) -> Arrays:
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return numbers, coords, lattice @ (rotation * np.sign(np.linalg.det(rotation)))


def supercell(numbers: np.ndarray, coords: np.ndarray, lattice: np.ndarray, rng: np.random.Generator) -> Arrays:
    axis = int(rng.integers(3))
    scale, step = np.ones(3), np.zeros(3)
    scale[axis], step[axis] = 0.5, 1.0
    return np.tile(numbers, 2), np.concatenate([coords, coords + step]) * scale, lattice / scale[:, None]


CHANGES = [other_origin, other_order, other_axes, other_orientation, supercell]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_description_does_not_depend_on_how_the_crystal_was_given(change: Callable[..., Arrays], seed: int):
    expected = canonical(CRYSTALS)
    got = canonical(changed(CRYSTALS, change, seed))
    assert_same_crystals(got, expected, atol=1e-4)
    assert torch.equal(got.properties["space_group"], expected.properties["space_group"])


def test_all_changes_at_once_and_again():
    given = CRYSTALS
    for number, change in enumerate(CHANGES):
        given = changed(given, change, 10 + number)
    expected = canonical(CRYSTALS)
    assert_same_crystals(canonical(given), expected, atol=1e-4)
    assert_same_crystals(canonical(expected), expected, atol=1e-5)  # and it is its own description


def test_it_is_the_same_crystal_with_the_right_space_group():
    found = canonical(CRYSTALS)
    assert found.properties["space_group"].tolist() == [float(number) for _, number in TEXTBOOK.values()]
    matcher = StructureMatcher()
    for (name, (structure, _)), got in zip(TEXTBOOK.items(), found.to_structure(), strict=True):
        assert matcher.fit(structure, got), name
        assert len(got) == len(structure.get_primitive_structure()), name
        assert got.lattice.volume / len(got) == pytest.approx(structure.volume / len(structure), rel=1e-4)


def test_the_cell_is_a_niggli_cell_with_the_rarest_element_at_the_origin():
    found = canonical(CRYSTALS)
    for structure, (numbers, coords, _) in zip(found.to_structure(), found.to_arrays(), strict=True):
        reduced = structure.get_reduced_structure("niggli").lattice
        np.testing.assert_allclose(sorted(structure.lattice.abc), sorted(reduced.abc), atol=1e-3)
        rarest = min(Composition(structure.composition).items(), key=lambda item: (item[1], item[0].X))[0]
        own = coords[numbers == rarest.Z]
        assert np.abs(own - np.round(own)).sum(axis=1).min() < 1e-5
    salt = found[0]
    assert salt.atom_types.tolist() == [11, 17]
    np.testing.assert_allclose(salt.frac_coords[1], [0.5, 0.5, 0.5], atol=1e-5)


def test_chirality_is_kept():
    """Left and right quartz are different crystals, also where the cell is left-handed."""
    right, _ = TEXTBOOK["quartz"]
    mirrored = Structure(right.lattice, right.species, -right.frac_coords)
    left_handed = Structure(Lattice(-right.lattice.matrix), right.species, -right.frac_coords)  # right's own atoms
    found = canonical(CrystalBatch.from_structures([right, mirrored, left_handed]))
    assert found.properties["space_group"].tolist() == [154.0, 152.0, 154.0]
    assert_same_crystals(found[2], found[0], atol=1e-4)
    difference = found[1].frac_coords - found[0].frac_coords
    assert float((difference - difference.round()).abs().max()) > 0.01


def test_small_noise_gives_the_idealised_crystal():
    rng = np.random.default_rng(0)
    noisy = [
        (numbers, coords + 0.005 * rng.normal(size=coords.shape) @ np.linalg.inv(lattice), lattice)
        for numbers, coords, lattice in CRYSTALS.to_arrays()
    ]
    found = canonical(CrystalBatch.from_arrays(noisy))
    names = [name for name, (_, group) in TEXTBOOK.items() if group > 194]
    rows = [list(TEXTBOOK).index(name) for name in names if name != "spinel"]  # the others have free parameters
    assert_same_crystals(found[rows], canonical(CRYSTALS)[rows], atol=1e-5)
    assert canonical(CrystalBatch.from_arrays(noisy), symprec=1e-4).properties["space_group"].tolist() != [
        group for _, group in TEXTBOOK.values()
    ]


def test_atoms_are_in_the_order_of_elements_then_coordinates():
    found = canonical(CRYSTALS)
    for numbers, coords, _ in found.to_arrays():
        ranks = element_order().numpy()[numbers]
        assert (np.diff(ranks) >= 0).all()
        places = np.round(np.where(coords > 0.994, coords - 1.0, coords), 4)
        for rank in set(ranks.tolist()):
            own = [tuple(row) for row in places[ranks == rank].tolist()]
            assert all(a < b for a, b in itertools.pairwise(own))


def test_elements_are_ordered_as_in_formulas():
    order = element_order()
    assert sorted(order.tolist()) == list(range(100))
    assert int(order[0]) == 99
    for formula in ("LiFePO4", "Mg3Al2(SiO4)3", "CaTiO3", "YBa2Cu3O7", "CF4", "XeF2"):
        elements = sorted(Composition(formula), key=lambda element: element.X)
        assert sorted(elements, key=lambda element: int(order[element.Z])) == elements
    assert [int(order[Element(symbol).Z]) for symbol in ("He", "Ne", "Ar")] == [96, 97, 98]


# ---- what cannot be described ----------------------------------------------------------------------------------------


def test_a_crystal_whose_symmetry_is_not_found_stays_what_it_is():
    salt = TEXTBOOK["NaCl"][0]
    overlapping = Structure(Lattice.cubic(3.0), ["O", "Li"], [[0.3, 0, 0], [0.3, 0, 0]])
    given = CrystalBatch.from_structures([overlapping, salt])
    found = canonical(given)
    assert found.properties["space_group"].isnan().tolist() == [True, False]
    assert found.num_atoms.tolist() == [2, 2]
    assert found[0].atom_types.tolist() == [3, 8]
    torch.testing.assert_close(found[0].volumes, given[0].volumes)
    torch.testing.assert_close(found[0].frac_coords[0], found[0].frac_coords[1])


def test_atoms_in_one_place_are_not_merged():
    doubled = Structure(Lattice.cubic(3.0), ["O", "O", "Li"], [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5]])
    found = canonical(CrystalBatch.from_structures([doubled]))
    assert found.atom_types.tolist() == [3, 8, 8]
    assert found.properties["space_group"].isnan().all()


def test_handedness_is_kept_where_no_symmetry_is_found():
    cell = Lattice.from_parameters(4.0, 5.0, 6.5, 75, 95, 105)
    species = ["O", "O", "Li", "Na", "K"]
    coords = [[0.1, 0, 0], [0.1, 0, 0], [0.4, 0.5, 0.6], [0.7, 0.2, 0.8], [0.3, 0.8, 0.1]]
    right = Structure(cell, species, coords)
    left_handed = Structure(Lattice(-cell.matrix), species, -np.array(coords))
    found = canonical(CrystalBatch.from_structures([right, left_handed]))
    assert found.properties["space_group"].isnan().all()
    assert_same_crystals(found[1], found[0], atol=1e-4)


def test_the_two_ends_of_the_cell_are_one_place():
    def crystal(x: float) -> Structure:
        cell = Lattice.from_parameters(4.0, 5.0, 6.5, 75, 95, 105)
        coords = [[0, 0, 0], [x, 0.5, 0.2], [0.3, 0.1, 0.7], [0.6, 0.8, 0.4], [0.6, 0.8, 0.4]]
        return Structure(cell, ["Li", "O", "O", "Na", "Na"], coords)

    found = canonical(CrystalBatch.from_structures([crystal(1e-4), crystal(-1e-4)]))
    assert found.properties["space_group"].isnan().all()  # otherwise the coordinates are made exact
    assert_same_crystals(found[1], found[0], atol=1e-3)


def test_cells_that_are_none_are_left_alone():
    good = CrystalBatch.from_structures([TEXTBOOK["NaCl"][0]])
    flat = CrystalBatch.from_arrays([(np.array([3, 8]), np.zeros((2, 3)), np.diag([4.0, 4.0, 0.0]))])
    nowhere = good.replace(frac_coords=torch.full_like(good.frac_coords, torch.nan))
    found = canonical(CrystalBatch.cat([good, flat, nowhere]))
    assert found.num_atoms.tolist() == [2, 2, 8]
    assert found.properties["space_group"].isnan().tolist() == [False, True, True]
    assert found[1].atom_types.tolist() == [3, 8]
    assert_same_crystals(found[0], canonical(good))


def test_properties_and_the_input_are_kept():
    crystals = random_crystals((3, 5), seed=1)
    before = crystals.frac_coords.clone()
    found = canonical(crystals)
    torch.testing.assert_close(found.properties["energy"], crystals.properties["energy"])
    assert torch.equal(crystals.frac_coords, before)
    assert "space_group" not in crystals.properties


@pytest.mark.parametrize("symprec", [0.0, -1.0, float("nan")])
def test_symprec_is_a_tolerance(symprec: float):
    with pytest.raises(ConfigError, match="symprec: got"):
        canonical(CRYSTALS, symprec=symprec)


# ---- crystal systems -------------------------------------------------------------------------------------------------


def test_crystal_systems_are_those_of_pymatgen():
    from pymatgen.symmetry.groups import SpaceGroup

    # The property reads the number alone; building 230 groups with their operations takes long.
    named = SpaceGroup.crystal_system.fget
    expected = [named(SimpleNamespace(int_number=number)) for number in range(1, 231)]
    assert SpaceGroup.from_int_number(148).crystal_system == expected[147] == "trigonal"
    found = crystal_system_indices(torch.arange(1, 231))
    assert [CRYSTAL_SYSTEMS[index] for index in found.tolist()] == expected
    assert torch.equal(crystal_system_indices(torch.arange(1, 231).float()), found)


def test_what_is_no_space_group_has_no_crystal_system():
    assert crystal_system_indices(torch.tensor([torch.nan, 0.0, 231.0, -5.0, torch.inf, 225.0])).tolist() == [
        -1
    ] * 5 + [6]


# ---- the source ------------------------------------------------------------------------------------------------------


class OneSplit:
    """A source of the textbook crystals that counts how often it was asked."""

    name = "textbook"

    def load(self, split: str) -> CrystalDataset:
        crystals = CRYSTALS.replace(properties={"energy": torch.arange(float(len(CRYSTALS)))})
        return CrystalDataset(crystals, list(TEXTBOOK), [])


def test_the_source_gives_canonical_crystals_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import crystalvae.data.canonical as module

    made: list[Any] = []
    original = module.canonical
    monkeypatch.setattr(module, "canonical", lambda *a, **k: made.append(k) or original(*a, **k))
    first = CanonicalSource(source=OneSplit(), cache_dir=str(tmp_path)).load("train")
    again = CanonicalSource(source=OneSplit(), cache_dir=str(tmp_path)).load("train")
    assert len(made) == 1
    assert first.ids == again.ids == list(TEXTBOOK)
    assert_same_crystals(first.crystals, original(CRYSTALS))
    assert_same_crystals(again.crystals, first.crystals)
    assert again.crystals.properties["energy"].tolist() == list(range(len(CRYSTALS)))
    CanonicalSource(source=OneSplit(), cache_dir=str(tmp_path), symprec=0.01).load("train")
    assert [entry["symprec"] for entry in made] == [0.1, 0.01]
