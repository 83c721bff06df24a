"""Chemically sensible substitution: which element may stand in for which, and the cell that then fits the bonds.

A crystal keeps its fractional coordinates and is rescaled isotropically, so all that geometry can say about a
substituted crystal follows from the shortest contact and the bonds between each pair of elements of its parent.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from ase.data import covalent_radii
from jaxtyping import Bool, Float, Int

from crystalvae.data.formulas import GRAM_PER_CM3

if TYPE_CHECKING:
    from pymatgen.core import Element, Structure

MIN_CONTACT = 0.7
"""Smallest distance between two atoms, in units of the sum of their covalent radii."""
MAX_CONTACT = 1.4
"""Largest value of the shortest of these distances; a crystal beyond it is a gas."""
MAX_STRAIN = 0.1
"""Largest relative misfit of any kind of bond to the radii after the isotropic rescaling."""
SCALE_RANGE = (0.65, 1.6)
"""How much shorter or longer than in the parent bonds may become."""
DENSITY_RANGE = (0.3, 23.0)
"""Densities outside this range (g/cm^3) are taken as absurd; lithium has 0.53, osmium 22.6."""
VOLUME_RANGE = (3.0, 80.0)
"""Volumes per atom outside this range (Å^3) are taken as absurd; caesium has about 115 and is left out."""
CUTOFF = 6.0
"""Contacts are looked for up to this distance (Å); nothing longer can break `MIN_CONTACT` after the rescaling."""
BOND_SHELL = 1.2
"""Contacts up to this multiple of an atom's shortest one (in units of covalent radii) are its bonds."""
EXCLUDED = ("Po", "At", "Fr", "Ra", "Ac", "Pa")
"""Elements up to uranium that form next to no known crystals of their own; all beyond uranium are left out too."""
LARGEST_CHARGE = 8
METALLIC_TIN = 1.62
"""Metallic radius of tin in Å, which pymatgen lacks (Wells, Structural Inorganic Chemistry, 5th ed. 1984)."""
CARBON_STATES = (-4, 4)
"""pymatgen lists all states from -4 to 4 as common for carbon; these are the ones its ionic crystals have."""


@dataclass(frozen=True)
class Contacts:
    """Distances between the S elements of a crystal: shortest (S, S) in Å, inf where none, and bonds counted (S, S)."""

    shortest: Float[np.ndarray, "S S"]
    bonds: Float[np.ndarray, "S S"]

    def relative(self, numbers: Int[np.ndarray, "K S"]) -> Float[np.ndarray, "K"]:
        """Return for K choices of elements the shortest distance in units of the sum of their covalent radii."""
        radii = element_table().covalent_radius[numbers]
        return (self.shortest / (radii[:, :, None] + radii[:, None])).min(axis=(1, 2))


@dataclass(frozen=True)
class ElementTable:
    """Data by atomic number, 0..Z: NaN radii (Å) where unknown; ionic radii have charge + `LARGEST_CHARGE` as column.

    Atomic radii are metallic ones for metals and Slater's for the rest, chosen by comparison with MP-20: over the 616
    substituted crystals without charges that have an MP-20 crystal of their formula and space group, and that all
    three choices accept, volumes are off by 8 % on average; with Slater's alone by 14 %, with covalent radii by 15 %.
    """

    atomic_radius: Float[np.ndarray, "Z"]
    ionic_radius: Float[np.ndarray, "Z Q"]
    covalent_radius: Float[np.ndarray, "Z"]
    electronegativity: Float[np.ndarray, "Z"]
    mass: Float[np.ndarray, "Z"]
    usable: Bool[np.ndarray, "Z"]


@cache
def element_table() -> ElementTable:
    """Collect what the substitution needs from pymatgen's periodic table."""
    from pymatgen.core import Element

    size = 100
    table = ElementTable(
        atomic_radius=np.full(size, np.nan),
        ionic_radius=np.full((size, 2 * LARGEST_CHARGE + 1), np.nan),
        covalent_radius=np.asarray(covalent_radii[:size], dtype=np.float64),
        electronegativity=np.full(size, np.nan),
        mass=np.full(size, np.nan),
        usable=np.zeros(size, dtype=bool),
    )
    for number in range(1, size):
        element = Element.from_Z(number)
        table.mass[number] = float(element.atomic_mass)
        table.atomic_radius[number] = _atomic_radius(element)
        if not element.is_noble_gas:
            table.electronegativity[number] = element.X
        for charge in states(element):
            table.ionic_radius[number, charge + LARGEST_CHARGE] = _ionic_radius(element, charge)
        known = np.isfinite(table.atomic_radius[number])
        table.usable[number] = known and number <= 92 and not element.is_noble_gas and element.symbol not in EXCLUDED
    return table


