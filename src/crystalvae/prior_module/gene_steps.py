"""A gene written down step by step, and what may come at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache, lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crystalvae.data.batch import MAX_ATOMIC_NUMBER
from crystalvae.data.canonical import element_order
from crystalvae.data.symmetric.space_groups import NUM_SPACE_GROUPS
from crystalvae.data.symmetric.tables import MAX_SITES
from crystalvae.errors import ConfigError
from crystalvae.prior_module.asked_symmetry import letters
from crystalvae.prior_module.genes import Gene
from crystalvae.prior_module.reachability import (
    fits,
    multiplicities,
    next_sites,
    next_sites_of_formula,
    occupied,
    sites_fit,
    sites_fit_formula,
    sites_left,
    sums,
)

Formula = tuple[tuple[int, int], ...]
"""(atomic number, number of atoms) in the primitive cell, in the order of `element_order`."""


@cache
def ranks() -> list[int]:
    """Return the place of each atomic number in `element_order`."""
    return element_order().tolist()


def formula_of(atomic_numbers: Sequence[int]) -> Formula:
    """Count the elements of atoms, in order."""
    order = ranks()
    return tuple(sorted(((z, list(atomic_numbers).count(z)) for z in set(atomic_numbers)), key=lambda e: order[e[0]]))


@dataclass(frozen=True)
class Wanted:
    """What one gene must be: atoms in the primitive cell, or a formula; space groups; elements.

    Of `elements` (in order, () for any) all must occur unless `subsystems`. `sites`, in order, are those of all orbits,
    for one space group; () for any.
    """

    num_atoms: int
    formula: Formula = ()
    space_groups: frozenset[int] = field(default_factory=frozenset)
    elements: tuple[int, ...] = ()
    subsystems: bool = False
    sites: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.sites and len(self.space_groups) != 1:
            raise ConfigError(f"gene: sites {self.sites} are of one space group, got {len(self.space_groups)}")
        if self.formula and sum(count for _, count in self.formula) != self.num_atoms:
            raise ConfigError(f"gene: formula {self.formula} does not have {self.num_atoms} atoms")

    @property
    def required(self) -> int:
        """Number of elements that must occur, in their order."""
        return 0 if self.subsystems else len(self.elements)

    def groups(self) -> list[int]:
        """Return the space groups in which it is possible."""
        asked = self.space_groups or range(1, NUM_SPACE_GROUPS + 1)
        return [group for group in asked if self._fits(group)]

    def _fits(self, group: int) -> bool:
        if self.sites:
            sizes = multiplicities(group)
            same = self.sites[-1] < len(sizes) and sum(sizes[site] for site in self.sites) == self.num_atoms
            return same and bool(State.start(self, group).choices())
        if self.formula:
            return fits(group, 0, 0, tuple(sorted(count for _, count in self.formula)))
        size = max(32, 1 << self.num_atoms.bit_length())
        return bool(sums(group, 0, 0, self.required, size) >> self.num_atoms & 1)


@dataclass(frozen=True)
class State:
    """A gene in the making: what was put down so far, and what that leaves.

    `need` is how many atoms the current element still lacks where there is a formula, `place` its number in the formula
    or in the list of elements that must occur.
    """

    wanted: Wanted
    group: int
    pairs: tuple[tuple[int, int], ...] = ()
    used: int = 0
    left: int = 0
    need: int = 0
    place: int = -1

    @classmethod
    def start(cls, wanted: Wanted, group: int) -> State:
        """Return the state after the space group."""
        return cls(wanted, group, left=wanted.num_atoms)

    @property
    def gene(self) -> Gene:
        """What was put down."""
        return self.group, self.pairs

    @property
    def sizes(self) -> list[int]:
        """Numbers of atoms in the orbits so far."""
        return [multiplicities(self.group)[site] for _, site in self.pairs]

    def choices(self) -> dict[int, int]:
        """Return the elements that may come next, and for each the set of sites that it may be put on."""
        found = self._choices()
        if not self.wanted.sites:
            return found
        kept = {element: self._of_asked_sites(element, sites) for element, sites in found.items()}
        return {element: sites for element, sites in kept.items() if sites}

    def _of_asked_sites(self, element: int, sites: int) -> int:
        """Return those of a set of sites that an element may come on, so that all sites asked for are used."""
        left = sites_left(self.wanted.sites, [site for _, site in self.pairs])
        new = not self.pairs or self.pairs[-1][0] != element
        place = self.place + new
        allowed = 0
        for site in set(left):
            if not sites >> site & 1:
                continue
            after = sites_left(left, [site])
            if self.wanted.formula:
                need = (self.wanted.formula[place][1] if new else self.need) - multiplicities(self.group)[site]
                needs = (need, *(count for _, count in self.wanted.formula[place + 1 :]))
                fit = sites_fit_formula(self.group, after, site, needs)
            else:
                required = self.wanted.required
                later = max(0, required - place - 1)
                fit = sites_fit(after, site, later, more=later > 0 or (not required and bool(self._after(element))))
            allowed |= fit << site
        return allowed

    def _choices(self) -> dict[int, int]:
        if self.left == 0:
            return {}
        if self.wanted.formula:
            return self._choices_of_formula()
        current = self.pairs[-1] if self.pairs else None
        choices = {}
        order = ranks()
        required = self.wanted.required
        if current is not None:
            later = max(0, required - self.place - 1)
            sites = self._sites(current[1], later, more=not required and bool(self._after(current[0])))
            if sites:
                choices[current[0]] = sites
        if required:
            candidates = list(self.wanted.elements[self.place + 1 : self.place + 2])
        else:
            candidates = self._after(current[0] if current else None)
        if not candidates:
            return choices
        last = max(candidates, key=lambda z: order[z])
        later = max(0, required - self.place - 2)
        inner, outer = (self._sites(0, later, more=more and not required) for more in (True, False))
        for element in candidates:
            sites = outer if element == last else inner
            if sites:
                choices[element] = sites
        return choices

    def _sites(self, lowest: int, later: int, *, more: bool) -> int:
        return next_sites(self.group, self.used, lowest, self.left, later, more)

    def _after(self, element: int | None) -> list[int]:
        order = ranks()
        allowed = self.wanted.elements or range(1, MAX_ATOMIC_NUMBER + 1)
        return [z for z in allowed if element is None or order[z] > order[element]]

    def _choices_of_formula(self) -> dict[int, int]:
        place, need, lowest = self.place, self.need, self.pairs[-1][1] if self.pairs else 0
        if need == 0:
            place, lowest = place + 1, 0
            need = self.wanted.formula[place][1]
        later = tuple(sorted(count for _, count in self.wanted.formula[place + 1 :]))
        element = self.wanted.formula[place][0]
        return {element: next_sites_of_formula(self.group, self.used, lowest, (need, *later))}

    def then(self, element: int, site: int) -> State:
        """Return the state after one more orbit."""
        size = multiplicities(self.group)[site]
        new = not self.pairs or self.pairs[-1][0] != element
        place, need = self.place + new, 0
        if self.wanted.formula:
            need = (self.wanted.formula[place][1] if new else self.need) - size
        return State(
            self.wanted,
            self.group,
            (*self.pairs, (element, site)),
            occupied(self.group, self.used, site),
            self.left - size,
            need,
            place,
        )

    def need_of(self, element: int) -> int:
        """Return how many atoms an element lacks that may come next; 0 where there is no formula."""
        if not self.wanted.formula:
            return 0
        return self.need or dict(self.wanted.formula)[element]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Genes as the model reads them: P places (orbits), F elements of a formula (0 beyond the end).

    At each place `left` atoms are still to come.
    """

    num_atoms: Int[Tensor, "B"]
    formula_elements: Int[Tensor, "B F"]
    formula_counts: Int[Tensor, "B F"]
    space_groups: Int[Tensor, "B"]
    elements: Int[Tensor, "B P"]
    sites: Int[Tensor, "B P"]
    left: Int[Tensor, "B P"]


