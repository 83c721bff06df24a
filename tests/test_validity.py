"""Facts and validity of crystals: against pymatgen, the per-crystal distance, and brute force."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.cif import parse_cif
from crystalvae.evaluation.validity.structure import describe, shortest_distances
from tests.samples import shortest_distance


def real_crystals(mp20_dir: Path, count: int) -> CrystalBatch:
    """Crystals from the head of MP-20's validation split, in the cells of the file."""
    cifs = pd.read_csv(mp20_dir / "val.csv", nrows=count).cif
    return CrystalBatch.from_arrays((c.numbers, c.frac_coords, c.lattice) for c in map(parse_cif, cifs))


def cubic(side: float, numbers: list[int], coords: list[list[float]]) -> CrystalBatch:
    return CrystalBatch.from_arrays([(np.array(numbers), np.array(coords), side * np.eye(3))])


def brute_force(lattice: np.ndarray, coords: np.ndarray, reach: int) -> float:
    images = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3), axis=-1).reshape(-1, 3)
    vectors = (coords[:, None, None] - coords[None, :, None] + images) @ lattice
    lengths = np.linalg.norm(vectors, axis=-1)
    own = np.eye(len(coords), dtype=bool)[:, :, None] & (images == 0).all(axis=-1)
    return float(lengths[~own].min())


def test_rock_salt_has_the_textbook_facts():
    crystal = cubic(
        5.64,
        [11] * 4 + [17] * 4,
        [
            [0, 0, 0],
            [0, 0.5, 0.5],
            [0.5, 0, 0.5],
            [0.5, 0.5, 0],
            [0.5, 0, 0],
            [0, 0.5, 0],
            [0, 0, 0.5],
            [0.5, 0.5, 0.5],
        ],
    )
    row = describe(crystal).iloc[0]
    assert (row.formula, row.atoms, row.valid, row.reason) == ("NaCl", 8, True, "")
    assert row.volume == pytest.approx(5.64**3, rel=1e-6)
    assert row.density == pytest.approx(2.164, abs=1e-3)
    assert row.shortest_distance == pytest.approx(2.82, rel=1e-6)


def test_an_atom_sees_its_own_images():
    assert describe(cubic(2.5, [29], [[0.2, 0.3, 0.4]])).shortest_distance[0] == pytest.approx(2.5)


def test_neighbours_across_the_cell_face_are_neighbours():
    row = describe(cubic(10.0, [6, 6], [[0.99, 0.5, 0.5], [0.01, 0.5, 0.5]])).iloc[0]
    assert row.shortest_distance == pytest.approx(0.2, abs=1e-5)
    assert not row.valid
    assert row.reason == "shortest distance 0.200 Å is below 0.5 Å"


@pytest.mark.parametrize(("gap", "valid"), [(0.49, False), (0.51, True)])
def test_the_published_distance_limit_decides(gap: float, valid: bool):
    assert describe(cubic(10.0, [6, 6], [[0.1, 0, 0], [0.1 + gap / 10, 0, 0]])).valid[0] == valid


def test_a_cell_below_the_published_volume_is_invalid():
    row = describe(cubic(0.4, [1], [[0, 0, 0]])).iloc[0]
    assert not row.valid
    assert "volume" in row.reason


