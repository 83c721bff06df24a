"""Uniqueness, novelty and V.U.N.: small sets worked out by hand, pymatgen's own grouping, bad crystals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.matching import structure_matcher as grouping
from crystalvae.evaluation.matching.structure_matcher import first_match, reduce_cell
from crystalvae.evaluation.novelty import uniqueness
from crystalvae.evaluation.novelty.section import uniqueness_section
from crystalvae.evaluation.novelty.train_index import TrainIndex
from crystalvae.evaluation.novelty.uniqueness import TOLERANCES, valid_unique_novel
from crystalvae.evaluation.parallel.cache import ResultCache
from crystalvae.evaluation.parallel.runner import Runner
from tests.test_validity import cubic, real_crystals
from tests.test_validity_section import rock_salt

pytest.importorskip("smact", reason="needs SMACT")
HERE = Runner(n_jobs=1, progress=False)


def primitive_rock_salt(side: float = 5.64) -> CrystalBatch:
    lattice = side / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    return CrystalBatch.from_arrays([(np.array([11, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), lattice)])


def caesium_chloride(numbers: tuple[int, int] = (11, 17)) -> CrystalBatch:
    return cubic(3.5, list(numbers), [[0, 0, 0], [0.5, 0.5, 0.5]])


def perovskite(number: int) -> CrystalBatch:
    coords = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return cubic(3.9, [number, 22, 8, 8, 8], coords)


def known_set() -> CrystalBatch:
    """Rock salt, the same in its primitive cell and larger, NaCl as CsCl, SrTiO3 twice, NaCl overlapping, Na3Cl."""
    return CrystalBatch.cat(
        [
            rock_salt(),
            primitive_rock_salt(5.9),
            caesium_chloride(),
            perovskite(38),
            perovskite(38),
            cubic(10.0, [11, 17], [[0.1, 0, 0], [0.13, 0, 0]]),
            cubic(4.5, [11, 11, 11, 17], [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 0]]),
        ]
    )


def test_masks_are_those_worked_out_by_hand():
    train = TrainIndex(CrystalBatch.cat([perovskite(56), perovskite(38), rock_salt(6.1)]))
    found = valid_unique_novel(known_set(), train, runner=HERE, only_valid=False)
    assert found.valid.tolist() == [True] * 5 + [False, False]  # atoms too close; Na3Cl is not neutral
    assert found.unique.tolist() == [True, False, True, True, False, True, True]
    assert found.first.tolist() == [0, 0, 2, 3, 3, 5, 6]
    assert found.novel.tolist() == [False, False, True, False, False, True, True]
    assert found.train_match.tolist() == [2, 2, -1, 1, 1, -1, -1]
    assert found.undecided == {}


def test_the_training_set_is_searched_to_its_end():
    train = TrainIndex(CrystalBatch.cat([caesium_chloride(), rock_salt(6.1)]))
    found = valid_unique_novel(CrystalBatch.cat([rock_salt(), caesium_chloride()]), train, runner=HERE)
    assert found.train_match.tolist() == [1, 0]


def test_vun_is_the_same_whether_invalid_crystals_are_compared_or_not():
    train = TrainIndex(rock_salt())
    # An invalid crystal that equals a later valid one must not stand for the group.
    generated = CrystalBatch.cat([perovskite(38), perovskite(38), caesium_chloride(), known_set()])
    valid = np.array([False, True, True] + [True] * 7)
    every = valid_unique_novel(generated, train, runner=HERE, valid=valid, only_valid=False)
    fewer = valid_unique_novel(generated, train, runner=HERE, valid=valid)
    assert every.vun.tolist() == fewer.vun.tolist()
    assert every.unique[:2].tolist() == [False, True]
    assert not fewer.unique[0]
    assert not fewer.novel[0]
    assert fewer.shares()["vun"] == pytest.approx(fewer.vun.mean())


def test_the_training_index_keeps_its_primitive_cells(monkeypatch: pytest.MonkeyPatch):
    train = TrainIndex(CrystalBatch.cat([perovskite(38), rock_salt()]))
    assert ((11, 1), (17, 1)) in train
    assert train.candidates(((22, 1),)) == []
    first = valid_unique_novel(rock_salt(6.0), train)
    done = []
    monkeypatch.setattr(
        "crystalvae.evaluation.novelty.train_index.reduce_cell",
        lambda crystal, **_: done.append(1) or reduce_cell(crystal),
    )
    again = valid_unique_novel(rock_salt(6.0), train)
    assert len(done) == 1  # the generated one alone
    assert first.train_match.tolist() == again.train_match.tolist() == [1]


def test_the_section_has_the_shares_worked_out_by_hand():
    train = CrystalBatch.cat([perovskite(38), rock_salt(6.1)])
    section = uniqueness_section(
        generated=known_set(), train=train, runner=HERE, valid=np.array([True] * 5 + [False] * 2), unreadable=1,
        train_ids=["perovskite", "salt"],
    )  # fmt: skip
    values = {name: metric.value for name, metric in section.metrics.items()}
    assert values["unique"] == 5 / 8
    assert values["novel"] == 3 / 8
    assert values["unique_novel"] == 3 / 8
    assert values["vun"] == 1 / 8  # NaCl as CsCl
    assert values["unique_formula"] == 3 / 8
    assert values["novel_formula"] == 1 / 8
    assert values["undecided"] == values["undecided_loose"] == 0
    assert {f"{name}_loose" for name in ("unique", "novel", "unique_novel", "vun")} <= set(values)
    assert section.per_crystal["train_match"] == ["salt", "salt", None, "perovskite", "perovskite", None, None]
    assert section.per_crystal["same_as"] == [None, 0, None, None, 3, None, None]
    assert section.metrics["unique"].count == 8


def test_without_a_training_set_there_is_no_novelty():
    section = uniqueness_section(generated=known_set(), runner=HERE)
    assert section.metrics["unique"].value == 5 / 7
    assert not {"novel", "vun", "novel_formula"} & set(section.metrics)


def test_looser_tolerances_find_more_duplicates():
    # The oxygens of one perovskite leave their faces until only the looser tolerances see the same crystal.
    moved = perovskite(38).frac_coords.clone()
    shift = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.13, 0.13, 0.0], [-0.13, 0.0, 0.13], [0.0, -0.13, -0.13]])
    pair = CrystalBatch.cat([perovskite(38), perovskite(38).replace(frac_coords=moved + shift)])
    metrics = uniqueness_section(generated=pair, runner=HERE).metrics
    assert metrics["unique"].value == 1.0
    assert metrics["unique_loose"].value == 0.5


def test_long_groups_are_the_groups_of_pymatgen(monkeypatch: pytest.MonkeyPatch):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    rng = np.random.default_rng(0)
    kinds = [rng.random((4, 3)) for _ in range(6)]
    crystals = CrystalBatch.from_arrays(
        (np.array([22, 22, 8, 8]), kinds[k] + 0.003 * rng.standard_normal((4, 3)), 4.5 * np.eye(3))
        for k in rng.integers(0, 6, 40)
    )
    structures = crystals.to_structure()
    groups = StructureMatcher().group_structures(structures)
    openers = {id(group[0]) for group in groups}
    expected = [id(structure) in openers for structure in structures]
    for at_once in (3, 1000):
        monkeypatch.setattr(uniqueness, "AT_ONCE", at_once)
        found = valid_unique_novel(crystals, None, runner=HERE, valid=np.ones(40, dtype=bool))
        assert found.unique.tolist() == expected
    assert 4 <= sum(expected) <= 8


@pytest.mark.mp20
def test_real_crystals_get_pymatgens_answers(mp20_dir: Path):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    crystals = real_crystals(mp20_dir, 40)
    noisy = crystals.replace(
        frac_coords=crystals.frac_coords
        + 0.03 * torch.randn(crystals.frac_coords.shape, generator=torch.manual_seed(0))
    )
    found = valid_unique_novel(noisy, TrainIndex(crystals), runner=HERE, only_valid=False)
    matcher = StructureMatcher()
    expected = [
        not any(matcher.fit(other, structure) for other in crystals.to_structure())
        for structure in noisy.to_structure()
    ]
    assert found.novel.tolist() == expected
    assert valid_unique_novel(crystals, TrainIndex(crystals), only_valid=False).novel.sum() == 0


def bad_set() -> CrystalBatch:
    """Fine, not finite, no volume, all atoms in one place, unknown element, 500 atoms."""
    rng = np.random.default_rng(0)
    crystals = CrystalBatch.cat(
        [
            rock_salt(),
            rock_salt(),
            rock_salt(),
            cubic(4.0, [11, 17, 17], [[0.2, 0.2, 0.2]] * 3),
            rock_salt(),
            CrystalBatch.from_arrays([(rng.integers(1, 95, 500), rng.random((500, 3)), 18.0 * np.eye(3))]),
        ]
    )
    coords, lattices, numbers = crystals.frac_coords.clone(), crystals.lattices.clone(), crystals.atom_types.clone()
    coords[8] = math.nan
    lattices[2] = 0.0
    numbers[27] = 0
    return crystals.replace(frac_coords=coords, lattices=lattices, atom_types=numbers)


def test_bad_crystals_are_counted_with_a_reason():
    section = uniqueness_section(generated=bad_set(), train=rock_salt(), runner=HERE, timeout_s=20.0)
    reasons = section.per_crystal["undecided"]
    assert reasons[0] == reasons[3] == ""
    assert reasons[1] == "numbers that are not finite"
    assert str(reasons[2]).startswith("volume of 0 Å^3")
    assert reasons[4] == "unknown element"
    assert section.metrics["undecided"].value == 3
    assert section.metrics["vun"].value == 0.0


def test_a_comparison_that_takes_too_long_leaves_a_crystal_undecided(monkeypatch: pytest.MonkeyPatch):
    class Slow:
        def fit(self, *_: object, **__: object) -> bool:
            while True:
                pass

    monkeypatch.setattr(grouping, "_matcher", lambda _: Slow())
    train = TrainIndex(primitive_rock_salt(), timeout_s=0.1)
    found = valid_unique_novel(CrystalBatch.cat([rock_salt(), rock_salt()]), train, runner=HERE)
    assert found.unique.tolist() == [True, False]
    assert not found.novel.any()
    assert set(found.undecided.values()) == {"no answer of the matcher within 0.1 s"}


def test_errors_of_the_matcher_are_told(monkeypatch: pytest.MonkeyPatch):
    class Broken:
        def fit(self, *_: object, **__: object) -> bool:
            raise RuntimeError("no such lattice")

    monkeypatch.setattr(grouping, "_matcher", lambda _: Broken())
    (cell,) = primitive_rock_salt().to_arrays()
    assert first_match((cell, [cell]), tolerance=TOLERANCES[""]) == {
        "match": None,
        "failure": "RuntimeError: no such lattice",
        "passing": False,
    }


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match="timeout_s=0"):
        uniqueness_section(generated=rock_salt(), runner=HERE, timeout_s=0.0)
    with pytest.raises(DataError, match="one value for each of 1 crystals"):
        valid_unique_novel(rock_salt(), None, valid=np.ones(2, dtype=bool))


def test_processes_cache_and_order_do_not_matter(tmp_path: Path):
    generated, train = known_set(), CrystalBatch.cat([perovskite(38), rock_salt(6.1)])
    cached = Runner(n_jobs=2, cache=ResultCache(tmp_path), progress=False)
    sections = [uniqueness_section(generated=generated, train=train, runner=r) for r in (HERE, cached, cached)]
    assert sections[0] == sections[1] == sections[2]
    empty = uniqueness_section(generated=CrystalBatch.from_arrays([]), train=train, runner=HERE)
    assert empty.metrics["unique"].value is None
