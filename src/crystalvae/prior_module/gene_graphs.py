"""Genes that known crystals propose for formulas, with structures modelled on those crystals, as graphs of orbits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.neighbour_graph import NeighbourGraph, neighbour_graph
from crystalvae.data.symmetric.projection import AtomSites
from crystalvae.data.symmetric.source import ORBIT_SITES, SPACE_GROUP
from crystalvae.prior_module.analogues import Analogues
from crystalvae.prior_module.element_similarity import MAX_ELEMENTS, ElementSimilarity
from crystalvae.prior_module.gene_lookup import GeneLookup, pattern_of, with_elements
from crystalvae.prior_module.genes import Gene, Genes

CUTOFF, NEIGHBOURS = 8.0, 12
_NOTHING = -1e9
_TOGETHER = 256
"""Formulas whose votes are counted at once."""
_BUILT_TOGETHER = 4000
FACTS = ("log share of votes, learned similarity", "likewise, group and period", "crystals with it", "nearest vote")


@dataclass(frozen=True)
class Proposal:
    """A gene proposed for formula number `formula`; `facts` are what the votes say of it (`FACTS`)."""

    formula: int
    gene: Gene
    facts: tuple[float, float, float, float]


def proposals(lookup: GeneLookup, wanted: Sequence[Gene], *, count: int, leave_out: bool = False) -> list[Proposal]:
    """Return up to `count` different genes for the formula of each gene in `wanted`, the most voted for first.

    With `leave_out` the crystals of `lookup` are those of `wanted`, and none of them votes for its own formula.
    """
    plain = ElementSimilarity()
    families: dict[tuple[int, ...], list[tuple[int, Gene]]] = defaultdict(list)
    for number, gene in enumerate(wanted):
        elements, counts, _ = pattern_of(gene)
        if len(elements) <= MAX_ELEMENTS and counts in lookup.known:
            families[counts].append((number, gene))
    found: list[Proposal] = []
    for counts, members in families.items():
        for start in range(0, len(members), _TOGETHER):
            found += _of_family(lookup, plain, counts, members[start : start + _TOGETHER], count, leave_out)
    return sorted(found, key=lambda proposal: proposal.formula)


@torch.no_grad()
def _of_family(
    lookup: GeneLookup,
    plain: ElementSimilarity,
    counts: tuple[int, ...],
    members: Sequence[tuple[int, Gene]],
    count: int,
    leave_out: bool,
) -> list[Proposal]:
    known = lookup.known[counts]
    numbers = {pattern: number for number, pattern in enumerate(known.patterns)}
    described = [pattern_of(gene) for _, gene in members]
    elements = torch.tensor([entry for entry, _, _ in described])
    votes = [part.log_votes(elements, known.elements) for part in (lookup.similarity, plain)]
    if leave_out:
        own = torch.tensor([numbers[pattern] for _, _, pattern in described])
        same = (known.elements == elements[:, None]).all(dim=2) & (known.pattern_numbers == own[:, None])
        first = same.int().argmax(dim=1)
        votes = [part.scatter(1, first[:, None], _NOTHING) for part in votes]
    size = (len(members), len(known.patterns))
    learned, by_table = (
        torch.zeros(size).index_add(1, known.pattern_numbers, part.softmax(dim=1)).clamp_min(1e-30).log()
        for part in votes
    )
    nearest = torch.full(size, _NOTHING)
    nearest = nearest.scatter_reduce(1, known.pattern_numbers.expand_as(votes[0]), votes[0], "amax")
    crystals = known.pattern_numbers.bincount(minlength=size[1])
    found = []
    for row, (number, _) in enumerate(members):
        for index in learned[row].argsort(descending=True, stable=True)[:count].tolist():
            if float(nearest[row, index]) > _NOTHING / 2:
                facts = (learned[row, index], by_table[row, index], crystals[index], nearest[row, index])
                gene = with_elements(known.patterns[index], described[row][0])
                found.append(Proposal(number, gene, tuple(map(float, facts))))  # pyright: ignore[reportArgumentType]
    return found


@dataclass(frozen=True, eq=False)
class GeneGraphs:
    """C proposed genes of Q formulas: the orbits of each, and the K nearest neighbours of an orbit's first atom.

    `neighbours` are orbits of the whole batch; where there are fewer than K, `distances` (Å) are infinite. Genes of one
    formula stand together: `formula` counts from 0.
    """

    formula: Int[Tensor, "C"]
    facts: Float[Tensor, "C 4"]
    space_group: Int[Tensor, "C"]
    volume: Float[Tensor, "C"]
    orbits: Int[Tensor, "C"]
    element: Int[Tensor, "O"]
    former_element: Int[Tensor, "O"]
    multiplicity: Int[Tensor, "O"]
    symmetry: Int[Tensor, "O"]
    neighbours: Int[Tensor, "O K"]
    distances: Float[Tensor, "O K"]

    @classmethod
    def build(
        cls, found: Sequence[Proposal], analogues: Analogues, *, lattices: Float[Tensor, "Q 3 3"] | None = None
    ) -> GeneGraphs:
        """Model genes on their nearest known crystals, none on one with its formula's own elements and `lattices`."""
        parts = [
            cls._build(found[start : start + _BUILT_TOGETHER], analogues, lattices)
            for start in range(0, len(found), _BUILT_TOGETHER)
        ]
        shifts = torch.tensor([0, *(len(part.element) for part in parts)]).cumsum(0).tolist()
        merged = {item.name: torch.cat([getattr(part, item.name) for part in parts]) for item in fields(cls)}
        merged["neighbours"] = torch.cat([part.neighbours + shift for part, shift in zip(parts, shifts, strict=False)])
        return cls(**merged)

    @classmethod
    def _build(
        cls, found: Sequence[Proposal], analogues: Analogues, lattices: Float[Tensor, "Q 3 3"] | None
    ) -> GeneGraphs:
        genes = Genes.from_list([proposal.gene for proposal in found])
        formula = torch.tensor([proposal.formula for proposal in found])
        properties = {SPACE_GROUP: genes.space_groups.float(), ORBIT_SITES: genes.sites}
        asked = CrystalBatch.empty(genes.num_atoms).replace(atom_types=genes.atom_types(), properties=properties)
        if lattices is not None:
            asked = asked.replace(lattices=lattices[formula])
        models = analogues.find(asked, genes)
        sites = AtomSites.from_orbits(genes.space_groups, genes.sites)
        graph = neighbour_graph(models.crystals, cutoff=CUTOFF, max_neighbours=NEIGHBOURS)
        neighbours, distances = _nearest(graph, sites)
        return cls(
            formula=formula,
            facts=torch.tensor([proposal.facts for proposal in found]),
            space_group=genes.space_groups,
            volume=models.crystals.lattices.det().abs() / models.crystals.num_atoms,
            orbits=(genes.sites >= 0).sum(dim=1),
            element=models.crystals.atom_types[sites.first],
            former_element=models.elements[sites.first],
            multiplicity=sites.multiplicity[sites.first],
            symmetry=sites.symmetry[sites.first],
            neighbours=neighbours,
            distances=distances,
        )

    def of_formulas(self, rows: Int[Tensor, "R"]) -> tuple[GeneGraphs, Int[Tensor, "c"]]:
        """Return the genes of some formulas, which are counted anew, and where they stand here."""
        number = torch.full((int(self.formula.max()) + 1,), -1)
        number[rows] = torch.arange(len(rows))
        places = (number[self.formula] >= 0).nonzero()[:, 0]
        places = places[number[self.formula[places]].argsort(stable=True)]
        ends = self.orbits.cumsum(0)
        sizes = self.orbits[places]
        shift = (ends - self.orbits)[places] - (sizes.cumsum(0) - sizes)
        shift = shift.repeat_interleave(sizes)
        orbits = torch.arange(int(sizes.sum())) + shift
        of_genes = ("facts", "space_group", "volume", "orbits")
        of_orbits = ("element", "former_element", "multiplicity", "symmetry", "distances")
        parts = {name: getattr(self, name)[places] for name in of_genes}
        parts |= {name: getattr(self, name)[orbits] for name in of_orbits}
        parts["neighbours"] = self.neighbours[orbits] - shift[:, None]
        return GeneGraphs(formula=number[self.formula[places]], **parts), places


def _nearest(graph: NeighbourGraph, sites: AtomSites) -> tuple[Int[Tensor, "O K"], Float[Tensor, "O K"]]:
    """Return the orbits and distances of the nearest neighbours of the first atom of each orbit."""
    neighbour, atom = graph.edge_index
    is_first = torch.zeros(len(sites.orbit), dtype=torch.bool)
    is_first[sites.first] = True
    kept = is_first[atom]
    owner, other, distances = sites.orbit[atom[kept]], sites.orbit[neighbour[kept]], graph.distances[kept]
    order = other.argsort(stable=True)  # those that are as far away
    order = order[(distances[order] / 0.01).round().argsort(stable=True)]
    order = order[owner[order].argsort(stable=True)]
    owner, other, distances = owner[order], other[order], distances[order]
    counts = owner.bincount(minlength=len(sites.first))
    place = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    near: Bool[Tensor, "E"] = place < NEIGHBOURS
    result = torch.arange(len(sites.first))[:, None].repeat(1, NEIGHBOURS)
    apart = torch.full((len(sites.first), NEIGHBOURS), torch.inf)
    result[owner[near], place[near]] = other[near]
    apart[owner[near], place[near]] = distances[near].detach()
    return result, apart
