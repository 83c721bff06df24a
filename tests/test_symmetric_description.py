"""The symmetric description: space groups and Wyckoff sites, their normalizers, one description for each crystal."""

from __future__ import annotations

from pathlib import Path

import moyopy
import numpy as np
import pytest
import spglib
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.datamodule import CrystalDataModule
from crystalvae.data.symmetric.normalizer import normalizer
from crystalvae.data.symmetric.projection import AtomSites, onto_sites, project, project_coordinates, project_lattices
from crystalvae.data.symmetric.source import ORBIT_SITES, SPACE_GROUP, SymmetricSource, symmetric
from crystalvae.data.symmetric.space_groups import on_site, space_group
from crystalvae.data.symmetric.tables import space_group_tables
from crystalvae.errors import ConfigError, DataError
from tests.samples import assert_same_crystals
from tests.test_canonical import CHANGES, CRYSTALS, TEXTBOOK, OneSplit, changed

GROUPS = (1, 2, 5, 8, 12, 14, 15, 19, 36, 62, 71, 88, 123, 139, 146, 160, 166, 194, 198, 221, 225, 227)
"""All crystal systems and kinds of centring; polar, chiral and centrosymmetric groups."""
groups = pytest.mark.parametrize("number", GROUPS)


def random_symmetric(number: int, rng: np.random.Generator) -> CrystalBatch:
    """Return a crystal of a space group with two or three orbits on random sites and random places of them."""
    group = space_group(number)
    while True:
        seed = rng.normal(size=(3, 3))
        metric = np.einsum("gji,jk,gkl->il", group.rotations, seed @ seed.T + np.eye(3), group.rotations)
        metric *= (60.0 / np.sqrt(np.linalg.det(metric))) ** (2 / 3)
        numbers, coords = [], []
        for element in (12, 8, 8)[: int(rng.integers(2, 4))]:
            site = group.sites[int(rng.integers(len(group.sites)))]
            point = site.directions @ rng.random(site.freedom) + site.origin
            coords.append(group.images(point[None])[0, site.operations])
            numbers += [element] * site.multiplicity
        lattice = np.linalg.cholesky(metric)
        points = np.concatenate(coords)
        apart = points[:, None] - points
        apart -= np.rint(apart)
        distances = np.linalg.norm(apart @ lattice, axis=-1) + 9 * np.eye(len(points))
        if distances.min() > 0.5 and len(points) <= 40:
            return CrystalBatch.from_arrays([(np.array(numbers), points, lattice)])


# ---- space groups ----------------------------------------------------------------------------------------------------


def test_there_are_1731_sites_with_the_letters_of_the_tables():
    tables = space_group_tables()
    assert len(tables.multiplicity) == 1731
    assert tables.first_site.diff()[[0, 1, 46, 61, 224]].tolist() == [1, 9, 27, 4, 12]
    assert tables.first_site.diff().max() == 27
    general = tables.first_site[1:] - 1  # the last of each group
    assert (tables.freedom[general] == 3).all()
    # Numbers of positions without, with one, two and three free coordinates, as in International Tables A.
    of_fluorite = slice(*tables.first_site[224:226].tolist())
    assert tables.freedom[of_fluorite].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3]
    assert tables.multiplicity[of_fluorite].tolist() == [1, 1, 2, 6, 6, 8, 12, 12, 12, 24, 24, 48]


@groups
def test_operations_are_those_of_spglib(number: int):
    group = space_group(number)
    standard = moyopy.operations_from_number(number, setting=moyopy.Setting.standard())
    ours = _as_set(group.rotations, group.translations)
    assert len(ours) == len(group.rotations)
    halls = [n for n in range(1, 531) if moyopy.HallSymbolEntry(n).number == number]
    found = []
    for hall in halls:
        other = spglib.get_symmetry_from_database(hall)
        assert other is not None
        assert len(other["rotations"]) == len(standard) or number in {146, 160, 166}  # rhombohedral axes have a third
        basis = np.linalg.inv(np.array(moyopy.HallSymbolEntry(hall).centering.linear, dtype=float))
        inverse = np.linalg.inv(basis)
        found.append(_as_set(inverse @ other["rotations"] @ basis, other["translations"] @ inverse.T))
    assert ours in found


def _as_set(rotations: np.ndarray, translations: np.ndarray) -> set[tuple[int, ...]]:
    pairs = zip(np.rint(rotations).astype(int), np.rint(np.array(translations) * 24).astype(int) % 24, strict=True)
    return {(*rotation.flatten().tolist(), *translation.tolist()) for rotation, translation in pairs}


@groups
def test_sites_are_points_with_orbits_of_their_size(number: int):
    group = space_group(number)
    rng = np.random.default_rng(number)
    for index, site in enumerate(group.sites):
        point = site.directions @ rng.random(site.freedom) + site.origin
        images = group.images(point[None])[0]
        apart = images[:, None] - images
        distinct = (np.abs(apart - np.rint(apart)) < 1e-6).all(axis=-1)
        assert len(group.rotations) / distinct.sum(axis=1) == pytest.approx(site.multiplicity)
        assert group.sites_of(images) == pytest.approx(index)
        assert on_site(point[None], site)
        np.testing.assert_allclose(site.mean_rotation @ point + site.mean_translation, point, atol=1e-9)
        if site.freedom < 3:
            assert group.sites_of(point[None] + rng.random(3)) == len(group.sites) - 1


