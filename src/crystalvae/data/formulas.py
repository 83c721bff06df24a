"""Chemical formulas and masses of cells, from atomic numbers."""

from __future__ import annotations

import warnings
from collections import Counter
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

GRAM_PER_CM3 = 1.66053906660
"""One dalton per Å^3 in g/cm^3 (CODATA 2018)."""


def formulas_and_masses(
    numbers: Int[np.ndarray, "N"], counts: Int[np.ndarray, "B"]
) -> tuple[list[str], Float[np.ndarray, "B"]]:
    """Return reduced formulas (pymatgen's convention) and masses per cell in daltons of crystals of `counts` atoms.

    A formula with unknown elements (0, or above 118) is not reduced, ends with X and their number, and its mass is that
    of the rest.
    """
    formulas, masses = [], np.full(len(counts), np.nan)
    for i, atoms in enumerate(np.split(numbers, np.cumsum(counts))[:-1]):
        formula, masses[i] = formula_and_mass(tuple(np.sort(atoms).tolist()))
        formulas.append(formula)
    return formulas, masses


@lru_cache(maxsize=100_000)
def formula_and_mass(numbers: tuple[int, ...]) -> tuple[str, float]:
    """Return formula and mass of one cell, see `formulas_and_masses`; `numbers` are its atomic numbers in order."""
    from pymatgen.core import Composition, Element

    amounts = Counter(numbers)
    named = {Element.from_Z(z): amount for z, amount in amounts.items() if 1 <= z <= 118}
    composition = Composition(named)
    unknown = len(numbers) - sum(named.values())
    with warnings.catch_warnings():  # pymatgen sorts by electronegativity, and warns of noble gases
        warnings.filterwarnings("ignore", message="No Pauling electronegativity")
        formula = composition.reduced_formula if named and not unknown else composition.formula.replace(" ", "")
    return formula + (f"X{unknown}" if unknown else ""), float(composition.weight)
