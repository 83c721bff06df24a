"""The embedded prototypes are distinct, sensible crystals, and what is held out has structures of its own."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ase.data import atomic_masses, covalent_radii
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Element
from spglib import get_symmetry_dataset, niggli_reduce

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import lattice_from_parameters, minimum_image_distances
from crystalvae.data.prototypes.build import build_prototypes
from crystalvae.data.prototypes.library import Prototype, load_prototypes
from crystalvae.data.prototypes.substitution import find_contacts, fit_cells, substitutes
from crystalvae.errors import ConfigError
from tests.samples import shortest_distance

Splits = dict[str, tuple[list[str], CrystalBatch]]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return build_prototypes()


@pytest.fixture(scope="module")
def everything(splits: Splits) -> tuple[list[str], CrystalBatch]:
    ids = [crystal_id for names, _ in splits.values() for crystal_id in names]
    return ids, CrystalBatch.cat([crystals for _, crystals in splits.values()])


@pytest.fixture(scope="module")
def by_name() -> dict[str, Prototype]:
    return {prototype.name: prototype for prototype in load_prototypes(20)}


def prototype_name(crystal_id: str) -> str:
    return crystal_id.removeprefix("aflow-").rsplit("-", 1)[0]


def sample(crystals: CrystalBatch, count: int, seed: int = 0) -> tuple[torch.Tensor, CrystalBatch]:
    chosen = torch.randperm(len(crystals), generator=torch.Generator().manual_seed(seed))[:count]
    return chosen, crystals[chosen]


# ---- the dataset ----------------------------------------------------------------------------------------------------


def test_sizes_and_ids(splits: Splits, everything: tuple[list[str], CrystalBatch]) -> None:
    ids, crystals = everything
    assert list(splits) == ["train", "val", "test"]
    assert len(crystals) == len(ids) == len(set(ids)) == 6000
    for name, fraction in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert len(splits[name][0]) == len(splits[name][1]) == pytest.approx(6000 * fraction, rel=0.1)
    assert int(crystals.num_atoms.max()) <= 20
    numbers = set(crystals.atom_types.tolist())
    assert len(numbers) > 70
    assert not any(Element.from_Z(number).is_noble_gas or number > 92 for number in numbers)


def test_ids_name_prototype_and_formula(
    everything: tuple[list[str], CrystalBatch], by_name: dict[str, Prototype]
) -> None:
    ids, crystals = everything
    chosen, some = sample(crystals, 300)
    for i, structure in zip(chosen.tolist(), some.to_structure(), strict=True):
        assert prototype_name(ids[i]) in by_name
        assert ids[i].endswith(f"-{structure.composition.reduced_formula}")


def test_cells_are_niggli_cells_in_canonical_orientation(everything: tuple[list[str], CrystalBatch]) -> None:
    _, some = sample(everything[1], 200)
    rebuilt = lattice_from_parameters(some.lengths, some.angles_radians)
    torch.testing.assert_close(some.lattices, rebuilt, atol=1e-5, rtol=1e-5)
    for _, frac_coords, lattice in some.to_arrays():
        assert frac_coords.min() >= 0
        assert frac_coords.max() < 1
        lengths = np.linalg.norm(niggli_reduce(lattice, eps=1e-4), axis=1)
        np.testing.assert_allclose(np.linalg.norm(lattice, axis=1), lengths, rtol=1e-4)
    everything_else = everything[1].lattices
    assert bool((torch.linalg.det(everything_else) > 0).all())
    torch.testing.assert_close(everything_else[:, 2, :2], torch.zeros(6000, 2))
    torch.testing.assert_close(everything_else[:, 0, 1], torch.zeros(6000))


def test_no_atoms_overlap(everything: tuple[list[str], CrystalBatch]) -> None:
    _, some = sample(everything[1], 200)
    for i, (numbers, frac_coords, lattice) in enumerate(some.to_arrays()):
        cell, coords = torch.from_numpy(lattice), torch.from_numpy(frac_coords)
        distances = minimum_image_distances(cell, coords, coords).numpy()
        own_image = shortest_distance(cell, coords[:1])  # an atom and itself one cell further
        np.fill_diagonal(distances, own_image)
        radii = covalent_radii[numbers]
        relative = distances / (radii[:, None] + radii)
        assert 0.699 < relative.min() < 1.401, some[i].to_structure()


def test_properties_are_those_of_the_crystals(everything: tuple[list[str], CrystalBatch]) -> None:
    _, some = sample(everything[1], 200)
    for i, (numbers, frac_coords, lattice) in enumerate(some.to_arrays()):
        volume = abs(np.linalg.det(lattice))
        density = atomic_masses[numbers].sum() / volume / 0.602214076
        assert float(some.properties["density"][i]) == pytest.approx(density, rel=2e-3)
        assert float(some.properties["volume_per_atom"][i]) == pytest.approx(volume / len(numbers), rel=1e-4)
        found = get_symmetry_dataset((lattice, frac_coords, numbers), symprec=0.01)
        assert found is not None
        assert float(some.properties["spacegroup_number"][i]) == found.number
    assert float(everything[1].properties["density"].min()) >= 0.3
    assert float(everything[1].properties["density"].max()) <= 23


def test_ionic_crystals_are_balanced(everything: tuple[list[str], CrystalBatch], by_name: dict[str, Prototype]) -> None:
    ids, crystals = everything
    ionic = [i for i, crystal_id in enumerate(ids) if by_name[prototype_name(crystal_id)].charges]
    assert len(ionic) > 1500
    for i in ionic[::10]:
        prototype, numbers = by_name[prototype_name(ids[i])], crystals[i].atom_types.numpy()
        assert prototype.charges is not None
        assert np.dot(prototype.charges, prototype.counts) == 0
        for kind, charge in enumerate(prototype.charges):
            (number,) = set(numbers[prototype.species == kind].tolist())
            element = Element.from_Z(number)
            known = (*element.common_oxidation_states, *element.icsd_oxidation_states)
            assert charge in known, (ids[i], element, charge)


def test_crystals_are_distinct(everything: tuple[list[str], CrystalBatch]) -> None:
    """All pairs of equal formula among a seeded sample of formulas that occur more than once."""
    ids, crystals = everything
    groups: dict[str, list[int]] = {}
    for i, crystal_id in enumerate(ids):
        groups.setdefault(crystal_id.rsplit("-", 1)[1], []).append(i)
    repeated = [members for _, members in sorted(groups.items()) if len(members) > 1]
    assert len(repeated) > 300
    matcher = StructureMatcher()
    for position in np.random.default_rng(0).permutation(len(repeated))[:60]:
        structures = crystals[repeated[position]].to_structure()
        for i, j in combinations(range(len(structures)), 2):
            assert not matcher.fit(structures[i], structures[j]), [ids[k] for k in repeated[position]]


# ---- held out means held out ----------------------------------------------------------------------------------------


def test_families_stay_together(splits: Splits, by_name: dict[str, Prototype]) -> None:
    families = {
        name: {by_name[prototype_name(crystal_id)].family for crystal_id in ids} for name, (ids, _) in splits.items()
    }
    assert all(len(entry) >= 10 for entry in families.values())
    for a, b in combinations(families.values(), 2):
        assert not a & b

    def anonymous(name: str) -> set[tuple[str, float]]:
        ids, crystals = splits[name]
        formulas = [Composition(crystal_id.rsplit("-", 1)[1]).anonymized_formula for crystal_id in ids]
        return set(zip(formulas, crystals.properties["spacegroup_number"].tolist(), strict=True))

    for a, b in combinations(splits, 2):
        # The element O2 and the like: pymatgen writes molecules, but one kind of atom is one kind of atom.
        assert not anonymous(a) & anonymous(b)


def test_held_out_crystals_have_no_counterpart_in_training(splits: Splits) -> None:
    """A seeded sample of held-out crystals against training crystals of the same anonymised formula and size."""
    _, train = splits["train"]
    _, held_out = sample(splits["test"][1], 30)
    sizes = train.num_atoms
    matcher = StructureMatcher(primitive_cell=False)
    compared = 0
    for structure in held_out.to_structure():
        candidates = torch.nonzero(sizes == len(structure)).flatten()
        chosen, _ = sample(train[candidates], 15)
        for other in train[candidates[chosen]].to_structure():
            if other.composition.anonymized_formula == structure.composition.anonymized_formula:
                compared += 1
                assert not matcher.fit_anonymous(structure, other)
    assert compared > 20


def test_near_identical_prototypes_are_one_family(by_name: dict[str, Prototype]) -> None:
    cubic, tetragonal = by_name["AB3C_cP5_221_a_c_b"], by_name["A3BC_tP5_99_bc_a_b"]
    assert cubic.spacegroup_number != tetragonal.spacegroup_number
    assert cubic.family == tetragonal.family
    assert by_name["AB_cF8_225_a_b"].family != by_name["AB_cF8_216_c_a"].family


# ---- deterministic --------------------------------------------------------------------------------------------------

DIGEST = """
import hashlib
from crystalvae.data.prototypes.build import build_prototypes
print(hashlib.sha256(repr({k: v[0] for k, v in build_prototypes(3, 200, 4).items()}).encode()).hexdigest())
"""


def test_same_seed_same_crystals_whatever_the_hash_seed() -> None:
    here = {name: ids for name, (ids, _) in build_prototypes(3, 200, 4).items()}
    run = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == hashlib.sha256(repr(here).encode()).hexdigest()


def test_another_seed_gives_other_crystals_and_splits() -> None:
    a, b = build_prototypes(0, 200, 4), build_prototypes(1, 200, 4)
    assert set(a["train"][0]) != set(b["train"][0])
    again = build_prototypes(0, 200, 4)
    for name in a:
        assert a[name][0] == again[name][0]
        assert torch.equal(a[name][1].lattices, again[name][1].lattices)
        assert torch.equal(a[name][1].frac_coords, again[name][1].frac_coords)


def test_impossible_requests_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"num_crystals=10000000.*ask for fewer crystals or allow more atoms"):
        build_prototypes(num_crystals=10_000_000)
    with pytest.raises(ConfigError, match=r"num_crystals=0.*expected at least 3"):
        build_prototypes(num_crystals=0)
    with pytest.raises(ConfigError, match="max_atoms"):
        build_prototypes(max_atoms=0)


# ---- the substitution -----------------------------------------------------------------------------------------------


def test_contacts_are_the_shortest_distances(by_name: dict[str, Prototype]) -> None:
    rock_salt = by_name["AB_cF8_225_a_b"]
    a = 2 ** (1 / 2) * np.linalg.norm(rock_salt.lattice[0])
    np.testing.assert_allclose(rock_salt.contacts.shortest, a * np.array([[0.5**0.5, 0.5], [0.5, 0.5**0.5]]), rtol=1e-5)
    assert rock_salt.contacts.bonds[0, 0] == rock_salt.contacts.bonds[1, 1] == 0
    assert rock_salt.contacts.bonds[0, 1] == rock_salt.contacts.bonds[1, 0] == 6


def test_the_cell_follows_the_ionic_radii(by_name: dict[str, Prototype]) -> None:
    """Potassium for sodium: (r(K+) + r(Cl-)) / (r(Na+) + r(Cl-)) with Shannon's 1.52, 1.16 and 1.67 Å."""
    rock_salt = by_name["AB_cF8_225_a_b"]
    assert rock_salt.elements.tolist() == [11, 17]
    assert rock_salt.charges == (1, -1)
    scale, fits = fit_cells(rock_salt.contacts, rock_salt.elements, np.array([[11, 17], [19, 17]]), (1, -1))
    np.testing.assert_allclose(scale, [1.0, (1.52 + 1.67) / (1.16 + 1.67)], rtol=1e-6)
    assert fits.all()


