"""The neighbour graph against ASE's neighbour list, and what must be true of neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalvae.data import neighbour_graph as neighbours
from crystalvae.data.augmentation import rotate, translate
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import lattice_from_parameters, random_rotations
from crystalvae.data.neighbour_graph import NeighbourGraph, neighbour_graph
from crystalvae.errors import DataError
from tests.samples import SIZES, random_crystals, rock_salt_and_friends

Edge = tuple[int, int, tuple[int, ...]]


def edges_of(graph: NeighbourGraph, crystals: CrystalBatch, index: int) -> dict[Edge, float]:
    """Atom, neighbour and shift of one crystal's edges, with their distance; each must be there once."""
    chosen = crystals.batch[graph.edge_index[1]] == index
    neighbour, atom = (graph.edge_index[:, chosen] - crystals.ptr[index]).tolist()
    keys = list(zip(atom, neighbour, map(tuple, graph.shifts[chosen].tolist()), strict=True))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, graph.distances[chosen].tolist(), strict=True))


def assert_equals_ase(crystals: CrystalBatch, cutoff: float, *, atol: float = 1e-3) -> None:
    graph = neighbour_graph(crystals, cutoff=cutoff)
    for index, atoms in enumerate(crystals.to_atoms()):
        first, second, shift, distance = neighbor_list("ijSd", atoms, cutoff)
        keys = zip(first.tolist(), second.tolist(), map(tuple, shift.tolist()), strict=True)
        expected = dict(zip(keys, distance.tolist(), strict=True))
        # An atom with nothing within the cutoff has its nearest shell beyond it, which ASE does not look for.
        got = {key: value for key, value in edges_of(graph, crystals, index).items() if value < cutoff + atol}
        # Rounding may decide otherwise about what stands at the cutoff itself.
        for key in got.keys() ^ expected.keys():
            assert {**got, **expected}[key] == pytest.approx(cutoff, abs=atol)
        for key in got.keys() & expected.keys():
            assert got[key] == pytest.approx(expected[key], abs=atol)


def skew(crystals: CrystalBatch, transform: list[list[float]]) -> CrystalBatch:
    """The same crystals in another cell of the same lattice."""
    matrix = torch.tensor(transform)
    coords = torch.remainder(crystals.frac_coords @ torch.linalg.inv(matrix), 1.0)
    return crystals.replace(lattices=matrix @ crystals.lattices, frac_coords=coords)


@pytest.mark.parametrize("cutoff", [2.5, 5.0])
def test_neighbours_are_those_of_ase(cutoff: float) -> None:
    assert_equals_ase(random_crystals((*SIZES, 1, 12)), cutoff)


def test_neighbours_of_textbook_crystals_are_those_of_ase() -> None:
    assert_equals_ase(CrystalBatch.from_structures(rock_salt_and_friends()), 6.1)


@pytest.mark.parametrize("transform", [[[1, 3, -2], [0, 1, 4], [0, 0, 1]], [[1, 0, 0], [-5, 1, 0], [2, 7, 1]]])
def test_skewed_cells_have_the_same_neighbours(transform: list[list[float]]) -> None:
    crystals = random_crystals()
    skewed = skew(crystals, [[float(value) for value in row] for row in transform])
    assert_equals_ase(skewed, 4.0)
    graphs = [neighbour_graph(batch, cutoff=6.0, max_neighbours=12) for batch in (crystals, skewed)]
    for index in range(len(crystals)):
        straight, other = (
            sorted((edge[0], edge[1], round(value, 2)) for edge, value in edges_of(graph, batch, index).items())
            for graph, batch in zip(graphs, (crystals, skewed), strict=True)
        )
        assert len(straight) == len(other)
        np.testing.assert_allclose(np.array(straight), np.array(other), atol=0.011)