@groups
def test_normalizers_take_operations_to_operations(number: int):
    group, maps = space_group(number), normalizer(number)
    known = _as_set(group.rotations, group.translations)
    for matrix, origin in list(zip(maps.rotations, maps.origins, strict=True))[:40]:
        for shift in maps.shifts:
            inverse = np.linalg.inv(matrix)
            for rotation, translation in zip(group.rotations, group.translations, strict=True):
                image = np.rint(matrix @ rotation @ inverse).astype(int)
                moved = matrix @ translation + (origin + shift) - image @ (origin + shift)
                assert _as_set(image[None], moved[None]) <= known


@pytest.mark.parametrize(
    ("number", "index"),
    # Of the Euclidean normalizers of International Tables A; for orthorhombic groups the affine ones (a = b = c).
    [
        (16, 96),
        (19, 96),
        (47, 48),
        (62, 8),
        (123, 4),
        (139, 2),
        (166, 2),
        (194, 2),
        (198, 8),
        (216, 8),
        (221, 2),
        (225, 2),
    ],
)
def test_normalizers_have_the_index_of_the_tables(number: int, index: int):
    maps = normalizer(number)
    assert len(maps.rotations) * len(maps.shifts) == index


# ---- the description -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(GROUPS), st.integers(0, 2**32 - 1))
def test_any_origin_axes_order_hand_and_supercell_give_the_same_description(number: int, seed: int):
    rng = np.random.default_rng(seed)
    crystal = random_symmetric(number, rng)
    expected, _ = symmetric(crystal)
    given_otherwise = crystal
    for change in CHANGES:
        given_otherwise = changed(given_otherwise, change, int(rng.integers(2**31)))
    if expected.properties[SPACE_GROUP] not in {144, 145, 151, 152, 153, 154}:
        mirrored = given_otherwise.lattices * torch.tensor([1.0, 1.0, float(rng.choice([-1, 1]))])
        given_otherwise = given_otherwise.replace(lattices=mirrored)
    got, _ = symmetric(given_otherwise)
    assert_same_crystals(got, expected, atol=2e-3)
    assert torch.equal(got.properties[SPACE_GROUP], expected.properties[SPACE_GROUP])
    assert torch.equal(got.properties[ORBIT_SITES], expected.properties[ORBIT_SITES])


def test_it_is_the_same_crystal_with_the_right_space_group_and_orbits():
    found, reasons = symmetric(CRYSTALS)
    assert not reasons
    assert found.properties[SPACE_GROUP].tolist() == [float(number) for _, number in TEXTBOOK.values()]
    matcher = StructureMatcher()
    for (name, (structure, _)), got in zip(TEXTBOOK.items(), found.to_structure(), strict=True):
        assert matcher.fit(structure, got), name
        assert len(got) == len(structure.get_primitive_structure()), name
    again, _ = symmetric(found)
    assert_same_crystals(again, found, atol=1e-5)
    sites = AtomSites.of(found)
    spinel = found.batch == list(TEXTBOOK).index("spinel")
    assert sites.multiplicity[spinel].tolist() == [2] * 2 + [4] * 4 + [8] * 8
    assert sites.freedom[spinel].tolist() == [0] * 6 + [1] * 8
    assert found.atom_types[spinel].tolist() == [12] * 2 + [13] * 4 + [8] * 8


def test_crystals_of_one_prototype_have_the_same_coordinates():
    spinel = CRYSTALS[list(TEXTBOOK).index("spinel")]
    calcium = torch.tensor(20)
    other = spinel.replace(
        atom_types=spinel.atom_types.where(spinel.atom_types != 12, calcium), lattices=1.05 * spinel.lattices
    )
    both, _ = symmetric(CrystalBatch.cat([spinel, changed(other, CHANGES[0], 3)]))
    one, two = both.frac_coords.split(both.num_atoms.tolist())
    assert len(one) == 14
    assert far_apart(one, two) < 1e-5
    assert torch.equal(both.properties[ORBIT_SITES][0], both.properties[ORBIT_SITES][1])
    assert both.atom_types[14:].tolist() == [20] * 2 + [13] * 4 + [8] * 8


def test_crystals_without_symmetry_are_described_as_those_of_the_first_group():
    double = CrystalBatch.from_arrays([(np.array([11, 17]), np.zeros((2, 3)), 4.0 * np.eye(3))])
    crystals, reasons = symmetric(double)  # two atoms in one place: moyo finds nothing
    assert not reasons
    assert crystals.properties[SPACE_GROUP].tolist() == [1.0]
    assert crystals.properties[ORBIT_SITES].tolist() == [[0, 0]]