def test_facts_equal_pymatgen_on_real_crystals(mp20_dir: Path):
    crystals = real_crystals(mp20_dir, 60)
    facts = describe(crystals)
    assert facts.valid.all()
    for row, structure in zip(facts.itertuples(), crystals.to_structure(), strict=True):
        assert row.formula == structure.composition.reduced_formula
        assert row.atoms == len(structure)
        assert row.volume == pytest.approx(structure.volume, rel=1e-9)
        assert row.density == pytest.approx(structure.density, rel=1e-6)
        assert row.shortest_distance == pytest.approx(
            shortest_distance(torch.tensor(structure.lattice.matrix), torch.tensor(structure.frac_coords)), abs=1e-9
        )


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_shortest_distance_is_right_for_cells_of_any_shape(seed: int):
    rng = np.random.default_rng(seed)
    cells, coords, expected = [], [], []
    for _ in range(4):
        # A compact cell, whose shortest distance brute force finds, written with other, very skewed vectors.
        compact = 4.0 * np.eye(3) + rng.uniform(-1, 1, (3, 3))
        inside = rng.random((rng.integers(1, 5), 3))
        skew = np.array([[1, *rng.integers(-9, 10, 2)], [0, 1, rng.integers(-9, 10)], [0, 0, 1]])
        skew = skew[rng.permutation(3)]
        cells.append(skew @ compact)
        coords.append(inside @ np.linalg.inv(skew))
        expected.append(brute_force(compact, inside, reach=3))
    counts = np.array([len(entry) for entry in coords])
    np.testing.assert_allclose(shortest_distances(np.array(cells), np.concatenate(coords), counts), expected, atol=1e-9)


def test_extremely_flat_and_long_cells_are_measured():
    rng = np.random.default_rng(0)
    cells = rng.standard_normal((200, 3, 3)) * 10.0 ** rng.uniform(-2, 4, (200, 3, 1))
    distances = shortest_distances(cells, rng.random((400, 3)), np.full(200, 2))
    assert np.isfinite(distances).all()
    # Minkowski: no lattice has a shortest vector longer than (√2 V)^(1/3).
    assert (distances <= (math.sqrt(2) * np.abs(np.linalg.det(cells))) ** (1 / 3) * (1 + 1e-9)).all()


def test_batched_equals_single_and_order_does_not_matter(mp20_dir: Path):
    crystals = real_crystals(mp20_dir, 40)
    together = describe(crystals)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert describe(crystals[order]).equals(together.iloc[order.numpy()].reset_index(drop=True))
    for index in (0, 7, 39):
        assert describe(crystals[index]).iloc[0].to_dict() == together.iloc[index].to_dict()


def test_translating_a_crystal_changes_no_fact():
    rng = np.random.default_rng(1)
    arrays = (np.array([22, 8, 8]), rng.random((3, 3)), 4 * np.eye(3) + rng.random((3, 3)))
    moved = (arrays[0], arrays[1] + rng.random(3), arrays[2])
    facts = describe(CrystalBatch.from_arrays([arrays, moved]))
    assert facts.shortest_distance[0] == pytest.approx(facts.shortest_distance[1], abs=1e-5)
    assert facts.formula[0] == facts.formula[1] == "TiO2"


def test_what_is_not_finite_or_unknown_is_invalid_with_a_reason():
    crystals = CrystalBatch.cat([cubic(4.0, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]]) for _ in range(6)])
    coords, lattices, numbers = crystals.frac_coords.clone(), crystals.lattices.clone(), crystals.atom_types.clone()
    coords[2, 1] = math.nan
    lattices[2, 0, 0] = math.inf
    lattices[3] = 0.0
    lattices[4, 0] = lattices[4, 1]
    numbers[11] = 0
    facts = describe(crystals.replace(frac_coords=coords, lattices=lattices, atom_types=numbers))
    assert facts.valid.tolist() == [True, False, False, False, False, False]
    reasons = facts.reason.tolist()
    assert reasons[1:3] == ["coordinates are not finite", "lattice is not finite"]
    assert all("volume" in reason for reason in reasons[3:5])
    assert reasons[5] == "unknown element"
    assert facts.formula[5] == "Na1X1"
    assert math.isnan(facts.density[5])
    assert facts.shortest_distance[5] == pytest.approx(4 * math.sqrt(0.75), abs=1e-5)


def test_noble_gases_raise_no_warning():
    assert describe(cubic(5.0, [2, 18], [[0, 0, 0], [0.5, 0.5, 0.5]])).valid[0]


def test_no_crystals_give_an_empty_table():
    facts = describe(CrystalBatch.from_arrays([]))
    assert len(facts) == 0
    assert list(facts.columns)[:2] == ["formula", "atoms"]