@dataclass(frozen=True, eq=False)
class Steps(Sequences):
    """Whole genes and what was possible at each place, given what is before it (and for sites the element).

    `needs` are the atoms that the element at each place still lacks, 0 where there is no formula.
    """

    needs: Int[Tensor, "B P"]
    group_mask: Bool[Tensor, "B 230"]
    element_mask: Bool[Tensor, "B P E"]
    site_mask: Bool[Tensor, "B P 27"]

    def to(self, device: torch.device | str) -> Steps:
        """Return the steps on another device."""
        return Steps(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})


def bits(sets: Int[Tensor, "*B"], size: int) -> Bool[Tensor, "*B S"]:
    """Return which of 0 … size - 1 are in sets given as whole numbers."""
    return (sets[..., None] >> torch.arange(size, device=sets.device) & 1).bool()


def group_mask(wanted: Sequence[Wanted]) -> Bool[Tensor, "B 230"]:
    """Return which space groups each may have; `ConfigError` where there is none."""
    mask = torch.zeros(len(wanted), NUM_SPACE_GROUPS, dtype=torch.bool)
    known: dict[Wanted, Float[Tensor, "230"]] = {}
    for row, entry in enumerate(wanted):
        if entry not in known:
            groups = entry.groups()
            if not groups:
                raise ConfigError(
                    f"no crystal with {entry.num_atoms} atoms in the primitive cell can be like that: formula "
                    f"{entry.formula or 'any'}, elements {entry.elements or 'any'}, space groups "
                    f"{sorted(entry.space_groups) or 'any'}, Wyckoff sites {letters(entry.sites) or 'any'}"
                )
            known[entry] = torch.zeros(NUM_SPACE_GROUPS, dtype=torch.bool)
            known[entry][torch.tensor(groups) - 1] = True
        mask[row] = known[entry]
    return mask


