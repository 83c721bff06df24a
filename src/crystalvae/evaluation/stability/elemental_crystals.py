"""Crystals of single elements, for hulls of data sets that have none of some element."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from crystalvae.data.batch import CrystalBatch

if TYPE_CHECKING:
    from pymatgen.core import Structure

ELEMENTS_VERSION = 1
MAX_ATOMS = 60
"""Of a prototype's cell; α-Mn has 29, T-50 boron 50, β-boron 105."""
COMMON = (
    ("A_cF4_225_a", "Cu"),
    ("A_hP2_194_c", "Mg"),
    ("A_cI2_229_a", "W"),
    ("A_hP4_194_ac", "La"),
    ("A_cF8_227_a", "C"),
    ("A_hR2_166_c", "As"),
    ("A_hP3_152_a", "Se"),
    ("A_oC8_64_f", "I"),
    ("A_cP8_205_c", "N"),
)
"""AFLOW's labels and the elements that name the structures tried for every element: fcc, hcp, bcc, double hcp, diamond,
grey arsenic, trigonal selenium, iodine's molecules, and those of cubic nitrogen."""
CUBIC_ANGSTROM_PER_CM3_PER_MOL = 1 / 0.602214076
"""Avogadro's constant (SI 2019) turned round: what a molar volume of 1 cm^3 is for one atom, in Å^3."""


def elemental_crystals(numbers: Sequence[int]) -> CrystalBatch:
    """Return crystals of each of these elements, from the AFLOW prototypes inside pymatgen (Mehl et al. 2017).

    For each element: the prototypes that are that element itself, as they are, and those of `COMMON`, in cells scaled
    to the element's molar volume. They are starting points: the lowest after relaxation stands for the element. For an
    element with no known molar volume only the former, which may be none.
    """
    structures = [structure for number in numbers for structure in _of_element(number)]
    return CrystalBatch.from_structures(structures)


def _of_element(number: int) -> list[Structure]:
    from pymatgen.core import Element

    element = Element.from_Z(number)
    prototypes = _prototypes()
    found = [structure.copy() for (_, symbol), structure in prototypes if symbol == element.symbol]
    volume = element.molar_volume
    if not volume:
        return found
    for label in COMMON:
        structure = next(candidate for key, candidate in prototypes if key == label).copy()
        structure.replace_species({label[1]: element.symbol})
        structure.scale_lattice(float(volume) * CUBIC_ANGSTROM_PER_CM3_PER_MOL * len(structure))
        found.append(structure)
    return found


@lru_cache(maxsize=1)
def _prototypes() -> tuple[tuple[tuple[str, str], Structure], ...]:
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
    from pymatgen.core import Structure

    found = []
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure
        symbols = {element.symbol for element in structure.composition.elements}
        if len(symbols) == 1 and structure.is_ordered and len(structure) <= MAX_ATOMS:
            symbol = symbols.pop()
            plain = Structure(structure.lattice, [symbol] * len(structure), structure.frac_coords)
            found.append(((entry["tags"]["aflow"], symbol), plain))
    return tuple(found)
