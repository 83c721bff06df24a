"""The batch type: crystals survive the way in, the way out, and being cut and joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from crystalvae.data.batch import CrystalBatch
from tests.samples import SIZES, assert_same_crystals, random_crystals, rock_salt_and_friends


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    return rock_salt_and_friends()


@pytest.fixture
def crystals() -> CrystalBatch:
    return random_crystals()


# ---- to and from other libraries -------------------------------------------------------------------------------------


def test_structures_come_back_as_they_were(structures: list[Structure]) -> None:
    batch = CrystalBatch.from_structures(structures)
    assert batch.num_atoms.tolist() == [8, 8, 4, 3]
    for structure, back in zip(structures, batch.to_structure(), strict=True):
        assert [site.specie for site in back] == [site.specie for site in structure]
        np.testing.assert_allclose(back.lattice.matrix, structure.lattice.matrix, atol=1e-5)
        difference = back.frac_coords - structure.frac_coords
        np.testing.assert_allclose(difference, np.round(difference), atol=1e-6)
    assert_same_crystals(CrystalBatch.from_structures(batch.to_structure()), batch)


def test_atoms_come_back_as_they_were(structures: list[Structure]) -> None:
    originals = [structure.to_ase_atoms() for structure in structures]
    batch = CrystalBatch.from_atoms(originals)
    assert_same_crystals(batch, CrystalBatch.from_structures(structures))
    for atoms, back in zip(originals, batch.to_atoms(), strict=True):
        assert back.numbers.tolist() == atoms.numbers.tolist()
        assert back.pbc.all()
        np.testing.assert_allclose(back.cell, atoms.cell, atol=1e-5)
        distances = atoms.get_all_distances(mic=True)
        np.testing.assert_allclose(back.get_all_distances(mic=True), distances, atol=1e-4)


def test_pyg_batches_come_back_as_they_were(crystals: CrystalBatch) -> None:
    data = crystals.to_pyg()
    assert data.num_graphs == crystals.num_graphs
    assert data.num_nodes == crystals.num_nodes
    assert torch.equal(data.batch, crystals.batch)
    assert torch.equal(data.ptr, crystals.ptr)
    torch.testing.assert_close(data.pos, crystals.cart_coords)
    torch.testing.assert_close(data.lengths, crystals.lengths)
    torch.testing.assert_close(data.angles, crystals.angles)
    assert data[2].num_nodes == SIZES[2]
    assert torch.equal(data[2].lattices[0], crystals.lattices[2])
    assert_same_crystals(CrystalBatch.from_pyg(data), crystals, atol=0.0)


def test_coordinates_from_outside_the_cell_are_wrapped(structures: list[Structure]) -> None:
    shifted = [structure.copy() for structure in structures]
    for structure in shifted:
        structure.translate_sites(list(range(len(structure))), [3.0, -2.0, 1.0], to_unit_cell=False)
    for batch in (
        CrystalBatch.from_structures(shifted),
        CrystalBatch.from_atoms([structure.to_ase_atoms() for structure in shifted]),
    ):
        assert float(batch.frac_coords.min()) >= 0.0
        assert float(batch.frac_coords.max()) < 1.0
        assert_same_crystals(batch, CrystalBatch.from_structures(structures))


def test_a_coordinate_just_below_zero_does_not_become_one() -> None:
    """In float64 it wraps to 0.999…, which float32 rounds to 1.0."""
    structure = Structure(Lattice.cubic(3.0), ["Po"], [[-1e-12, -1e-9, 1 - 1e-12]])
    batch = CrystalBatch.from_structures([structure])
    assert float(batch.frac_coords.max()) < 1.0


def test_partial_occupancies_and_missing_cells_are_refused_by_name() -> None:
    alloy = Structure(Lattice.cubic(3.0), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match=r"structure 1 .*partial occupancies"):
        CrystalBatch.from_structures([rock_salt_and_friends()[0], alloy])
    with pytest.raises(ValueError, match=r"atoms 0 \(H2O\).*cell"):
        CrystalBatch.from_atoms([Atoms("H2O", positions=np.eye(3))])


def test_a_pyg_batch_without_lattices_is_refused_by_name(crystals: CrystalBatch) -> None:
    data = crystals.to_pyg()
    del data["lattices"]
    with pytest.raises(ValueError, match="lattices"):
        CrystalBatch.from_pyg(data)


def test_masked_atoms_become_dummies(crystals: CrystalBatch) -> None:
    masked = crystals.replace(atom_types=torch.zeros_like(crystals.atom_types))
    assert {site.specie.symbol for site in masked.to_structure()[0]} == {"X"}
    assert masked.to_atoms()[0].get_chemical_symbols() == ["X"] * SIZES[0]


def test_an_empty_list_of_structures_is_an_empty_batch() -> None:
    batch = CrystalBatch.from_structures([])
    assert (batch.num_graphs, batch.num_nodes) == (0, 0)
    assert batch.to_structure() == []
    assert batch.cart_coords.shape == (0, 3)


# ---- derived quantities ----------------------------------------------------------------------------------------------


def test_derived_quantities_equal_pymatgens(structures: list[Structure]) -> None:
    batch = CrystalBatch.from_structures(structures)
    np.testing.assert_allclose(batch.lengths, [s.lattice.abc for s in structures], rtol=1e-5)
    np.testing.assert_allclose(batch.angles, [s.lattice.angles for s in structures], atol=1e-3)
    np.testing.assert_allclose(batch.angles_radians, np.radians([s.lattice.angles for s in structures]), atol=1e-5)
    np.testing.assert_allclose(batch.volumes, [s.volume for s in structures], rtol=1e-5)
    scaled = [np.array(s.lattice.abc) / len(s) ** (1 / 3) for s in structures]
    np.testing.assert_allclose(batch.lengths_scaled, scaled, rtol=1e-5)
    wrapped = [s.lattice.get_cartesian_coords(s.frac_coords % 1.0) for s in structures]
    np.testing.assert_allclose(batch.cart_coords, np.concatenate(wrapped), atol=1e-5)


def test_indices_of_atoms(crystals: CrystalBatch) -> None:
    assert len(crystals) == crystals.num_graphs == len(SIZES)
    assert crystals.num_nodes == sum(SIZES)
    assert crystals.batch.tolist() == [i for i, size in enumerate(SIZES) for _ in range(size)]
    assert crystals.token_idx.tolist() == [k for size in SIZES for k in range(size)]
    assert crystals.ptr.tolist() == [0, *np.cumsum(SIZES).tolist()]


# ---- selection and combination ---------------------------------------------------------------------------------------


def naive(batch: CrystalBatch, numbers: list[int]) -> CrystalBatch:
    """Select crystals one at a time, the slow way."""
    atoms = [slice(int(batch.ptr[i]), int(batch.ptr[i + 1])) for i in numbers]
    return CrystalBatch(
        atom_types=torch.cat([batch.atom_types[part] for part in atoms]),
        frac_coords=torch.cat([batch.frac_coords[part] for part in atoms]),
        lattices=torch.stack([batch.lattices[i] for i in numbers]),
        num_atoms=torch.tensor([SIZES[i] for i in numbers]),
        properties={name: torch.stack([values[i] for i in numbers]) for name, values in batch.properties.items()},
    )


@pytest.mark.parametrize(
    ("index", "numbers"),
    [
        (0, [0]),
        (-1, [3]),
        (np.int64(2), [2]),
        (torch.tensor(1), [1]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        ([2, 0], [2, 0]),
        ([1, 1, 3], [1, 1, 3]),
        ([-1, 0], [3, 0]),
        ([True, False, True, False], [0, 2]),
        (torch.tensor([False, True, False, True]), [1, 3]),
        (torch.tensor([3, 1, 0, 2]), [3, 1, 0, 2]),
        (np.array([2, 3]), [2, 3]),
        (range(3), [0, 1, 2]),
    ],
    ids=str,
)
def test_crystals_are_selected_as_from_a_list(crystals: CrystalBatch, index: Any, numbers: list[int]) -> None:
    selected = crystals[index]
    assert_same_crystals(selected, naive(crystals, numbers), atol=0.0)
    assert torch.equal(selected.properties["energy"], crystals.properties["energy"][numbers])


@pytest.mark.parametrize("index", [[], slice(2, 2), torch.zeros(4, dtype=torch.bool)], ids=str)
def test_selecting_nothing_gives_an_empty_batch(crystals: CrystalBatch, index: Any) -> None:
    assert crystals[index].num_nodes == 0
    assert crystals[index].num_graphs == 0


@pytest.mark.parametrize("index", [4, -5, [0, 9]], ids=str)
def test_crystals_that_are_not_there_are_an_error(crystals: CrystalBatch, index: Any) -> None:
    with pytest.raises(IndexError):
        crystals[index]


@given(st.permutations(range(len(SIZES))))
def test_permuting_back_restores_the_batch(order: list[int]) -> None:
    crystals = random_crystals()
    assert_same_crystals(crystals[order][np.argsort(order)], crystals, atol=0.0)


def test_iterating_and_joining_restores_the_batch(crystals: CrystalBatch) -> None:
    joined = CrystalBatch.cat(crystals[i] for i in range(len(crystals)))
    assert_same_crystals(joined, crystals, atol=0.0)
    assert torch.equal(joined.properties["energy"], crystals.properties["energy"])
    assert_same_crystals(CrystalBatch.cat([crystals, crystals])[4:], crystals, atol=0.0)


def test_joining_keeps_properties_that_all_have(crystals: CrystalBatch) -> None:
    both = crystals.replace(properties={"band_gap": torch.ones(4), **crystals.properties})
    assert set(CrystalBatch.cat([crystals, both]).properties) == {"energy"}
    with pytest.raises(ValueError, match="at least one"):
        CrystalBatch.cat([])


def test_moving_keeps_everything(crystals: CrystalBatch) -> None:
    moved = crystals.to("meta")
    assert {moved.device.type, moved.lattices.device.type, moved.properties["energy"].device.type} == {"meta"}
    assert_same_crystals(crystals.to("cpu"), crystals, atol=0.0)


def test_replace_exchanges_fields_and_what_depends_on_them(crystals: CrystalBatch) -> None:
    before = crystals.lengths.clone(), crystals.cart_coords.clone()
    doubled = crystals.replace(lattices=2 * crystals.lattices)
    torch.testing.assert_close(doubled.lengths, 2 * before[0])
    torch.testing.assert_close(doubled.cart_coords, 2 * before[1])
    torch.testing.assert_close(crystals.lengths, before[0])
    assert torch.equal(doubled.properties["energy"], crystals.properties["energy"])
    with pytest.raises(ValueError, match="'cell'"):
        crystals.replace(cell=crystals.lattices)


def test_empty_batches_know_their_atom_counts_alone(without_type_checks: None) -> None:
    for counts in ([2, 5], torch.tensor([2, 5])):
        batch = CrystalBatch.empty(counts)
        assert batch.num_atoms.tolist() == [2, 5]
        assert batch.atom_types.tolist() == [0] * 7
        assert torch.equal(batch.lattices, torch.eye(3).expand(2, 3, 3))
    for wrong in ([3, 0], [-1], [[1, 2]]):
        with pytest.raises(ValueError, match=r"num_atoms"):
            CrystalBatch.empty(wrong)


# ---- errors and immutability -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "shape"),
    [
        ("frac_coords", lambda b: {"frac_coords": b.frac_coords[1:]}, r"\(14, 3\).*\(13, 3\)"),
        ("frac_coords", lambda b: {"frac_coords": b.frac_coords[:, :2]}, r"\(14, 3\).*\(14, 2\)"),
        ("lattices", lambda b: {"lattices": b.lattices[:3]}, r"\(4, 3, 3\).*\(3, 3, 3\)"),
        ("lattices", lambda b: {"lattices": b.lattices.flatten(1)}, r"\(4, 3, 3\).*\(4, 9\)"),
        ("num_atoms", lambda b: {"num_atoms": b.num_atoms + 1}, r"14 atoms.*5"),
        ("properties", lambda b: {"properties": {"energy": torch.zeros(3)}}, r"'energy'.*4 rows.*\(3,\)"),
    ],
)
def test_wrong_shapes_are_refused_by_field(
    crystals: CrystalBatch,
    name: str,
    change: Callable[[CrystalBatch], dict[str, Any]],
    shape: str,
    without_type_checks: None,
) -> None:
    with pytest.raises(ValueError, match=rf"CrystalBatch\.{name}.*{shape}"):
        crystals.replace(**change(crystals))


def test_batches_are_immutable(crystals: CrystalBatch) -> None:
    for field in dataclasses.fields(crystals):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(crystals, field.name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        del crystals.lattices


def test_what_follows_from_atom_counts_alone_is_kept_with_them() -> None:
    crystals = random_crystals((4, 1, 7))
    derived = crystals.batch, crystals.ptr, crystals.token_idx
    moved = crystals.replace(frac_coords=crystals.frac_coords / 2)
    assert (moved.batch, moved.ptr, moved.token_idx) == derived
    other = crystals.replace(num_atoms=torch.tensor([1, 7, 4]))
    assert other.ptr.tolist() == [0, 1, 8, 12]
    assert other.batch.tolist() == [0] + 7 * [1] + 4 * [2]
