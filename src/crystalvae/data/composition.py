"""What crystals are made of: elements by formula or chemical system, their shares, and densities."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystalvae.data.batch import MAX_ATOMIC_NUMBER, CrystalBatch
from crystalvae.errors import ConfigError

MAX_UNIT = 1000
"""Most atoms of a formula unit."""
GRAM_PER_CM3 = 1.66053906660
"""One dalton per Å^3 in g/cm^3 (CODATA 2018)."""


def element_fractions(crystals: CrystalBatch) -> Float[Tensor, "B E"]:
    """Return the share of each element 0..99 among a crystal's atoms; NaN where an element is unknown (0)."""
    size = MAX_ATOMIC_NUMBER + 1
    amounts = torch.zeros(crystals.num_graphs, size, device=crystals.device)
    ones = torch.ones(crystals.num_nodes, device=crystals.device)
    amounts.index_put_((crystals.batch, crystals.atom_types), ones, accumulate=True)
    unknown = amounts[:, :1] > 0
    return (amounts / crystals.num_atoms[:, None]).masked_fill(unknown, torch.nan)


def densities(crystals: CrystalBatch) -> Float[Tensor, "B"]:
    """Return densities in g/cm^3; NaN where an element is unknown (0) or the cell has no volume."""
    masses = _masses().to(crystals.device)[crystals.atom_types]
    mass = torch.zeros(crystals.num_graphs, device=crystals.device).index_add(0, crystals.batch, masses)
    volumes = crystals.volumes.float()
    return torch.where(volumes > 0, mass / volumes * GRAM_PER_CM3, torch.nan)


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


@cache
def _masses() -> Float[Tensor, "E"]:
    from pymatgen.core import Element

    return torch.tensor([torch.nan, *(float(Element.from_Z(z).atomic_mass) for z in range(1, MAX_ATOMIC_NUMBER + 1))])


def parse_chemical_system(given: object, *, key: str = "chemical_system") -> list[int]:
    """Return atomic numbers for "Li-Mn-O" or a list of symbols or numbers; `ConfigError` names what is no element."""
    from pymatgen.core import Element

    if isinstance(given, (str, int)) and not isinstance(given, bool):
        entries = str(given).split("-")
    elif isinstance(given, Sequence):
        entries = list(given)
    else:
        raise ConfigError(f"{key}: got {given!r}; expected symbols such as Li-Mn-O, or a list of them")
    numbers = []
    for entry in entries:
        symbol = str(entry).strip()
        number = int(symbol) if symbol.isdigit() else Element(symbol).Z if Element.is_valid_symbol(symbol) else 0
        if not 1 <= number <= MAX_ATOMIC_NUMBER:
            raise ConfigError(f"{key}: {entry!r} is not an element; expected symbols such as Li-Mn-O")
        numbers.append(number)
    if not numbers:
        raise ConfigError(f"{key}: got no element; expected symbols such as Li-Mn-O")
    return sorted(set(numbers))


def parse_composition(formula: str, *, key: str = "composition") -> list[int]:
    """Return the atomic numbers of one formula unit; `ConfigError` for anything but whole numbers of known elements."""
    from pymatgen.core import Composition, Element

    if isinstance(formula, str) and re.search(r"[A-Za-z)\]]0(?!\.)", formula):
        raise ConfigError(f"{key}={formula}: an amount that starts with 0; is it the letter O, as in LiFePO4?")
    try:
        amounts = {str(symbol): amount for symbol, amount in Composition(formula, strict=True).items()}
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        if str(formula) in {"inf", "nan"}:  # Hydra reads InF and NaN as numbers
            reason = f"read as a number; quote it twice, as in {key}=\"'InF'\""
        raise ConfigError(
            f"{key}={formula}: not a chemical formula ({reason}); expected one such as LiFePO4"
        ) from error
    unit: list[int] = []
    for symbol, amount in amounts.items():
        if not Element.is_valid_symbol(symbol) or Element(symbol).Z > MAX_ATOMIC_NUMBER:
            raise ConfigError(f"{key}={formula}: unknown element {symbol}; expected H to Es")
        if not amount <= MAX_UNIT:
            raise ConfigError(f"{key}={formula}: {amount:g} atoms of {symbol}; expected 1 to {MAX_UNIT} atoms in all")
        if amount != round(amount) or amount < 1:
            raise ConfigError(f"{key}={formula}: {amount:g} atoms of {symbol}; expected whole numbers, at least 1")
        unit += [Element(symbol).Z] * round(amount)
    if not 1 <= len(unit) <= MAX_UNIT:
        raise ConfigError(f"{key}={formula}: {len(unit)} atoms; expected 1 to {MAX_UNIT}")
    return unit
