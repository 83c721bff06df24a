"""The model of compositions: a distribution whose probabilities add up, drawn as it says, within what is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.canonical import element_order
from crystalvae.errors import ConfigError, DataError
from crystalvae.prior_module.composition_model import CompositionModel, Compositions
from tests.samples import random_crystals

ELEMENTS = (1, 2, 3, 4, 5)
"""H, He, Li, Be, B: He has no electronegativity and comes last, so that nothing may follow it."""


def model(*, elements: int = len(ELEMENTS), max_atoms: int = 6, seed: int = 0) -> CompositionModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = CompositionModel(
            d_model=16, nhead=2, num_layers=2, dropout=0.0, max_atoms=max_atoms, max_num_elements=elements + 1
        ).eval()
        for name, parameter in built.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.4)
    return built


def nothing(count: int) -> Tensor:
    return torch.zeros(count, 16)


def partitions(atoms: int, elements: tuple[int, ...]) -> Iterator[dict[int, int]]:
    if not elements:
        if atoms == 0:
            yield {}
        return
    for count in range(atoms + 1):
        for rest in partitions(atoms - count, elements[1:]):
            yield {elements[0]: count, **rest} if count else rest


def compositions(entries: list[dict[int, int]]) -> Compositions:
    return Compositions.of(
        CrystalBatch.empty([sum(entry.values()) for entry in entries]).replace(
            atom_types=torch.tensor([z for entry in entries for z, count in entry.items() for _ in range(count)])
        )
    )


def table(drawn: Compositions) -> list[dict[int, int]]:
    rows = zip(drawn.elements.tolist(), drawn.counts.tolist(), strict=True)
    return [{z: count for z, count in zip(*row, strict=True) if count} for row in rows]


# ---- compositions ----------------------------------------------------------------------------------------------------


def test_compositions_do_not_depend_on_the_order_of_atoms():
    numbers = torch.tensor([8, 26, 8, 26, 8, 11, 17, 8, 8])
    crystals = CrystalBatch.empty([5, 2, 2]).replace(atom_types=numbers)
    other = CrystalBatch.empty([5, 2, 2]).replace(atom_types=numbers[[1, 0, 4, 2, 3, 6, 5, 7, 8]])
    for entry in (crystals, other):
        found = Compositions.of(entry)
        assert found.elements.tolist() == [[26, 8], [11, 17], [8, 0]]  # by electronegativity, as formulas are written
        assert found.counts.tolist() == [[2, 3], [1, 1], [2, 0]]
        assert found.atom_types().tolist() == [26, 26, 8, 8, 8, 11, 17, 8, 8]


def test_compositions_of_random_crystals_count_every_atom():
    crystals = random_crystals((9, 1, 30, 4), seed=3)
    found = Compositions.of(crystals)
    assert found.counts.sum(dim=1).tolist() == crystals.num_atoms.tolist()
    ranks = element_order()
    for row, counts, first, last in zip(
        found.elements, found.counts, crystals.ptr[:-1].tolist(), crystals.ptr[1:].tolist(), strict=True
    ):
        own = crystals.atom_types[first:last].tolist()
        assert {z: n for z, n in zip(row.tolist(), counts.tolist(), strict=True) if n} == dict(Counter(own))
        order = ranks[row[counts > 0]]
        assert bool((order.diff() > 0).all())


# ---- probabilities ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("atoms", [1, 2, 3, 6])
def test_probabilities_of_all_compositions_add_up_to_one(atoms: int):
    every = list(partitions(atoms, ELEMENTS))
    built = model()
    conditions = torch.randn(16, generator=torch.Generator().manual_seed(1)).expand(len(every), 16)
    nll = built.negative_log_likelihood(compositions(every), conditions)
    assert bool((nll > 0).all())
    assert float((-nll.double()).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_batched_likelihoods_are_those_of_each_alone():
    every = list(partitions(4, ELEMENTS))
    built, conditions = model(), torch.randn(len(every), 16, generator=torch.Generator().manual_seed(2))
    together = built.negative_log_likelihood(compositions(every), conditions)
    alone = [
        built.negative_log_likelihood(compositions([entry]), conditions[i : i + 1]) for i, entry in enumerate(every)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    assert len(together.unique()) == len(every)


def test_likelihood_depends_on_conditions_and_has_finite_gradients():
    built = model()
    entries = compositions([{1: 2, 3: 1}, {5: 6}])
    conditions = torch.zeros(2, 16, requires_grad=True)
    built.negative_log_likelihood(entries, conditions).sum().backward()
    assert conditions.grad is not None
    assert bool((conditions.grad.abs().sum(dim=1) > 0).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in built.parameters() if p.grad is not None)


# ---- sampling --------------------------------------------------------------------------------------------------------


def test_sampled_frequencies_are_the_probabilities():
    built, draws = model(), 20_000
    every = list(partitions(3, ELEMENTS))
    probabilities = (-built.negative_log_likelihood(compositions(every), nothing(len(every)))).exp().tolist()
    sizes = torch.full((draws,), 3)
    drawn = table(built.sample(sizes, nothing(draws), generator=torch.Generator().manual_seed(0)))
    found = Counter(tuple(sorted(entry.items())) for entry in drawn)
    assert set(found) <= {tuple(sorted(entry.items())) for entry in every}
    for entry, probability in zip(every, probabilities, strict=True):
        spread = (probability * (1 - probability) / draws) ** 0.5
        assert abs(found[tuple(sorted(entry.items()))] / draws - probability) < 5 * spread + 1e-4


@pytest.mark.parametrize("temperature", [1e-6, 0.5, 1.0, 1e12])
@pytest.mark.parametrize("system", [None, (1, 3, 5)])
def test_counts_add_up_and_elements_are_in_order(temperature: float, system: tuple[int, ...] | None):
    built = model()
    sizes = torch.tensor([3, 6, 4, 5] * 50)
    generator = torch.Generator().manual_seed(4)
    drawn = built.sample(
        sizes, nothing(len(sizes)), generator=generator, temperature=temperature, chemical_system=system
    )
    assert torch.equal(drawn.counts.sum(dim=1), sizes)
    assert bool((drawn.counts >= 0).all())
    assert bool(((drawn.elements > 0) == (drawn.counts > 0)).all())
    for row, counts in zip(drawn.elements, drawn.counts, strict=True):
        assert bool((element_order()[row[counts > 0]].diff() > 0).all())
    crystals = CrystalBatch.empty(sizes).replace(atom_types=drawn.atom_types())
    assert table(Compositions.of(crystals)) == table(drawn)


def test_low_temperature_draws_the_likeliest_steps_and_high_the_rest():
    built, sizes = model(), torch.full((200,), 4)
    kinds = {
        temperature: len({
            tuple(entry.items())
            for entry in table(
                built.sample(sizes, nothing(200), generator=torch.Generator().manual_seed(0), temperature=temperature)
            )
        })
        for temperature in (1e-6, 1.0, 100.0)
    }  # fmt: skip
    assert kinds[1e-6] == 1 < kinds[1.0] < kinds[100.0]


def test_draws_are_a_function_of_the_seed():
    built, sizes = model(), torch.full((64,), 5)
    a, b, c = (
        table(built.sample(sizes, nothing(64), generator=torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert a == b != c


def test_a_chemical_system_has_each_of_its_elements_and_no_other():
    built, sizes = model(elements=90, max_atoms=12), torch.tensor([3, 12, 4, 7] * 100)
    generator = torch.Generator().manual_seed(0)
    exact = table(built.sample(sizes, nothing(400), generator=generator, chemical_system=[25, 3, 8]))
    assert {tuple(sorted(entry)) for entry in exact} == {(3, 8, 25)}
    assert {tuple(entry.values()) for entry in exact} > {(1, 1, 1), (1, 2, 1)}
    some = table(built.sample(sizes, nothing(400), generator=generator, chemical_system=[25, 3, 8, 8], subsystems=True))
    kinds = {tuple(sorted(entry)) for entry in some}
    assert all(set(kind) <= {3, 8, 25} for kind in kinds)
    assert len(kinds) > 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"chemical_system": [3, 8, 25]}, "3 elements do not fit into 2 atoms.*chemical_system_subsets"),
        ({"chemical_system": []}, r"chemical_system: got atomic numbers \[\]"),
        ({"chemical_system": [0]}, "chemical_system.*expected some of 1 to 30"),
        ({"chemical_system": [3, 200]}, r"chemical_system.*\[3, 200\]"),
        ({"temperature": 0.0}, "temperature: got 0.0"),
        ({"temperature": float("nan")}, "temperature: got nan"),
    ],
)
def test_impossible_requests_are_named(options: dict, match: str):
    with pytest.raises(ConfigError, match=match):
        model(elements=30).sample(torch.tensor([4, 2]), nothing(2), generator=torch.Generator(), **options)


def test_crystals_larger_than_the_model_are_named():
    with pytest.raises(DataError, match=r"7 atoms.*at most 6.*max_atoms"):
        model().sample(torch.tensor([7]), nothing(1), generator=torch.Generator())
    with pytest.raises(DataError, match=r"7 atoms.*at most 6"):
        model().negative_log_likelihood(compositions([{1: 7}]), nothing(1))


def test_a_width_that_heads_do_not_share_is_named():
    with pytest.raises(ConfigError, match=r"composition\.d_model: got 15 with nhead 2"):
        CompositionModel(d_model=15, nhead=2, num_layers=1)
