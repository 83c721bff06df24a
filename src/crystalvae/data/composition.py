"""What crystals are made of: elements by formula or chemical system, their shares, and densities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.data.batch import MAX_ATOMIC_NUMBER, CrystalBatch
from crystalvae.data.formulas import GRAM_PER_CM3
from crystalvae.errors import ConfigError

MAX_UNIT = 1000
"""Most atoms of a formula unit."""


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