@given(seed=st.integers(0, 10_000), cutoff=st.floats(1.0, 5.0))
@settings(max_examples=10)
def test_flat_needle_like_and_triclinic_cells(seed: int, cutoff: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.exp(torch.rand(2, 3, generator=generator) * 2.3 + 0.7)  # 2 to 20 Å
    angles = torch.deg2rad(60.0 + 55.0 * torch.rand(2, 3, generator=generator))
    crystals = random_crystals((3, 2), seed=seed).replace(lattices=lattice_from_parameters(lengths, angles))
    within = neighbour_graph(crystals, cutoff=cutoff)
    lonely = within.distances > cutoff
    assert bool((torch.bincount(within.edge_index[1], minlength=5) > 0).all())
    assert not bool(torch.isin(within.edge_index[1][~lonely], within.edge_index[1][lonely]).any())
    for index, atoms in enumerate(crystals.to_atoms()):
        expected = len(neighbor_list("i", atoms, cutoff))
        chosen = (crystals.batch[within.edge_index[1]] == index) & ~lonely
        assert abs(int(chosen.sum()) - expected) <= int((within.distances[chosen] > cutoff - 1e-4).sum())


def test_a_search_in_pieces_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    crystals = random_crystals()
    whole = neighbour_graph(crystals, cutoff=5.0)
    monkeypatch.setattr(neighbours, "_CANDIDATES_AT_ONCE", 300)
    pieces = neighbour_graph(crystals, cutoff=5.0)
    for index in range(len(crystals)):
        assert edges_of(whole, crystals, index) == edges_of(pieces, crystals, index)


# ---- the nearest, and their ties -------------------------------------------------------------------------------------


def test_shells_are_not_split() -> None:
    """Rock salt: 6 neighbours at a/2, 12 at a/√2, 8 at a√3/2."""
    salt = CrystalBatch.from_structures(rock_salt_and_friends()[:1])
    for asked, expected in ((1, 6), (6, 6), (7, 18), (18, 18), (19, 26)):
        graph = neighbour_graph(salt, cutoff=5.0, max_neighbours=asked)
        assert torch.bincount(graph.edge_index[1]).tolist() == [expected] * 8
    # The cutoff counts, too: between the second and the third shell.
    graph = neighbour_graph(salt, cutoff=4.4, max_neighbours=19)
    assert torch.bincount(graph.edge_index[1]).tolist() == [18] * 8
    nearest = neighbour_graph(salt, cutoff=5.0, max_neighbours=1)
    torch.testing.assert_close(nearest.distances, torch.full_like(nearest.distances, 2.82), atol=1e-4, rtol=0.0)
    assert bool((salt.atom_types[nearest.edge_index[0]] != salt.atom_types[nearest.edge_index[1]]).all())


def test_the_nearest_are_the_nearest() -> None:
    crystals = random_crystals((5, 9))
    everyone = neighbour_graph(crystals, cutoff=8.0)
    nearest = neighbour_graph(crystals, cutoff=8.0, max_neighbours=7)
    for atom in range(crystals.num_nodes):
        mine = nearest.distances[nearest.edge_index[1] == atom]
        ordered = everyone.distances[everyone.edge_index[1] == atom].sort().values
        horizon = float(ordered[6]) * (1 + neighbours.TIE)
        assert len(mine) == int((ordered <= horizon).sum())
        torch.testing.assert_close(mine.sort().values, ordered[: len(mine)])


def test_an_atom_alone_sees_its_nearest_shell() -> None:
    cubic = CrystalBatch.empty([1, 2]).replace(
        lattices=torch.eye(3).repeat(2, 1, 1) * torch.tensor([9.0, 3.0])[:, None, None]
    )
    graph = neighbour_graph(cubic, cutoff=4.0, max_neighbours=3)
    alone = graph.edge_index[1] == 0
    assert int(alone.sum()) == 6
    torch.testing.assert_close(graph.distances[alone], torch.full((6,), 9.0))
    assert sorted(graph.shifts[alone].abs().sum(dim=-1).tolist()) == [1] * 6
    # Two atoms at one place are neighbours at distance 0, and no atom is its own.
    for atom in (1, 2):
        mine = graph.edge_index[1] == atom
        assert float(graph.distances[mine].min()) == 0.0
        assert int(((graph.edge_index[0] == atom) & mine & (graph.shifts == 0).all(dim=-1)).sum()) == 0


# ---- what makes no difference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_neighbours", [None, 6])
def test_a_crystal_alone_has_the_neighbours_it_has_in_a_batch(max_neighbours: int | None) -> None:
    crystals = random_crystals()
    together = neighbour_graph(crystals, cutoff=3.0, max_neighbours=max_neighbours)
    for index in range(len(crystals)):
        alone = neighbour_graph(crystals[index], cutoff=3.0, max_neighbours=max_neighbours)
        assert edges_of(alone, crystals[index], 0) == pytest.approx(edges_of(together, crystals, index), abs=1e-5)


def test_origin_image_and_orientation_leave_distances() -> None:
    crystals = random_crystals()
    shifted = translate(crystals, torch.rand(4, 3, generator=torch.Generator().manual_seed(3)))
    images = crystals.replace(frac_coords=crystals.frac_coords + torch.tensor([3.0, -2.0, 1.0]))
    turned = rotate(crystals, random_rotations(4, torch.Generator().manual_seed(1)))
    before = neighbour_graph(crystals, cutoff=5.0, max_neighbours=8)
    for other in (shifted, images, turned):
        after = neighbour_graph(other, cutoff=5.0, max_neighbours=8)
        assert torch.equal(after.edge_index[1], before.edge_index[1])
        torch.testing.assert_close(after.distances, before.distances, atol=2e-4, rtol=0.0)


def test_distances_carry_gradients() -> None:
    """Σ d grows in proportion to the cell, and moving all atoms together changes nothing."""
    crystals = random_crystals()
    coords, scale = crystals.frac_coords.clone().requires_grad_(), torch.ones(4, 1, 1, requires_grad=True)
    moving = crystals.replace(frac_coords=coords, lattices=crystals.lattices * scale)
    graph = neighbour_graph(moving, cutoff=5.0, max_neighbours=8)
    graph.distances.square().sum().backward()
    owner = crystals.batch[graph.edge_index[1]]
    sums = torch.zeros(4).index_add(0, owner, graph.distances.detach().square())
    torch.testing.assert_close(scale.grad.flatten(), 2 * sums, rtol=1e-4, atol=0.0)
    total = torch.zeros(4, 3).index_add(0, crystals.batch, coords.grad)
    assert float(coords.grad.abs().max()) > 1.0
    assert float(total.abs().max()) < 1e-2


# ---- what has no neighbours ------------------------------------------------------------------------------------------


def test_cells_that_cannot_be_searched_are_named() -> None:
    crystals = random_crystals()
    for spoil, message in (
        (torch.zeros(3, 3), r"crystal 2 of the batch: its cell has a volume of 0 Å"),
        (torch.full((3, 3), float("nan")), r"crystal 2 of the batch: its cell has a volume of nan"),
        (torch.diag(torch.tensor([4.0, 1e-3, 1e-3])), r"is so thin that \d+ of its images lie within 6 Å"),
    ):
        lattices = crystals.lattices.clone()
        lattices[2] = spoil
        with pytest.raises(DataError, match=message):
            neighbour_graph(crystals.replace(lattices=lattices), cutoff=6.0)
    coords = crystals.frac_coords.clone()
    coords[6] = float("inf")
    with pytest.raises(DataError, match="crystal 2 of the batch: coordinates"):
        neighbour_graph(crystals.replace(frac_coords=coords), cutoff=6.0)