def states(element: Element) -> tuple[int, ...]:
    """Return the oxidation states in which an element is known in crystals."""
    if element.symbol == "C":
        return CARBON_STATES
    return tuple(sorted({*element.common_oxidation_states, *element.icsd_oxidation_states} - {0}))


def _common_states(element: Element) -> tuple[int, ...]:
    return CARBON_STATES if element.symbol == "C" else element.common_oxidation_states


def _atomic_radius(element: Element) -> float:
    if element.symbol == "Sn":
        return METALLIC_TIN
    with warnings.catch_warnings():  # a few metals have no metallic radius, noble gases have none at all
        warnings.filterwarnings("ignore", message="No data available for metallic_radius", category=UserWarning)
        radius = (element.metallic_radius if element.is_metal else None) or element.atomic_radius
    return float("nan") if radius is None else float(radius)


def _ionic_radius(element: Element, charge: int) -> float:
    from pymatgen.core import Species

    with warnings.catch_warnings():  # pymatgen says which spin state it takes, and where it has no radius
        warnings.filterwarnings("ignore", message="No default ionic radius|No ionic radius", category=UserWarning)
        radius = Species(element.symbol, charge).ionic_radius
    return float("nan") if radius is None else float(radius)


def guess_charges(structure: Structure, elements: list[Element]) -> tuple[int, ...] | None:
    """Return the oxidation state of each element where the crystal is plainly ionic, else None.

    One whole state per element, balanced, and the anions the more electronegative ones; pymatgen's likeliest guess
    first, then what the common states allow.
    """
    counts = np.array([structure.composition[element] for element in elements])
    likely = structure.composition.reduced_composition.oxi_state_guesses(max_sites=-1)[:1]
    guesses = [tuple(float(guess[element.symbol]) for element in elements) for guess in likely]
    for charges in (*guesses, *product(*map(_common_states, elements))):
        known = [
            charge in (states(element) if element.is_metal else _common_states(element))
            for charge, element in zip(charges, elements, strict=True)
        ]
        if all(known) and 0 not in charges and np.dot(charges, counts) == 0:
            numbers = np.array([[element.Z for element in elements]])
            if _anions_are_electronegative(numbers, np.array(charges))[0]:
                return tuple(int(charge) for charge in charges)
    return None


def _anions_are_electronegative(
    numbers: Int[np.ndarray, "K S"], charges: Float[np.ndarray, "S"] | Int[np.ndarray, "S"]
) -> Bool[np.ndarray, "K"]:
    values = element_table().electronegativity[numbers]
    return values[:, charges > 0].max(axis=1) < values[:, charges < 0].min(axis=1)


@cache
def substitutes(number: int, charge: int | None) -> tuple[int, ...]:
    """Return the atomic numbers that may replace an element, itself included where it is usable.

    With a charge: elements for which that state is common, and those of the same group that are known in it, cations
    only where Shannon has a radius for them (tin(II) is nothing like its atom). Without a charge (metals, alloys,
    elements): those of the same group, and metals for metals where they share a common state.
    Hydrogen is replaced by nothing and replaces nothing: no table of radii fits both its ions and its atoms.
    """
    from pymatgen.core import Element

    table, parent = element_table(), Element.from_Z(number)
    if parent.symbol == "H":
        return (number,)
    found = []
    for candidate in range(2, 93):
        element = Element.from_Z(candidate)
        same_group = element.group == parent.group
        if not table.usable[candidate]:
            continue
        if charge is not None:
            has_radius = bool(np.isfinite(table.ionic_radius[candidate, charge + LARGEST_CHARGE]))
            common = charge in _common_states(element) or (same_group and charge in states(element))
            fits = common and (charge < 0 or has_radius)
        else:
            shared = set(_common_states(element)) & set(_common_states(parent))
            fits = same_group or (element.is_metal and parent.is_metal and bool(shared))
        if fits or candidate == number:
            found.append(candidate)
    return tuple(found)