def choice_masks(choices: Sequence[dict[int, int]]) -> tuple[Bool[Tensor, "B E"], Int[Tensor, "B E"]]:
    """Return which elements may come next, and for each the set of its sites as a number."""
    sets = torch.zeros(len(choices), MAX_ATOMIC_NUMBER + 1, dtype=torch.long)
    for row, entry in enumerate(choices):
        if entry:
            sets[row, torch.tensor(list(entry))] = torch.tensor(list(entry.values()))
    return sets > 0, sets


@dataclass(frozen=True, eq=False)
class _Written:
    """One gene step by step: what was wanted, and at each of P places what was left, needed and possible."""

    wanted: Wanted
    left: Int[Tensor, "P"]
    needs: Int[Tensor, "P"]
    element_mask: Bool[Tensor, "P E"]
    sites: Int[Tensor, "P"]


@lru_cache(maxsize=2**17)
def _written(gene: Gene, formula_given: bool) -> _Written:
    group, pairs = gene
    counts: dict[int, int] = {}
    for element, site in pairs:
        counts[element] = counts.get(element, 0) + multiplicities(group)[site]
    wanted = Wanted(sum(counts.values()), tuple(counts.items()) if formula_given else ())
    state = State.start(wanted, group)
    left, needs, chosen, choices = [], [], [], []
    for element, site in pairs:
        found = state.choices()
        if not found.get(element, 0) >> site & 1:
            raise ValueError(f"gene {gene}: element {element} on site {site} cannot come there")
        left.append(state.left)
        needs.append(state.need_of(element))
        chosen.append(found[element])
        choices.append(found)
        state = state.then(element, site)
    mask = choice_masks(choices)[0]
    return _Written(wanted, torch.tensor(left), torch.tensor(needs), mask, torch.tensor(chosen))


def step_through(genes: Sequence[Gene], *, formula_given: Sequence[bool]) -> Steps:
    """Write genes down step by step, with masks, given their formula or only their number of atoms.

    Raises `ValueError` for a gene that is not in order or cannot be.
    """
    written = [_written(gene, given) for gene, given in zip(genes, formula_given, strict=True)]
    wanted = [entry.wanted for entry in written]

    def pad(parts: list[Tensor], value: float = 0) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

    formulas = [torch.tensor(entry.formula, dtype=torch.long).view(-1, 2) for entry in wanted]
    formula = pad(formulas)
    return Steps(
        num_atoms=torch.tensor([entry.num_atoms for entry in wanted]),
        formula_elements=formula[..., 0],
        formula_counts=formula[..., 1],
        space_groups=torch.tensor([group for group, _ in genes]),
        elements=pad([torch.tensor([element for element, _ in pairs]) for _, pairs in genes]),
        sites=pad([torch.tensor([site for _, site in pairs]) for _, pairs in genes], -1),
        left=pad([entry.left for entry in written]),
        needs=pad([entry.needs for entry in written]),
        group_mask=group_mask(wanted),
        element_mask=pad([entry.element_mask for entry in written]),
        site_mask=bits(pad([entry.sites for entry in written]), MAX_SITES),
    )
