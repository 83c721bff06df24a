"""The gene model: exact masks against enumeration, probabilities that sum to 1, demands that are met, lookup."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import cache

import pytest
import torch

from crystalvae.data.canonical import element_order
from crystalvae.data.symmetric.source import symmetric
from crystalvae.errors import ConfigError, DataError
from crystalvae.prior_module.asked_symmetry import asked_sites, asked_space_groups
from crystalvae.prior_module.gene_lookup import GeneLookup, pattern_of, with_elements
from crystalvae.prior_module.gene_model import GeneModel
from crystalvae.prior_module.gene_proposals import GeneProposals
from crystalvae.prior_module.gene_steps import State, Wanted, formula_of, step_through
from crystalvae.prior_module.genes import Gene, Genes
from crystalvae.prior_module.reachability import fits, fixed_sites, multiplicities, sums
from tests.test_canonical import CRYSTALS, TEXTBOOK

SMALL = (1, 2, 5, 47, 71, 99, 123, 139, 166, 194, 216, 221, 225)
LITHIUM, MANGANESE, OXYGEN = 3, 25, 8
"""In the order of `element_order`."""
D_MODEL = 16


def tiny(*, seed: int = 0, spread: float = 3.0) -> GeneModel:
    """Return an untrained model whose probabilities are far from uniform."""
    torch.manual_seed(seed)
    model = GeneModel(d_model=D_MODEL, nhead=2, num_layers=1, max_atoms=20).eval()
    with torch.no_grad():
        for name in ("element_bias", "site_bias"):
            getattr(model, name).copy_(spread * torch.randn_like(getattr(model, name)))
    return model


def nothing(count: int) -> torch.Tensor:
    return torch.zeros(count, D_MODEL)


@cache
def enumerated(group: int, num_atoms: int, elements: tuple[int, ...], *, all_elements: bool) -> frozenset[Gene]:
    """Return all genes of a group with some atoms of some elements, by trying everything."""
    sizes, fixed = multiplicities(group), fixed_sites(group)
    kinds = [(element, site) for element in elements for site in range(len(sizes))]
    found: set[Gene] = set()

    def grow(pairs: tuple[tuple[int, int], ...], start: int, left: int) -> None:
        if left == 0:
            found.add((group, pairs))
            return
        for index in range(start, len(kinds)):
            site = kinds[index][1]
            if sizes[site] > left or (fixed >> site & 1 and any(other == site for _, other in pairs)):
                continue
            grow((*pairs, kinds[index]), index, left - sizes[site])

    grow((), 0, num_atoms)
    if all_elements:
        return frozenset(gene for gene in found if {element for element, _ in gene[1]} == set(elements))
    return frozenset(found)


def reached(wanted: Wanted, group: int) -> list[Gene]:
    """Return all genes that the masks lead to; fails where they lead nowhere."""
    finished: list[Gene] = []
    states = [State.start(wanted, group)]
    while states:
        state = states.pop()
        if state.left == 0:
            finished.append(state.gene)
            continue
        choices = state.choices()
        assert choices, "a dead end"
        for element, sites in choices.items():
            assert sites > 0
            states += [state.then(element, site) for site in range(27) if sites >> site & 1]
    return finished


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", SMALL)
@pytest.mark.parametrize("num_atoms", [1, 2, 3, 4])
@pytest.mark.parametrize("elements", [(LITHIUM,), (LITHIUM, OXYGEN)])
@pytest.mark.parametrize("subsystems", [True, False])
def test_masks_lead_to_all_genes_of_a_chemical_system_and_to_no_other(
    group: int, num_atoms: int, elements: tuple[int, ...], subsystems: bool
):
    expected = enumerated(group, num_atoms, elements, all_elements=not subsystems)
    wanted = Wanted(num_atoms, elements=elements, subsystems=subsystems, space_groups=frozenset([group]))
    assert bool(wanted.groups()) == bool(expected)
    if expected:
        got = reached(wanted, group)
        assert len(got) == len(set(got))
        assert set(got) == expected


@pytest.mark.parametrize("group", SMALL)
@pytest.mark.parametrize(
    "formula", [(LITHIUM, OXYGEN, OXYGEN), (LITHIUM, MANGANESE, OXYGEN), (LITHIUM,) * 2 + (OXYGEN,) * 3]
)
def test_masks_lead_to_all_genes_of_a_formula_and_to_no_other(group: int, formula: tuple[int, ...]):
    counts = Counter(formula)
    everything = enumerated(group, len(formula), tuple(counts), all_elements=True)
    expected = {gene for gene in everything if atoms_of(gene) == counts}
    wanted = Wanted(len(formula), formula_of(formula), frozenset([group]))
    assert bool(wanted.groups()) == bool(expected)
    if expected:
        got = reached(wanted, group)
        assert len(got) == len(set(got))
        assert set(got) == expected


@pytest.mark.parametrize("group", SMALL)
@pytest.mark.parametrize("asked", ["formula", "all elements", "some elements"])
def test_masks_lead_to_all_genes_on_the_sites_asked_for_and_to_no_other(group: int, asked: str):
    formula = (LITHIUM, OXYGEN, OXYGEN)
    everything = enumerated(group, 3, (LITHIUM, OXYGEN), all_elements=asked != "some elements")
    if asked == "formula":
        everything = {gene for gene in everything if atoms_of(gene) == Counter(formula)}
    of_sites: dict[tuple[int, ...], set[Gene]] = {}
    for gene in everything:
        of_sites.setdefault(tuple(sorted(site for _, site in gene[1])), set()).add(gene)
    for sites, expected in sorted(of_sites.items())[:12]:
        how = {"space_groups": frozenset([group]), "sites": sites}
        if asked == "formula":
            wanted = Wanted(3, formula_of(formula), **how)
        else:
            wanted = Wanted(3, elements=(LITHIUM, OXYGEN), subsystems=asked == "some elements", **how)
        assert wanted.groups() == [group]
        got = reached(wanted, group)
        assert len(got) == len(set(got))
        assert set(got) == expected
    assert not Wanted(3, formula_of(formula), frozenset([group]), sites=(0,) * 9).groups()


def test_sites_are_asked_for_by_letters():
    assert asked_sites(None, None) == asked_sites(225, None) == ()
    assert asked_sites(225, "b a") == asked_sites(225, "a,b") == asked_sites("225", ["a", "b"]) == (0, 1)
    assert asked_sites(225, "aff") == (0, 5, 5)
    assert asked_sites(47, "A") == (26,)
    for group, wrong, match in (
        (None, "a", "say which"), (225, "a z", "got z; space group 225 has a to l"), (225, "", "no letter"),
        (225, "a a", "a of space group 225 is a single place"), (225, 3, "expected letters"), (1, "a" * 65, "at most"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=match):
            asked_sites(group, wrong)
    with pytest.raises(ConfigError, match="one space group"):
        Wanted(2, sites=(0, 1))


def atoms_of(gene: Gene) -> Counter[int]:
    sizes = multiplicities(gene[0])
    counts: Counter[int] = Counter()
    for element, site in gene[1]:
        counts[element] += sizes[site]
    return counts


@pytest.mark.parametrize("group", SMALL)
@pytest.mark.parametrize("at_least", [0, 1, 2, 3])
def test_sums_are_those_of_enumeration(group: int, at_least: int):
    sizes, fixed = multiplicities(group), fixed_sites(group)
    found = {0} if at_least == 0 else set()
    for count in range(max(1, at_least), 7):
        for chosen in itertools.combinations_with_replacement(range(len(sizes)), count):
            repeated = {site for site in chosen if chosen.count(site) > 1}
            if sum(sizes[site] for site in chosen) <= 6 and not any(fixed >> site & 1 for site in repeated):
                found.add(sum(sizes[site] for site in chosen))
        if len(sizes) > 12 and count == 3:
            break  # enough of them; larger sums follow from smaller orbits, which are left out below
    got = {number for number in range(7) if sums(group, 0, 0, at_least, 32) >> number & 1}
    assert got >= found
    if len(sizes) <= 12:
        assert got == found


def test_known_limits():
    assert not fits(225, 0, 0, (1, 1, 1))  # two places for one atom each in rock salt's cell
    assert fits(225, 0, 0, (1, 1, 2))
    assert not fits(227, 0, 0, (1,))
    assert fits(227, 0, 0, (2, 4, 8))  # spinel
    with pytest.raises(ConfigError, match="no crystal with 1 atoms"):
        tiny().sample([Wanted(1, space_groups=frozenset([227]))], nothing(1), generator=torch.Generator())
    with pytest.raises(ConfigError, match="does not have 3 atoms"):
        Wanted(3, formula_of([LITHIUM, OXYGEN]))


# ---- probabilities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_atoms", [1, 2, 3])
def test_probabilities_of_a_chemical_system_sum_to_one(num_atoms: int):
    model = tiny()
    groups = frozenset([2, 47, 99, 123, 166, 221, 225])
    wanted = Wanted(num_atoms, elements=(LITHIUM, OXYGEN), subsystems=True, space_groups=groups)
    found = model.likeliest(wanted, nothing(1), count=100_000)
    expected = {gene for group in groups for gene in enumerated(group, num_atoms, (3, 8), all_elements=False)}
    assert {gene for gene, _ in found} == expected
    assert len(found) == len(expected)
    assert sum(math.exp(p) for _, p in found) == pytest.approx(1.0, abs=1e-4)
    values = [p for _, p in found]
    assert values == sorted(values, reverse=True)


def test_probabilities_of_a_formula_sum_to_one_and_are_the_likelihoods_of_training():
    model = tiny()
    formula = formula_of([LITHIUM, OXYGEN, OXYGEN])
    found = model.likeliest(Wanted(3, formula), nothing(1), count=100_000)
    assert sum(math.exp(p) for _, p in found) == pytest.approx(1.0, abs=1e-4)
    genes = [gene for gene, _ in found]
    assert len(set(genes)) == len(genes) > 500
    likelihood = -model.negative_log_likelihood(
        step_through(genes, formula_given=[True] * len(genes)), nothing(len(genes))
    )
    torch.testing.assert_close(likelihood, torch.tensor([p for _, p in found]), atol=1e-3, rtol=1e-4)


def test_genes_of_one_atom_sum_to_one_over_all_elements():
    model = tiny()
    groups = [1, 99, 221, 225]
    found = model.likeliest(Wanted(1, space_groups=frozenset(groups)), nothing(1), count=100_000)
    sites = [(group, site) for group in groups for site, size in enumerate(multiplicities(group)) if size == 1]
    expected = {(group, ((element, site),)) for group, site in sites for element in range(1, 100)}
    assert {gene for gene, _ in found} == expected
    assert sum(math.exp(p) for _, p in found) == pytest.approx(1.0, abs=1e-4)
    steps = step_through([gene for gene, _ in found[:50]], formula_given=[False] * 50)
    of_any_group = -model.negative_log_likelihood(steps, nothing(50))
    of_these = model.group_log_probabilities([Wanted(1)], nothing(1))[0, torch.tensor(groups) - 1].logsumexp(dim=0)
    torch.testing.assert_close(of_any_group - of_these, torch.tensor([p for _, p in found[:50]]), atol=1e-3, rtol=1e-4)


def test_a_gene_alone_has_the_likelihood_that_it_has_in_a_batch():
    model = tiny()
    genes = Genes.of(symmetric(CRYSTALS)[0]).to_list()
    for given in (True, False):
        together = model.negative_log_likelihood(
            step_through(genes, formula_given=[given] * len(genes)), nothing(len(genes))
        )
        alone = [model.negative_log_likelihood(step_through([g], formula_given=[given]), nothing(1)) for g in genes]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_drawn_genes_are_as_frequent_as_their_probability():
    model = tiny(spread=1.0)
    wanted = Wanted(2, formula_of([LITHIUM, OXYGEN]), frozenset([221, 225, 99]))
    expected = {gene: math.exp(p) for gene, p in model.likeliest(wanted, nothing(1), count=1000)}
    drawn = Counter(model.sample([wanted] * 4000, nothing(4000), generator=torch.Generator().manual_seed(0)))
    assert set(drawn) <= set(expected)
    for gene, p in expected.items():
        assert drawn[gene] / 4000 == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 4000) + 1e-3)


# ---- demands ---------------------------------------------------------------------------------------------------------


def test_every_demand_is_met():
    model, generator = tiny(), torch.Generator().manual_seed(1)
    cubic = frozenset(range(195, 231))
    wanted = [
        *[Wanted(n) for n in range(1, 21)],
        *[Wanted(5, space_groups=frozenset([221]))] * 5,
        *[Wanted(n, space_groups=cubic) for n in (2, 3, 5, 14)],
        *[Wanted(6, elements=(3, 25, 8))] * 5,
        *[Wanted(6, elements=(3, 25, 8), subsystems=True)] * 5,
        *[Wanted(14, formula_of([12] * 2 + [13] * 4 + [8] * 8), cubic)] * 5,
    ]
    drawn = model.sample(wanted, nothing(len(wanted)), generator=generator)
    order = element_order()
    for gene, entry in zip(drawn, wanted, strict=True):
        counts = atoms_of(gene)
        assert counts.total() == entry.num_atoms
        if entry.space_groups:
            assert gene[0] in entry.space_groups
        if entry.formula:
            assert counts == Counter(dict(entry.formula))
        if entry.elements:
            assert set(counts) <= set(entry.elements)
            assert entry.subsystems or set(counts) == set(entry.elements)
        ranks = [(int(order[element]), site) for element, site in gene[1]]
        assert ranks == sorted(ranks)
        fixed = [site for _, site in gene[1] if fixed_sites(gene[0]) >> site & 1]
        assert len(fixed) == len(set(fixed))
    assert len(set(drawn[-5:])) > 1
    again = model.sample(wanted, nothing(len(wanted)), generator=torch.Generator().manual_seed(1))
    assert again == drawn


def test_conditions_change_what_is_likely():
    model = tiny()
    steps = step_through([(225, ((11, 0), (17, 1)))], formula_given=[True])
    one, two = (model.negative_log_likelihood(steps, value) for value in (nothing(1), torch.randn(1, D_MODEL)))
    assert one.item() != pytest.approx(two.item(), abs=1e-3)


# ---- genes -----------------------------------------------------------------------------------------------------------


def test_genes_of_textbook_crystals():
    crystals, _ = symmetric(CRYSTALS)
    genes = Genes.of(crystals)
    named = dict(zip(TEXTBOOK, genes.to_list(), strict=True))
    assert named["NaCl"] == (225, ((11, 0), (17, 1)))
    assert named["perovskite"] == (221, ((38, 0), (22, 1), (8, 2)))
    assert named["spinel"] == (227, ((12, 0), (13, 3), (8, 4)))  # 8a, 16d, 32e
    assert torch.equal(genes.num_atoms, crystals.num_atoms)
    assert torch.equal(genes.atom_types(), crystals.atom_types)
    assert Genes.from_list(genes.to_list()).to_list() == genes.to_list()
    for row in range(len(genes)):
        assert genes[torch.tensor([row])].to_list() == [genes.to_list()[row]]
    with pytest.raises(DataError, match="no space_group and orbit_sites"):
        Genes.of(CRYSTALS)


def test_genes_that_cannot_be_are_refused():
    for gene in (
        (225, ((17, 0), (11, 1))),  # chlorine before sodium
        (225, ((11, 0), (17, 0))),  # one place taken twice
    ):
        with pytest.raises(ValueError, match="cannot come there"):
            step_through([gene], formula_given=[False])


# ---- lookup ----------------------------------------------------------------------------------------------------------


def test_lookup_votes_for_the_sites_of_similar_elements():
    salt, caesium = (225, ((11, 0), (17, 1))), (221, ((55, 0), (17, 1)))
    lookup = GeneLookup([salt, caesium, (225, ((12, 0), (8, 1)))])
    found = lookup.likeliest(formula_of([19, 17]))  # KCl: nearer to NaCl than to CsCl? both one or two rows away
    assert [gene for gene, _ in found] == [(225, ((19, 0), (17, 1))), (221, ((19, 0), (17, 1)))]
    assert sum(math.exp(p) for _, p in found) == pytest.approx(1.0)
    assert lookup.likeliest(formula_of([37, 35]), count=1)[0][0][0] == 221  # RbBr: one row from CsCl
    assert lookup.likeliest(formula_of([3, 3, 8])) == []
    elements, counts, pattern = pattern_of(caesium)
    assert (elements, counts) == ((55, 17), (1, 1))
    assert with_elements(pattern, (37, 35)) == (221, ((37, 0), (35, 1)))
    with pytest.raises(ValueError, match="not in order"):
        pattern_of((225, ((17, 0), (11, 1))))


def test_learned_similarity_finds_what_the_periodic_table_does_not_say():
    # Elements with an even number take one pattern, those with an odd one another, whatever their group.
    metals = [z for z in range(19, 51) if z not in {35, 36}]
    genes = [(225 if z % 2 else 221, ((z, 0), (9, 1))) for z in metals]
    lookup = GeneLookup(genes)
    query = formula_of([56, 9])  # not among them; its vector stays what it was
    before = lookup.similarity.coordinates[56].clone()
    losses = lookup.fit(epochs=40)
    assert losses[-1] < 0.5 * losses[0]
    torch.testing.assert_close(lookup.similarity.coordinates[56, :2], before[:2])
    left_out = GeneLookup([gene for gene in genes if gene[1][0][0] != 30], lookup.similarity)
    (first, log_p), _ = left_out.likeliest(formula_of([30, 9]))
    assert first == (221, ((30, 0), (9, 1)))
    assert math.exp(log_p) > 0.6
    assert sum(math.exp(p) for _, p in lookup.likeliest(query)) == pytest.approx(1.0)


def test_a_mixture_adds_up_to_one_and_keeps_what_both_know():
    model = tiny()
    wanted, context = Wanted(2, formula_of([19, 17]), frozenset([99, 221, 225])), nothing(1)
    lookup = GeneLookup([(225, ((11, 0), (17, 1))), (186, ((30, 1), (16, 1)))])
    free = dict(model.likeliest(wanted, context, count=1000))
    mixed = dict(GeneProposals(model, lookup, lookup_weight=0.3).likeliest(wanted, context, count=1000))
    assert set(mixed) == set(free)
    assert sum(math.exp(p) for p in mixed.values()) == pytest.approx(1.0, abs=1e-4)
    known = (225, ((19, 0), (17, 1)))
    for gene, p in mixed.items():
        assert math.exp(p) == pytest.approx(0.7 * math.exp(free[gene]) + 0.3 * (gene == known), abs=1e-5)
    few = GeneProposals(model, lookup, lookup_weight=1.0).likeliest(wanted, context, count=3)
    assert few[0][0] == known
    assert few[0][1] == pytest.approx(0.0, abs=1e-6)
    assert len({gene for gene, _ in few}) == 3
    alone = GeneProposals(model, None).likeliest(wanted, context, count=5)
    assert [gene for gene, _ in alone] == [gene for gene, _ in model.likeliest(wanted, context, count=5)]
    # The likelihoods that the model gives to genes of lookup are those that it gives to its own.
    genes = list(free)[:7]
    again = GeneProposals(model, lookup).log_likelihoods(genes, wanted, context)
    assert again == pytest.approx([free[gene] for gene in genes], abs=1e-3)
    with pytest.raises(ConfigError, match="for a formula"):
        GeneProposals(model, lookup).likeliest(Wanted(2), context, count=1)
    with pytest.raises(ConfigError, match="lookup_weight"):
        GeneProposals(model, lookup, lookup_weight=1.5)


def test_space_groups_are_asked_for_by_number_or_system():
    assert asked_space_groups() == frozenset()
    assert asked_space_groups(space_group=225) == asked_space_groups(space_group="225", crystal_system="cubic") == {225}
    assert asked_space_groups(crystal_system="Cubic") == set(range(195, 231))
    for wrong in ({"space_group": 231}, {"space_group": "Fm-3m"}, {"crystal_system": "kubic"}):
        with pytest.raises(ConfigError, match="expected"):
            asked_space_groups(**wrong)
    with pytest.raises(ConfigError, match="225 is not hexagonal"):
        asked_space_groups(space_group=225, crystal_system="hexagonal")
