"""Geometry of periodic cells, held against pymatgen, ASE and what mathematics says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from ase.geometry import get_distances
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice
from pymatgen.util.coord import pbc_shortest_vectors

from crystalvae.data.augmentation import rotate, translate
from crystalvae.data.lattice import (
    MIN_GRAM_EIGENVALUE,
    bound_angles,
    lattice_from_parameters,
    lattice_to_parameters,
    minimum_image_distances,
    periodic_difference,
    random_rotations,
    wrap,
)
from tests.samples import random_crystals, rock_salt_and_friends, shortest_distance

finite = {"allow_nan": False, "allow_infinity": False}
lengths_strategy = st.tuples(*[st.floats(1.0, 40.0, **finite)] * 3)
seeds = st.integers(0, 2**31 - 1)


@st.composite
def cells(
    draw: st.DrawFn, minimum_angle: float = 40.0, maximum_angle: float = 140.0
) -> tuple[list[float], list[float]]:
    """Lengths in Å and angles in degrees that some cell has."""
    angles = [draw(st.floats(minimum_angle, maximum_angle, **finite)) for _ in range(3)]
    cos_alpha, cos_beta, cos_gamma = (math.cos(math.radians(angle)) for angle in angles)
    gram = np.array([[1, cos_gamma, cos_beta], [cos_gamma, 1, cos_alpha], [cos_beta, cos_alpha, 1]])
    assume(np.linalg.eigvalsh(gram)[0] > 0.02)
    return list(draw(lengths_strategy)), angles


def skewed_cell(seed: int, strength: int) -> torch.Tensor:
    """An ordinary cell described by very skewed vectors: an integer shear of determinant 1."""
    rng = np.random.default_rng(seed)
    matrix = np.asarray(Lattice.from_parameters(*rng.uniform(3, 9, 3), *rng.uniform(65, 115, 3)).matrix)
    shear = np.eye(3, dtype=int)
    for i, j in itertools.permutations(range(3), 2):
        step = np.eye(3, dtype=int)
        step[i, j] = rng.integers(-strength, strength + 1)
        if rng.random() < 0.5:
            shear = shear @ step
    return torch.from_numpy(shear @ matrix)


# ---- parameters and matrices -----------------------------------------------------------------------------------------


@given(cells())
def test_lattice_round_trips_between_parameters_and_matrix(cell: tuple[list[float], list[float]]) -> None:
    lengths, angles = (torch.tensor(values, dtype=torch.float64) for values in cell)
    back_lengths, back_angles = lattice_to_parameters(lattice_from_parameters(lengths, torch.deg2rad(angles)))
    torch.testing.assert_close(back_lengths, lengths, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(torch.rad2deg(back_angles), angles, atol=1e-7, rtol=0.0)


@given(cells())
def test_lattice_matrix_equals_pymatgens(cell: tuple[list[float], list[float]]) -> None:
    lengths, angles = (torch.tensor(values, dtype=torch.float64) for values in cell)
    ours = lattice_from_parameters(lengths, torch.deg2rad(angles))
    theirs = Lattice.from_parameters(*cell[0], *cell[1])
    torch.testing.assert_close(ours, torch.from_numpy(np.array(theirs.matrix)), atol=1e-6, rtol=1e-7)
    got_lengths, got_angles = lattice_to_parameters(torch.from_numpy(np.array(theirs.matrix)))
    np.testing.assert_allclose(got_lengths, theirs.abc, rtol=1e-9)
    np.testing.assert_allclose(torch.rad2deg(got_angles), theirs.angles, atol=1e-5)


def test_each_angle_lies_between_its_two_vectors() -> None:
    lattice = lattice_from_parameters(torch.tensor([3.0, 4.0, 5.0]), torch.deg2rad(torch.tensor([70.0, 85.0, 110.0])))
    a, b, c = lattice.double()
    for u, v, degrees in ((b, c, 70.0), (a, c, 85.0), (a, b, 110.0)):
        assert math.degrees(math.acos(float(u @ v / (u.norm() * v.norm())))) == pytest.approx(degrees, abs=1e-4)
    assert c[0] == 0.0
    assert c[1] == 0.0
    assert a[1] == 0.0
    assert torch.linalg.det(lattice) > 0


def test_lattices_are_converted_in_batches_of_any_shape() -> None:
    crystals = random_crystals((1, 2, 3, 4, 5, 6))
    lengths, angles = lattice_to_parameters(crystals.lattices.view(2, 3, 3, 3))
    assert lengths.shape == angles.shape == (2, 3, 3)
    one_by_one = [lattice_to_parameters(lattice) for lattice in crystals.lattices]
    torch.testing.assert_close(lengths.view(-1, 3), torch.stack([pair[0] for pair in one_by_one]))
    torch.testing.assert_close(angles.view(-1, 3), torch.stack([pair[1] for pair in one_by_one]))
    matrices = lattice_from_parameters(lengths, angles)
    torch.testing.assert_close(matrices.view(-1, 3, 3)[4], lattice_from_parameters(*one_by_one[4]))


def test_small_and_flat_angles_keep_float32_precision() -> None:
    """An arccosine of the scalar product would lose half of the digits here."""
    degrees = torch.tensor([[0.5, 90.0, 90.0], [179.5, 90.0, 90.0]])
    radians = torch.deg2rad(degrees)
    u = torch.tensor([1.0, 0.0, 0.0]).expand(2, 3)
    v = torch.stack((radians[:, 0].cos(), radians[:, 0].sin(), torch.zeros(2)), dim=-1)
    lattices = torch.stack((torch.tensor([0.0, 0.0, 1.0]).expand(2, 3), u, v), dim=1)
    torch.testing.assert_close(lattice_to_parameters(lattices)[1], radians, atol=1e-6, rtol=1e-5)


def test_lattice_conversions_have_finite_gradients() -> None:
    lengths = torch.tensor([[3.0, 3.0, 3.0]], requires_grad=True)
    angles = torch.full((1, 3), math.pi / 2, requires_grad=True)
    lattice_from_parameters(lengths, angles).square().sum().backward()
    assert lengths.grad is not None
    assert angles.grad is not None
    assert bool(torch.isfinite(lengths.grad).all())
    assert bool(torch.isfinite(angles.grad).all())


# ---- wrapping and differences ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 3), min_size=1, max_size=8))
def test_wrap_is_idempotent_and_half_open(coords: list[tuple[float, float, float]]) -> None:
    frac_coords = torch.tensor(coords)
    wrapped = wrap(frac_coords)
    assert bool((wrapped >= 0).all())
    assert bool((wrapped < 1).all())
    assert torch.equal(wrap(wrapped), wrapped)
    away = (wrapped.double() - frac_coords.double()) - (wrapped.double() - frac_coords.double()).round()
    assert float(away.abs().max()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrap_never_returns_one(dtype: torch.dtype) -> None:
    """-1e-9 - floor(-1e-9) rounds to exactly 1.0 in float32."""
    tiny = torch.tensor([[-1e-9, -1e-30, -0.0], [1.0, 2.0, -3.0]], dtype=dtype)
    wrapped = wrap(tiny)
    assert float(wrapped.max()) < 1.0
    assert wrapped[1].tolist() == [0.0, 0.0, 0.0]


@given(seeds)
def test_periodic_difference_is_the_nearest_image_along_each_axis(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (torch.from_numpy(rng.uniform(-2, 3, (5, 3))) for _ in range(2))
    difference = periodic_difference(a, b)
    assert float(difference.abs().max()) <= 0.5
    torch.testing.assert_close(wrap(b + difference), wrap(a), atol=1e-12, rtol=0.0)
    torch.testing.assert_close(periodic_difference(a + 3, b - 2), difference, atol=1e-12, rtol=0.0)


def test_the_two_ends_of_the_cell_are_neighbours() -> None:
    difference = periodic_difference(torch.tensor([[0.999, 0.001, 0.5]]), torch.tensor([[0.001, 0.999, 0.5]]))
    torch.testing.assert_close(difference, torch.tensor([[-0.002, 0.002, 0.0]]))


# ---- distances -------------------------------------------------------------------------------------------------------


@given(cells(), seeds)
@settings(max_examples=40)
def test_minimum_image_distances_equal_pymatgens(cell: tuple[list[float], list[float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    frac_a, frac_b = rng.uniform(-1, 2, (4, 3)), rng.uniform(-1, 2, (3, 3))
    lattice = Lattice.from_parameters(*cell[0], *cell[1])
    lattice = lattice.get_lll_reduced_lattice()  # pymatgen looks at the 27 nearest cells, which is right for these
    ours = minimum_image_distances(
        torch.from_numpy(np.array(lattice.matrix)), torch.from_numpy(frac_a), torch.from_numpy(frac_b)
    )
    np.testing.assert_allclose(ours, lattice.get_all_distances(frac_a, frac_b), atol=1e-8)
    _, squared = pbc_shortest_vectors(lattice, frac_a, frac_b, return_d2=True)
    np.testing.assert_allclose(ours, np.sqrt(squared), atol=1e-8)


@pytest.mark.parametrize("strength", [0, 1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_minimum_image_distances_equal_ases_in_skewed_cells(seed: int, strength: int) -> None:
    lattice = skewed_cell(seed, strength)
    frac_coords = torch.from_numpy(np.random.default_rng(seed).uniform(0, 1, (6, 3)))
    cartesian = (frac_coords @ lattice).numpy()
    _, theirs = get_distances(cartesian, cartesian, cell=lattice.numpy(), pbc=True)
    ours = minimum_image_distances(lattice, frac_coords, frac_coords)
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_ase_and_pymatgen_agree_on_real_crystals() -> None:
    for structure in rock_salt_and_friends():
        lattice = torch.from_numpy(np.array(structure.lattice.matrix))
        frac_coords = torch.from_numpy(structure.frac_coords)
        ours = minimum_image_distances(lattice, frac_coords, frac_coords)
        np.testing.assert_allclose(ours, structure.distance_matrix, atol=1e-8)
        np.testing.assert_allclose(ours, structure.to_ase_atoms().get_all_distances(mic=True), atol=1e-8)


def test_shortest_distances_of_textbook_crystals() -> None:
    rock_salt, diamond, *_ = rock_salt_and_friends()
    for structure, bond in ((rock_salt, 5.64 / 2), (diamond, 3.567 * math.sqrt(3) / 4)):
        lattice = torch.from_numpy(np.array(structure.lattice.matrix))
        assert shortest_distance(lattice, torch.from_numpy(structure.frac_coords)) == pytest.approx(bond, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_an_atom_is_a_neighbour_of_its_own_images(seed: int) -> None:
    """One atom a cell: the shortest distance is the shortest lattice vector, however the cell is described."""
    lattice = skewed_cell(seed, 2)
    shortest_vector = min(Lattice(lattice.numpy()).get_niggli_reduced_lattice().abc)
    one_atom = torch.full((1, 3), 0.2, dtype=torch.float64)
    assert shortest_distance(lattice, one_atom) == pytest.approx(shortest_vector, abs=1e-6)
    far_apart = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    assert shortest_distance(lattice, far_apart) <= shortest_vector + 1e-6


def test_atoms_on_one_place_and_flat_cells_have_distance_zero() -> None:
    assert shortest_distance(torch.eye(3) * 4, torch.full((2, 3), 0.3)) == 0.0
    flat = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [3.0, 3.0, 0.0]])
    assert shortest_distance(flat, torch.rand(3, 3)) == 0.0


@given(seeds)
@settings(max_examples=25)
def test_translations_and_rotations_leave_all_distances(seed: int) -> None:
    crystals = random_crystals((5, 3), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    moved = rotate(translate(crystals, torch.randn(2, 3, generator=generator)), random_rotations(2, generator))
    for before, after in ((crystals[i], moved[i]) for i in range(2)):
        torch.testing.assert_close(
            minimum_image_distances(after.lattices[0], after.frac_coords, after.frac_coords),
            minimum_image_distances(before.lattices[0], before.frac_coords, before.frac_coords),
            atol=1e-4,
            rtol=1e-5,
        )


# ---- bounds ----------------------------------------------------------------------------------------------------------


def smallest_gram_eigenvalue(angles: torch.Tensor) -> torch.Tensor:
    cos_alpha, cos_beta, cos_gamma = angles.cos().unbind(-1)
    one = torch.ones_like(cos_alpha)
    entries = (one, cos_gamma, cos_beta, cos_gamma, one, cos_alpha, cos_beta, cos_alpha, one)
    return torch.linalg.eigvalsh(torch.stack(entries, dim=-1).view(-1, 3, 3))[:, 0]


@given(seeds)
@settings(max_examples=50)
def test_bounds_leave_niggli_cells_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(3, 3)) * rng.uniform(2, 10, (3, 1))
    assume(abs(np.linalg.det(matrix)) > 5.0)
    reduced = Lattice(matrix).get_niggli_reduced_lattice().matrix
    angles = lattice_to_parameters(torch.from_numpy(np.array(reduced)))[1]
    assert torch.equal(bound_angles(angles), angles)


@pytest.mark.parametrize(
    "degrees",
    [(90, 90, 90), (60, 60, 60), (109.4712, 109.4712, 109.4712), (120, 120, 90), (90, 90, 120), (60, 90, 120)],
)
def test_bounds_leave_the_extreme_niggli_cells_alone(degrees: tuple[float, float, float]) -> None:
    angles = torch.deg2rad(torch.tensor(degrees))
    assert torch.equal(bound_angles(angles), angles)


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 3), min_size=1, max_size=16))
def test_bounded_angles_always_make_a_cell(values: list[tuple[float, float, float]]) -> None:
    bounded = bound_angles(torch.tensor(values))
    assert bool(((bounded > 0) & (bounded < math.pi)).all())
    assert float(smallest_gram_eigenvalue(bounded.double()).min()) >= MIN_GRAM_EIGENVALUE - 1e-4
    lattices = lattice_from_parameters(torch.ones(len(values), 3), bounded)
    assert float(torch.linalg.det(lattices).min()) > 0.05
    got_lengths, got_angles = lattice_to_parameters(lattices)
    torch.testing.assert_close(got_lengths, torch.ones_like(got_lengths), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(got_angles, bounded, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(bound_angles(bounded), bounded, atol=1e-5, rtol=0.0)


def test_bounds_act_on_each_crystal_alone() -> None:
    angles = torch.deg2rad(torch.tensor([[90.0, 90.0, 90.0], [10.0, 170.0, 170.0], [80.0, 85.0, 95.0]]))
    bounded = bound_angles(angles)
    assert torch.equal(bounded[[0, 2]], angles[[0, 2]])
    assert not torch.equal(bounded[1], angles[1])


# ---- rotations -------------------------------------------------------------------------------------------------------

DRAWS = 40_000


def check_uniform_on_so3(rotations: torch.Tensor) -> None:
    """Fail where moments or the angle distribution differ from those of the Haar measure by more than 5 σ.

    Under it E[R] = 0 and E[R_ij R_kl] = δ_ik δ_jl / 3 (Schur's orthogonality), the rotation angle t has the density
    (1 - cos t)/π, and the same holds for Q R for any fixed Q.
    """
    count = len(rotations)
    flat = rotations.double().reshape(count, 9)
    bound = 5.0 / math.sqrt(count)  # every product of two entries lies within ±1
    assert float(flat.mean(dim=0).abs().max()) < bound
    torch.testing.assert_close(flat.T @ flat / count, torch.eye(9, dtype=torch.float64) / 3, atol=bound, rtol=0.0)
    turned = torch.from_numpy(np.array([[0.6, 0.8, 0.0], [-0.8, 0.6, 0.0], [0.0, 0.0, 1.0]]))
    for sample in (rotations.double(), turned @ rotations.double()):
        cosine = (torch.diagonal(sample, dim1=-2, dim2=-1).sum(-1) - 1) / 2
        angle = torch.acos(cosine.clamp(-1, 1)).sort().values
        uniform = (angle - angle.sin()) / math.pi  # the distribution function, uniform on [0, 1] if all is well
        empirical = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        assert float((uniform - empirical).abs().max()) < 2.3 / math.sqrt(count)  # Kolmogorov: 5 in 100,000


def rotations_about(axis: int, angles: torch.Tensor) -> torch.Tensor:
    matrices = torch.eye(3).repeat(len(angles), 1, 1)
    i, j = [k for k in range(3) if k != axis]
    matrices[:, i, i] = matrices[:, j, j] = angles.cos()
    matrices[:, i, j], matrices[:, j, i] = -angles.sin(), angles.sin()
    return matrices


def test_random_rotations_are_proper() -> None:
    rotations = random_rotations(500, torch.Generator().manual_seed(1))
    identity = torch.eye(3).expand(500, 3, 3)
    torch.testing.assert_close(rotations @ rotations.transpose(1, 2), identity, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(500), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("seed", range(3))
def test_random_rotations_are_uniform(seed: int) -> None:
    check_uniform_on_so3(random_rotations(DRAWS, torch.Generator().manual_seed(seed)))


def test_naive_euler_angles_would_be_found_out() -> None:
    """Three uniform Euler angles, and uniform angles about a random axis, are the classical mistakes."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = 2 * math.pi * torch.rand(3, DRAWS, generator=generator)
    with pytest.raises(AssertionError):
        check_uniform_on_so3(rotations_about(2, a) @ rotations_about(0, b / 2) @ rotations_about(2, c))
    with pytest.raises(AssertionError):
        check_uniform_on_so3(rotations_about(2, a) @ rotations_about(1, b) @ rotations_about(0, c))
    flat = torch.linalg.qr(torch.rand(DRAWS, 3, 3, generator=generator))[0]
    with pytest.raises(AssertionError):
        check_uniform_on_so3(flat)


def test_rotations_follow_the_generator_alone() -> None:
    first, again, other = (random_rotations(4, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.allclose(first[0], first[1])