def test_who_may_replace_whom() -> None:
    def symbols(number: int, charge: int | None) -> set[str]:
        return {Element.from_Z(entry).symbol for entry in substitutes(number, charge)}

    assert {"Li", "K", "Rb", "Cs", "Ag"} < symbols(11, 1)
    assert not {"Mg", "H", "Ar", "Fr"} & symbols(11, 1)
    assert symbols(8, -2) == {"O", "S", "Se", "Te"}
    assert {"Ni", "Co", "Mg"} <= symbols(29, None)
    assert symbols(1, None) == {"H"}
    assert all(number <= 92 for entry in range(1, 93) for number in substitutes(entry, None))


def test_contacts_see_periodic_images() -> None:
    from pymatgen.core import Lattice, Structure

    structure = Structure(Lattice.orthorhombic(3.0, 5.0, 5.5), ["Fe"], [[0.1, 0.2, 0.3]])
    contacts = find_contacts(structure, np.zeros(1, dtype=np.int64), np.array([26]), None)
    assert contacts.shortest[0, 0] == pytest.approx(3.0)


@pytest.mark.mp20
def test_volumes_are_those_of_real_crystals(everything: tuple[list[str], CrystalBatch], mp20_dir: Path) -> None:
    """Substituted crystals against MP-20 crystals of the same formula and space group (another polymorph, at times)."""
    columns = ["pretty_formula", "spacegroup.number", "cif"]
    table = pd.read_csv(mp20_dir / "val.csv", usecols=columns)
    real: dict[tuple[str, int], list[float]] = {}
    for formula, number, cif in zip(*(table[name] for name in columns), strict=True):
        (volume,) = re.findall(r"_cell_volume\s+([\d.]+)", cif)
        (cell,) = re.findall(r"_chemical_formula_sum\s+'?([^'\n]+)", cif)
        real.setdefault((formula, number), []).append(float(volume) / Composition(cell).num_atoms)
    ids, crystals = everything
    volumes, numbers = crystals.properties["volume_per_atom"], crystals.properties["spacegroup_number"]
    errors = []
    for i, crystal_id in enumerate(ids):
        known = real.get((crystal_id.rsplit("-", 1)[1], int(numbers[i])))
        if known:
            errors.append(min((float(np.log(float(volumes[i]) / value)) for value in known), key=abs))
    assert len(errors) > 50
    assert abs(float(np.median(errors))) < 0.05
    assert float(np.mean(np.abs(errors))) < 0.15
