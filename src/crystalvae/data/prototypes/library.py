"""AFLOW's library of crystal prototypes, as it ships inside pymatgen, in Niggli cells and grouped into families.

Source: Mehl et al., "The AFLOW Library of Crystallographic Prototypes: Part 1", Comput. Mater. Sci. 136 (2017) S1.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from crystalvae.data.batch import MAX_ATOMIC_NUMBER
from crystalvae.data.cif import CrystalError, RawCrystal, niggli_reduce
from crystalvae.data.lattice import lattice_from_parameters, lattice_to_parameters, wrap
from crystalvae.data.prototypes.substitution import MAX_CONTACT, MIN_CONTACT, Contacts, find_contacts, guess_charges

if TYPE_CHECKING:
    from pymatgen.core import Structure

SYMPREC = 0.01
SLIPS = {
    "AB_tP4_131_c_e": "PtS with the cell length of its C-centred setting: 37 Å^3 per atom instead of 18",
    "AB_hR2_166_a_b": "CuPt in a cell half as large again as the real one: 21 Å^3 per atom instead of 14",
}
"""Entries of the library whose cells are plainly not those of the crystals they name; they are left out."""
PATIENCE = 3.0
"""Seconds after which a progress bar appears."""


@dataclass(frozen=True, eq=False)
class Prototype:
    """A parent crystal in its primitive Niggli cell: n atoms of S elements, atom i of `elements[species[i]]`.

    `family` numbers the crystals' families: those with the same anonymised formula and space group, and those that
    `StructureMatcher` takes for one structure. `twins` numbers only the latter: two of them with the same formula are
    the same crystal. `charges` are oxidation states, None where the crystal is not plainly ionic.
    """

    name: str
    frac_coords: Float[np.ndarray, "n 3"]
    lattice: Float[np.ndarray, "3 3"]
    species: Int[np.ndarray, "n"]
    elements: Int[np.ndarray, "S"]
    spacegroup_number: int
    charges: tuple[int, ...] | None
    contacts: Contacts
    family: int
    twins: int

    @property
    def counts(self) -> Int[np.ndarray, "S"]:
        """Atoms of each element in the cell."""
        return np.bincount(self.species, minlength=len(self.elements))

    @property
    def volume(self) -> float:
        """Cell volume in Å^3."""
        return float(abs(np.linalg.det(self.lattice)))


@lru_cache(maxsize=4)
def load_prototypes(max_atoms: int) -> tuple[Prototype, ...]:
    """Read the AFLOW prototypes with at most `max_atoms` atoms in the primitive cell, in the library's order."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
    from pymatgen.core import Element, Structure

    labels = Counter(entry["tags"]["aflow"] for entry in AFLOW_PROTOTYPE_LIBRARY)
    parents: list[tuple[str, Structure, int]] = []
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure
        label = entry["tags"]["aflow"]
        if label in SLIPS or not structure.is_ordered or max(structure.atomic_numbers) > MAX_ATOMIC_NUMBER:
            continue
        name = f"{label}.{structure.composition.reduced_formula}" if labels[label] > 1 else label
        found = _primitive_niggli(structure)
        if found is not None and len(found[0].numbers) <= max_atoms:
            crystal, spacegroup_number = found
            parents.append(
                (name, Structure(crystal.lattice, crystal.numbers.tolist(), crystal.frac_coords), spacegroup_number)
            )
    families, twins = _group([structure for _, structure, _ in parents], [number for _, _, number in parents])
    prototypes = []
    for i, (name, structure, spacegroup_number) in enumerate(parents):
        elements, species = np.unique(structure.atomic_numbers, return_inverse=True)
        charges = guess_charges(structure, [Element.from_Z(int(number)) for number in elements])
        contacts = find_contacts(structure, species, elements, charges)
        if not MIN_CONTACT <= contacts.relative(elements[None])[0] <= MAX_CONTACT:
            continue  # a slip in the library, or atoms for which covalent radii say nothing
        prototypes.append(
            Prototype(
                name=name,
                frac_coords=structure.frac_coords,
                lattice=structure.lattice.matrix,
                species=species,
                elements=elements,
                spacegroup_number=spacegroup_number,
                charges=charges,
                contacts=contacts,
                family=families[i],
                twins=twins[i],
            )
        )
    return tuple(prototypes)


def _primitive_niggli(structure: Structure) -> tuple[RawCrystal, int] | None:
    """Return the primitive Niggli cell, rebuilt from its parameters, and the number of the space group."""
    import spglib

    cell = (structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), list(structure.atomic_numbers))
    primitive = spglib.find_primitive(cell, symprec=SYMPREC)
    symmetry = spglib.get_symmetry_dataset(cell, symprec=SYMPREC)
    if primitive is None or symmetry is None:
        return None
    lattice, frac_coords, numbers = primitive
    (reduced,) = niggli_reduce([RawCrystal(np.asarray(numbers), np.asarray(frac_coords), np.asarray(lattice))])
    if isinstance(reduced, CrystalError):
        return None
    lattice, frac_coords = reduced.lattice, reduced.frac_coords
    if np.linalg.det(lattice) < 0:  # the same vectors the other way round: a right-handed cell of the same crystal
        lattice, frac_coords = -lattice, -frac_coords
    rebuilt = lattice_from_parameters(*lattice_to_parameters(torch.from_numpy(lattice)))
    coords = wrap(torch.from_numpy(frac_coords))
    return RawCrystal(reduced.numbers, coords.numpy(), rebuilt.numpy()), int(symmetry.number)


def _group(structures: Sequence[Structure], spacegroup_numbers: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the family and the twins of each structure; see `Prototype`."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher()
    reduced = [entry.get_reduced_structure().get_primitive_structure() for entry in structures]
    formulas = [entry.composition.anonymized_formula for entry in structures]
    families, twins = list(range(len(structures))), list(range(len(structures)))
    pairs = [(i, j) for i, j in combinations(range(len(structures)), 2) if formulas[i] == formulas[j]]
    for i, j in _show_if_slow(pairs, "Comparing crystal prototypes"):
        match = len(reduced[i]) == len(reduced[j]) and matcher.fit_anonymous(
            reduced[i], reduced[j], skip_structure_reduction=True
        )
        if match:
            _merge(twins, i, j)
        if match or spacegroup_numbers[i] == spacegroup_numbers[j]:
            _merge(families, i, j)
    return families, twins


def _show_if_slow(items: Sequence[tuple[int, int]], description: str) -> Iterator[tuple[int, int]]:
    """Yield the items, with a progress bar from `PATIENCE` seconds on."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    start = time.monotonic()
    progress = Progress(console=console, transient=True, disable=not (console.is_terminal or console.is_jupyter))
    try:
        for done, item in enumerate(items):
            if not progress.tasks and time.monotonic() - start > PATIENCE:
                progress.start()
                progress.add_task(description, total=len(items), completed=done)
            yield item
            for task in progress.tasks:
                progress.advance(task.id)
    finally:
        progress.stop()


def _merge(groups: list[int], i: int, j: int) -> None:
    low, high = sorted((groups[i], groups[j]))
    groups[:] = [low if group == high else group for group in groups]
