"""Reduced formulas and masses of many crystals, from plain arrays."""

from __future__ import annotations

import warnings

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
    from pymatgen.core import Composition, Element

    elements = {int(z): Element.from_Z(int(z)) for z in np.unique(numbers) if 1 <= z <= 118}
    seen: dict[bytes, tuple[str, float]] = {}
    formulas, masses = [], np.full(len(counts), np.nan)
    for i, atoms in enumerate(np.split(numbers, np.cumsum(counts))[:-1]):
        key = np.sort(atoms).tobytes()
        if key not in seen:
            amounts = {z: int((atoms == z).sum()) for z in dict.fromkeys(atoms.tolist())}
            named = {elements[z]: amount for z, amount in amounts.items() if z in elements}
            composition = Composition(named)
            unknown = sum(amount for z, amount in amounts.items() if z not in elements)
            with warnings.catch_warnings():  # pymatgen sorts by electronegativity, and warns of noble gases
                warnings.filterwarnings("ignore", message="No Pauling electronegativity")
                formula = composition.reduced_formula if named and not unknown else composition.formula.replace(" ", "")
            seen[key] = (formula + (f"X{unknown}" if unknown else ""), float(composition.weight))
        formulas.append(seen[key][0])
        masses[i] = seen[key][1]
    return formulas, masses