def find_contacts(
    structure: Structure,
    species: Int[np.ndarray, "n"],
    elements: Int[np.ndarray, "S"],
    charges: tuple[int, ...] | None,
) -> Contacts:
    """Measure the contacts of a crystal whose atom i is of element `elements[species[i]]`, all images included.

    Bonds are an atom's contacts up to `BOND_SHELL` times its shortest; with charges, those between opposite ones only.
    """
    count = len(elements)
    centres, neighbours, _, distances = structure.get_neighbor_list(CUTOFF, exclude_self=True)
    pairs = species[centres], species[neighbours]
    shortest = np.full((count, count), np.inf)
    np.minimum.at(shortest, pairs, distances)
    radii = element_table().covalent_radius[elements]
    relative = distances / (radii[pairs[0]] + radii[pairs[1]])
    if charges is not None:
        signs = np.sign(charges)
        relative = np.where(signs[pairs[0]] != signs[pairs[1]], relative, np.inf)
    nearest = np.full(len(species), np.inf)
    np.minimum.at(nearest, centres, relative)
    bonded = np.isfinite(relative) & (relative <= BOND_SHELL * nearest[centres])
    bonds = np.zeros((count, count))
    np.add.at(bonds, pairs, bonded.astype(np.float64))
    return Contacts(shortest, (bonds + bonds.T) / 2)


def fit_cells(
    contacts: Contacts,
    parent: Int[np.ndarray, "S"],
    assignments: Int[np.ndarray, "K S"],
    charges: tuple[int, ...] | None,
) -> tuple[Float[np.ndarray, "K"], Bool[np.ndarray, "K"]]:
    """Return for K substitutions how much longer the cell must be, and whether every kind of bond then fits.

    The factor is that of the bonds' radii: Σ_bonds (r'_i + r'_j) / Σ_bonds (r_i + r_j), with Shannon's ionic radii
    where all of both crystals are known, else with atomic radii.
    """
    table = element_table()
    scale, fits = _scale(contacts, table.atomic_radius[parent], table.atomic_radius[assignments])
    if charges is None:
        return scale, fits
    columns = np.array(charges) + LARGEST_CHARGE
    scale_ionic, fits_ionic = _scale(
        contacts, table.ionic_radius[parent, columns], table.ionic_radius[assignments, columns]
    )
    known = np.isfinite(scale_ionic)
    return np.where(known, scale_ionic, scale), np.where(known, fits_ionic, fits)


def _scale(
    contacts: Contacts, parent: Float[np.ndarray, "S"], radii: Float[np.ndarray, "K S"]
) -> tuple[Float[np.ndarray, "K"], Bool[np.ndarray, "K"]]:
    before = parent[:, None] + parent[None]
    after = radii[:, :, None] + radii[:, None]
    scale = (contacts.bonds * after).sum(axis=(1, 2)) / (contacts.bonds * before).sum()
    strain = np.abs(scale[:, None, None] * before / after - 1.0)
    bonded = contacts.bonds > 0
    fits = np.where(bonded, strain, 0.0).max(axis=(1, 2)) <= MAX_STRAIN
    return scale, fits & (scale >= SCALE_RANGE[0]) & (scale <= SCALE_RANGE[1])


def densities(
    numbers: Int[np.ndarray, "K S"], counts: Int[np.ndarray, "S"], volumes: Float[np.ndarray, "K"]
) -> Float[np.ndarray, "K"]:
    """Return densities in g/cm^3 of cells with `counts` atoms of each element and volumes in Å^3."""
    return element_table().mass[numbers] @ counts / volumes * GRAM_PER_CM3


def are_valid(
    contacts: Contacts,
    assignments: Int[np.ndarray, "K S"],
    counts: Int[np.ndarray, "S"],
    volumes: Float[np.ndarray, "K"],
    scale: Float[np.ndarray, "K"],
    charges: tuple[int, ...] | None,
) -> Bool[np.ndarray, "K"]:
    """Say which substituted crystals make sense: elements distinct, contacts, density and charges as they should be."""
    shortest = scale * contacts.relative(assignments)
    ordered = np.sort(assignments, axis=1)
    valid = (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
    valid &= (shortest >= MIN_CONTACT) & (shortest <= MAX_CONTACT)
    for values, (low, high) in (
        (densities(assignments, counts, volumes), DENSITY_RANGE),
        (volumes / counts.sum(), VOLUME_RANGE),
    ):
        valid &= (values >= low) & (values <= high)
    if charges is not None:
        if np.dot(charges, counts) != 0:
            raise ValueError(f"oxidation states {charges} of {counts} atoms are not balanced")
        valid &= _anions_are_electronegative(assignments, np.array(charges))
    return valid
