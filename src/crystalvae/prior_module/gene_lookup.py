"""Genes of a formula by analogy: those of training crystals with similar elements in the same numbers of atoms."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from crystalvae.data.canonical import element_order
from crystalvae.prior_module.element_features import periodic_table
from crystalvae.prior_module.gene_steps import Formula
from crystalvae.prior_module.genes import Gene
from crystalvae.prior_module.reachability import multiplicities

ROW_WEIGHT = 0.7
"""What a difference of one period counts, against one of a group of the periodic table."""
SHARPNESS = 1.5

Pattern = tuple[int, tuple[tuple[int, int], ...]]
"""A gene with the places of its elements in the order of `element_order` instead of the elements."""


class GeneLookup:
    """What a training set says of a formula, without any learning.

    A training crystal with as many atoms of each element, both in the order of `element_order`, votes for its pattern
    of sites with exp(-1.5 d), d the sum over elements of the differences of group and 0.7 times those of period.
    """

    def __init__(self, genes: Sequence[Gene], *, sharpness: float = SHARPNESS) -> None:
        self.sharpness = sharpness
        self.known: dict[tuple[int, ...], list[tuple[tuple[int, ...], Pattern]]] = defaultdict(list)
        for gene in genes:
            elements, counts, pattern = pattern_of(gene)
            self.known[counts].append((elements, pattern))
        groups, periods = (part.tolist() for part in periodic_table())
        self._place = list(zip(groups, [ROW_WEIGHT * period for period in periods], strict=True))

    def likeliest(self, formula: Formula, *, count: int | None = None) -> list[tuple[Gene, float]]:
        """Return different genes with log p (votes as shares), the likeliest first; none where no crystal votes."""
        elements = tuple(element for element, _ in formula)
        votes: Counter[Pattern] = Counter()
        entries = self.known.get(tuple(number for _, number in formula), [])
        distances = [self.distance(elements, others) for others, _ in entries]
        nearest = min(distances, default=0.0)
        for (_, pattern), distance in zip(entries, distances, strict=True):
            votes[pattern] += math.exp(-self.sharpness * (distance - nearest))  # pyright: ignore[reportArgumentType]
        total = sum(votes.values())
        return [
            (with_elements(pattern, elements), math.log(share / total) if share > 0 else -math.inf)
            for pattern, share in votes.most_common(count)
        ]

    def distance(self, elements: Sequence[int], others: Sequence[int]) -> float:
        """Return how different elements are, one by one."""
        total = 0.0
        for one, other in zip(elements, others, strict=True):
            (group, period), (other_group, other_period) = self._place[one], self._place[other]
            total += abs(group - other_group) + abs(period - other_period)
        return total


def pattern_of(gene: Gene) -> tuple[tuple[int, ...], tuple[int, ...], Pattern]:
    """Return a gene's elements in order, their numbers of atoms, and its pattern."""
    group, pairs = gene
    sizes = multiplicities(group)
    counts: dict[int, int] = {}
    for element, site in pairs:
        counts[element] = counts.get(element, 0) + sizes[site]
    elements = tuple(counts)
    if sorted(elements, key=element_order().tolist().__getitem__) != list(elements):
        raise ValueError(f"gene {gene}: elements are not in order")
    return elements, tuple(counts.values()), (group, tuple((elements.index(element), site) for element, site in pairs))


def with_elements(pattern: Pattern, elements: Sequence[int]) -> Gene:
    """Return the gene that a pattern is for these elements."""
    group, pairs = pattern
    return group, tuple((elements[place], site) for place, site in pairs)