def test_cells_without_volume_are_left_out_with_a_reason():
    flat = CrystalBatch.from_arrays([(np.array([11, 17]), np.zeros((2, 3)), np.diag([4.0, 4.0, 0.0]))])
    crystals, reasons = symmetric(CrystalBatch.cat([CRYSTALS[0], flat]))
    assert len(crystals) == 1
    assert list(reasons) == [1]
    with pytest.raises(DataError, match="no crystal has a symmetric description"):
        symmetric(flat)
    with pytest.raises(ConfigError, match="symprec"):
        symmetric(CRYSTALS, symprec=0.0)


# ---- projections -----------------------------------------------------------------------------------------------------


def disturbed(crystals: CrystalBatch, amount: float, seed: int = 0) -> CrystalBatch:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(crystals.frac_coords.shape, generator=generator, dtype=crystals.frac_coords.dtype)
    strain = torch.randn(crystals.lattices.shape, generator=generator, dtype=crystals.lattices.dtype)
    return crystals.replace(
        frac_coords=(crystals.frac_coords + amount * noise) % 1.0,
        lattices=crystals.lattices @ (torch.eye(3, dtype=strain.dtype) + amount * strain),
    )


def far_apart(a: torch.Tensor, b: torch.Tensor) -> float:
    apart = a - b
    return float((apart - apart.round()).abs().max())


@pytest.mark.parametrize("seed", range(3))
def test_projections_leave_symmetric_crystals_and_are_idempotent(seed: int):
    rng = np.random.default_rng(seed)
    crystals, _ = symmetric(CrystalBatch.cat([random_symmetric(number, rng) for number in GROUPS]))
    same = project(crystals)
    assert far_apart(same.frac_coords, crystals.frac_coords) < 1e-5
    torch.testing.assert_close(same.lattices, crystals.lattices, atol=1e-3, rtol=1e-4)
    once = project(disturbed(crystals, 0.03, seed))
    twice = project(once)
    assert far_apart(once.frac_coords, twice.frac_coords) < 1e-5
    torch.testing.assert_close(once.lattices, twice.lattices, atol=1e-3, rtol=1e-4)
    assert far_apart(once.frac_coords, crystals.frac_coords) < 0.15


def test_what_is_projected_has_the_symmetry_that_spglib_finds_at_a_tiny_tolerance():
    rng = np.random.default_rng(5)
    crystals, _ = symmetric(CrystalBatch.cat([random_symmetric(number, rng) for number in GROUPS]))
    crystals = crystals.replace(frac_coords=crystals.frac_coords.double(), lattices=crystals.lattices.double())
    projected = project(disturbed(crystals, 0.02))
    wanted = crystals.properties[SPACE_GROUP].long().tolist()
    found = []
    for numbers, coords, lattice in projected.to_arrays():
        dataset = spglib.get_symmetry_dataset((lattice, coords, numbers), symprec=1e-4)
        found.append(dataset and dataset.number)
    assert found == wanted


def test_gradients_pass_through_projections():
    crystals, _ = symmetric(CRYSTALS)
    coords = crystals.frac_coords.double().requires_grad_()
    lattices = crystals.lattices.double().requires_grad_()
    sites = AtomSites.of(crystals)
    moved = project_coordinates(coords, sites)
    ((moved - crystals.frac_coords.double()).square().sum() + moved.sum()).backward()
    cells = project_lattices(lattices, sites.space_groups)
    cells.sum().backward()
    assert torch.isfinite(coords.grad).all()
    assert torch.isfinite(lattices.grad).all()
    fixed = sites.freedom == 0
    assert (coords.grad[fixed].abs() < 1e-9).all()  # they cannot move
    assert coords.grad[~fixed].abs().max() > 0.1


def test_points_go_to_the_nearest_image_of_their_site():
    first = int(space_group_tables().first_site[224])  # space group 225
    point = torch.tensor([[0.97, 1.02, -0.03]])
    assert onto_sites(point, torch.tensor([first])).round(decimals=5).tolist() == [[1.0, 1.0, 0.0]]


# ---- the source ------------------------------------------------------------------------------------------------------


def test_the_source_gives_symmetric_crystals_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import crystalvae.data.symmetric.source as module

    first = SymmetricSource(source=OneSplit(), cache_dir=str(tmp_path)).load("train")
    monkeypatch.setattr(module, "symmetric", lambda *a, **k: pytest.fail("made again"))
    again = SymmetricSource(source=OneSplit(), cache_dir=str(tmp_path)).load("train")
    assert_same_crystals(again.crystals, first.crystals)
    assert list(again.ids) == list(first.ids) == list(TEXTBOOK)
    assert torch.equal(again.crystals.properties[ORBIT_SITES], first.crystals.properties[ORBIT_SITES])
    assert again.crystals.properties["energy"].tolist() == list(range(len(CRYSTALS)))


def test_the_datamodule_takes_it_by_name(tmp_path: Path):
    module = CrystalDataModule(source=OneSplit(), batch_size=4, canonical="symmetric")
    assert isinstance(module.source, SymmetricSource)
    with pytest.raises(ConfigError, match=r"data\.canonical: got 'symetric'; expected true, false or symmetric"):
        CrystalDataModule(source=OneSplit(), batch_size=4, canonical="symetric")
