"""Compositional validity: can the elements be given oxidation states that add up to nothing?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError, EvaluationError
from crystalvae.evaluation.crystal_arrays import Composition, reduced_composition

OXIDATION_STATES = {
    "smact14": "oxidation_states_smact14",
    "icsd16": "oxidation_states_icsd16",
    "icsd24": "oxidation_states_icsd24",
    "pymatgen_sp": "oxidation_states_sp",
}
"""Names of SMACT's sets of oxidation states, and the attribute of `smact.Element` that holds each."""
PUBLISHED_STATES = "smact14"
"""The only default of SMACT before 3.0, and so the set of CDVAE, DiffCSP, FlowMM and MatterGen."""
MAX_COMBINATIONS = 10_000_000
"""DiffCSP's code calls a composition invalid that has more combinations of oxidation states than this."""
INSTALL = 'needs SMACT: pip install "SMACT>=4.0"'


@dataclass(frozen=True)
class CompositionCheck:
    """Whether a composition is valid, why not (empty where it is), and how many combinations of states could be tried.

    `combinations` is 0 where none had to be: single elements, metals, elements without states.
    """

    valid: bool
    reason: str
    combinations: int


@dataclass(frozen=True)
class _ElementStates:
    symbol: str
    electronegativity: float | None
    states: tuple[int, ...]
    metal: bool


def reduced_compositions(crystals: CrystalBatch) -> list[Composition]:
    """Return the reduced composition of each crystal; atoms of unknown elements keep their number, 0 included."""
    numbers, counts = crystals.atom_types.detach().cpu().numpy(), crystals.num_atoms.cpu().numpy()
    return [reduced_composition(atoms) for atoms in np.split(numbers, np.cumsum(counts)[:-1])] if len(counts) else []


def smact_installed() -> bool:
    """Say whether SMACT, which holds the oxidation states, is there."""
    return find_spec("smact") is not None


def smact_settings(oxidation_states: str = PUBLISHED_STATES) -> dict[str, object]:
    """Return what decides about compositional validity, for the output."""
    return {"oxidation_states": oxidation_states, "smact_version": version("SMACT")}


def check_compositions(
    compositions: Sequence[Composition], *, oxidation_states: str = PUBLISHED_STATES
) -> list[CompositionCheck]:
    """Return for each composition whether it is charge neutral and fits the electronegativities.

    The test is that of CDVAE's code (Xie et al. 2022; charge neutrality and the Pauling criterion of SMACT, Davies et
    al. 2016): single elements pass, and so do compositions of nothing but SMACT's metals. Others pass if there is one
    oxidation state for each element such that the charges add up to zero and every cation is less electronegative than
    every anion. Compositions with an element that has no oxidation state in the set, or without an electronegativity,
    do not pass.

    Raises `ConfigError` for an unknown set of oxidation states, `EvaluationError` where SMACT is not installed.
    """
    if oxidation_states not in OXIDATION_STATES:
        raise ConfigError(
            f"oxidation_states={oxidation_states!r}: expected one of SMACT's sets, {', '.join(OXIDATION_STATES)}"
        )
    if not smact_installed():
        raise EvaluationError(f"compositional validity {INSTALL}")
    return [_check(composition, oxidation_states) for composition in compositions]


@lru_cache(maxsize=200_000)
def _check(composition: Composition, oxidation_states: str) -> CompositionCheck:
    if not composition:
        return CompositionCheck(valid=False, reason="no atoms", combinations=0)
    found = [_element(number, oxidation_states) for number, _ in composition]
    elements = [element for element in found if element is not None]
    if len(elements) < len(found):
        unknown = ", ".join(str(z) for (z, _), element in zip(composition, found, strict=True) if element is None)
        return CompositionCheck(valid=False, reason=f"atomic number {unknown} unknown to SMACT", combinations=0)
    if len(elements) == 1 or all(element.metal for element in elements):
        return CompositionCheck(valid=True, reason="", combinations=0)
    lacking = [element.symbol for element in elements if not element.states or element.electronegativity is None]
    if lacking:
        reason = f"no oxidation states or no electronegativity for {', '.join(lacking)}"
        return CompositionCheck(valid=False, reason=reason, combinations=0)
    combinations = math.prod(len(element.states) for element in elements)
    if _balanced(elements, [count for _, count in composition]):
        return CompositionCheck(valid=True, reason="", combinations=combinations)
    return CompositionCheck(valid=False, reason="no neutral combination of oxidation states", combinations=combinations)


def _balanced(elements: Sequence[_ElementStates], counts: Sequence[int]) -> bool:
    """Say whether some choice of one state for each element is neutral and fits the electronegativities.

    Such a choice has an electronegativity below which no element is an anion and from which on none is a cation. For
    each such cut the charges that either side can reach are kept as the bits of an integer, so the time grows with the
    number of elements instead of with the number of combinations (twelve elements have 10^10 of them).
    """
    for cut in [*sorted({element.electronegativity or 0.0 for element in elements}), math.inf]:
        positive, negative = 1, 1
        for element, count in zip(elements, counts, strict=True):
            if (element.electronegativity or 0.0) < cut:
                positive = _reach(positive, [count * state for state in element.states if state >= 0])
            else:
                negative = _reach(negative, [-count * state for state in element.states if state <= 0])
        if positive & negative:
            return True
    return False


def _reach(charges: int, steps: Sequence[int]) -> int:
    reached = 0
    for step in steps:
        reached |= charges << step
    return reached


@lru_cache(maxsize=1000)
def _element(number: int, oxidation_states: str) -> _ElementStates | None:
    from pymatgen.core import Element

    if not 1 <= number <= 118:
        return None
    symbol = Element.from_Z(number).symbol
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import smact

        try:
            element = smact.Element(symbol)
        except (KeyError, NameError):  # SMACT's own tables end with lawrencium
            return None
    states = getattr(element, OXIDATION_STATES[oxidation_states]) or []
    return _ElementStates(
        symbol=symbol,
        electronegativity=element.pauling_eneg,
        states=tuple(int(state) for state in states),
        metal=symbol in smact.metals,
    )
