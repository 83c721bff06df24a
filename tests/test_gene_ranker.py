"""The network that puts genes of known crystals in order for a formula."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.symmetric.source import symmetric
from crystalvae.prior_module.analogues import Analogues
from crystalvae.prior_module.gene_graphs import NEIGHBOURS, GeneGraphs, proposals
from crystalvae.prior_module.gene_lookup import GeneLookup
from crystalvae.prior_module.gene_ranker import GeneRanker, RankedLookup, log_softmax_of
from crystalvae.prior_module.gene_steps import formula_of
from crystalvae.prior_module.genes import Genes

SALTS = [(11, 17), (19, 17), (37, 17), (3, 9), (11, 9), (19, 35), (12, 8), (20, 8)]
CAESIUM = [(55, 17), (55, 35), (81, 17), (81, 35), (55, 53)]
ZINC = [(30, 16), (48, 34), (31, 33), (49, 51), (80, 52), (31, 15)]


def binary(kind: str, pairs: list[tuple[int, int]]) -> CrystalBatch:
    """Two atoms per cell, as rock salt, caesium chloride or zinc blende."""
    face = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    cell, place = {
        "salt": (5.6 * face, 0.5), "caesium": (4.1 * torch.eye(3), 0.5), "zinc": (5.8 * face, 0.25),
    }[kind]  # fmt: skip
    rows = len(pairs)
    return CrystalBatch(
        atom_types=torch.tensor(pairs).flatten(),
        frac_coords=torch.tensor([[0.0] * 3, [place] * 3]).repeat(rows, 1),
        lattices=cell.repeat(rows, 1, 1) * torch.linspace(0.97, 1.03, rows)[:, None, None],
        num_atoms=torch.full((rows,), 2),
    )


@pytest.fixture(scope="module")
def crystals() -> CrystalBatch:
    kinds = {"salt": SALTS, "caesium": CAESIUM, "zinc": ZINC}
    return symmetric(CrystalBatch.cat([binary(kind, pairs) for kind, pairs in kinds.items()]))[0]


@pytest.fixture(scope="module")
def known(crystals: CrystalBatch) -> Analogues:
    found = Analogues()
    found.fit(crystals)
    return found


def test_what_is_proposed_is_voted_for_by_others(crystals: CrystalBatch, known: Analogues):
    lookup, truth = GeneLookup(known.genes()), Genes.of(crystals).to_list()
    everyone = proposals(lookup, truth, count=3)
    others = proposals(lookup, truth, count=3, leave_out=True)
    formula = formula_of([11, 17])
    votes = dict(lookup.likeliest(formula))
    of_salt = {entry.gene: entry.facts[0] for entry in everyone if entry.formula == 0}
    assert of_salt == pytest.approx(votes)
    assert sum(torch.tensor(list(of_salt.values())).exp()) == pytest.approx(1.0)
    alone = {entry.gene: entry.facts for entry in others if entry.formula == 0}
    assert alone[truth[0]][0] < of_salt[truth[0]]  # its own vote is missing
    assert alone[truth[0]][3] < 0  # the nearest that votes is another one
    one = Analogues()
    one.fit(crystals[:1])
    assert proposals(GeneLookup(one.genes()), truth[:1], count=3, leave_out=True) == []


def test_orbits_see_their_nearest_neighbours(crystals: CrystalBatch, known: Analogues):
    truth = Genes.of(crystals).to_list()
    found = [entry for entry in proposals(GeneLookup(known.genes()), truth, count=3) if entry.gene == truth[0]]
    graphs = GeneGraphs.build(found[:1], known)
    assert graphs.element.tolist() == [11, 17]
    assert graphs.former_element.tolist() == [11, 17]  # nothing is left out: its model is the crystal itself or a twin
    assert graphs.neighbours.shape == (2, NEIGHBOURS)
    assert graphs.neighbours[0, :6].tolist() == [1] * 6  # rock salt: six of the other kind, then its own
    assert graphs.neighbours[0, 6:].tolist() == [0] * 6
    side = float(8 * graphs.volume[0]) ** (1 / 3) / 2  # the cube holds 8 atoms
    torch.testing.assert_close(graphs.distances[0, :6], torch.full((6,), side), rtol=1e-3, atol=0)
    torch.testing.assert_close(graphs.distances[0, 6:], torch.full((6,), side * 2**0.5), rtol=1e-3, atol=0)


def test_scores_do_not_depend_on_the_company(crystals: CrystalBatch, known: Analogues):
    ranker = GeneRanker(d_model=16, num_layers=2).eval()
    torch.nn.init.normal_(ranker.head[-1].weight)  # pyright: ignore[reportArgumentType]
    found = proposals(GeneLookup(known.genes()), Genes.of(crystals).to_list(), count=3)
    graphs = GeneGraphs.build(found, known)
    some, places = graphs.of_formulas(torch.tensor([7, 2, 12]))
    assert [found[place].formula for place in places.tolist()] == sorted([7, 2, 12] * 3, key=[7, 2, 12].index)
    with torch.no_grad():
        torch.testing.assert_close(ranker(some), ranker(graphs)[places], atol=1e-5, rtol=1e-4)
        sums = torch.zeros(3).index_add(0, some.formula, ranker(some).exp())
    torch.testing.assert_close(sums, torch.ones(3))


def test_without_training_it_says_what_the_votes_say(crystals: CrystalBatch, known: Analogues):
    ranker = GeneRanker(d_model=16, num_layers=1).eval()
    formula = formula_of([37, 35])
    votes = GeneLookup(known.genes()).likeliest(formula)
    ranked = RankedLookup(known, ranker).likeliest(formula)
    assert [gene for gene, _ in ranked] == [gene for gene, _ in votes]
    assert dict(ranked) == pytest.approx(dict(votes), abs=1e-4)
    assert RankedLookup(known, ranker).likeliest(formula, count=1) == ranked[:1]
    assert not bool(ranker.fitted)


def test_it_learns_what_votes_do_not_know(crystals: CrystalBatch, known: Analogues):
    """Votes of all elements alike, so that only the structures can tell."""
    lookup = GeneLookup(known.genes())
    with torch.no_grad():
        lookup.similarity.coordinates.zero_()
    ranker = GeneRanker(d_model=16, num_layers=1, dropout=0.0)
    losses = ranker.fit(crystals, known, lookup, epochs=40, batch_size=8, learning_rate=1e-2)
    assert losses[-1] < 0.3 * losses[0]
    assert all(later < earlier for earlier, later in pairwise(losses[:20:6]))
    assert bool(ranker.fitted)
    assert not any(parameter.requires_grad for parameter in ranker.parameters())


def test_softmax_is_within_each_owner():
    scores = torch.tensor([1.0, 2.0, 3.0, -100.0, 100.0])
    owner = torch.tensor([0, 0, 1, 2, 2])
    expected = torch.cat([scores[owner == k].log_softmax(0) for k in range(3)])
    torch.testing.assert_close(log_softmax_of(scores, owner), expected)
