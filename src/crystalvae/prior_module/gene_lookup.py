"""Genes of a formula by analogy: those of training crystals with similar elements in the same numbers of atoms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from crystalvae.prior_module.element_similarity import ElementSimilarity
from crystalvae.prior_module.gene_steps import Formula, ranks
from crystalvae.prior_module.genes import Gene, KnownGenes, Pattern
from crystalvae.prior_module.reachability import multiplicities


class GeneLookup:
    """What a training set says of a formula: no network, votes of its crystals.

    A training crystal with as many atoms of each element, both in the order of `element_order`, votes for its pattern
    of sites, with a weight that `similarity` gives (by default: group and period; see `ElementSimilarity`).
    """

    def __init__(self, genes: Sequence[Gene], similarity: ElementSimilarity | None = None) -> None:
        self.similarity = ElementSimilarity() if similarity is None else similarity
        collected: dict[tuple[int, ...], list[tuple[tuple[int, ...], Pattern]]] = defaultdict(list)
        for gene in genes:
            elements, counts, pattern = pattern_of(gene)
            collected[counts].append((elements, pattern))
        self.known = {counts: _known(entries) for counts, entries in collected.items()}

    def fit(self, *, epochs: int = 6, seed: int = 0) -> list[float]:
        """Learn the similarity from the crystals themselves, each in turn left out; returns -log p of each epoch."""
        return self.similarity.fit(list(self.known.values()), epochs=epochs, seed=seed)

    @torch.no_grad()
    def likeliest(self, formula: Formula, *, count: int | None = None) -> list[tuple[Gene, float]]:
        """Return different genes with log p (votes as shares), the likeliest first; none where no crystal votes."""
        elements = tuple(element for element, _ in formula)
        known = self.known.get(tuple(number for _, number in formula))
        if known is None:
            return []
        shares = self.similarity.log_votes(torch.tensor([elements]), known.elements)[0].softmax(dim=0)
        votes = torch.zeros(len(known.patterns)).index_add(0, known.pattern_numbers, shares)
        order = votes.argsort(descending=True, stable=True)[:count].tolist()
        return [(with_elements(known.patterns[index], elements), float(votes[index].log())) for index in order]


def _known(entries: Sequence[tuple[tuple[int, ...], Pattern]]) -> KnownGenes:
    numbers: dict[Pattern, int] = {}
    of_patterns = [numbers.setdefault(pattern, len(numbers)) for _, pattern in entries]
    return KnownGenes(torch.tensor([elements for elements, _ in entries]), torch.tensor(of_patterns), list(numbers))


def pattern_of(gene: Gene) -> tuple[tuple[int, ...], tuple[int, ...], Pattern]:
    """Return a gene's elements in order, their numbers of atoms, and its pattern."""
    group, pairs = gene
    sizes = multiplicities(group)
    counts: dict[int, int] = {}
    for element, site in pairs:
        counts[element] = counts.get(element, 0) + sizes[site]
    elements = tuple(counts)
    if sorted(elements, key=ranks().__getitem__) != list(elements):
        raise ValueError(f"gene {gene}: elements are not in order")
    return elements, tuple(counts.values()), (group, tuple((elements.index(element), site) for element, site in pairs))


def with_elements(pattern: Pattern, elements: Sequence[int]) -> Gene:
    """Return the gene that a pattern is for these elements."""
    group, pairs = pattern
    return group, tuple((elements[place], site) for place, site in pairs)
