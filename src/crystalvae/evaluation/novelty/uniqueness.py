"""Uniqueness, novelty, and the share of crystals that are valid, unique and novel (V.U.N.)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import DataError
from crystalvae.evaluation.crystal_arrays import Arrays, Composition
from crystalvae.evaluation.matching.structure_matcher import Tolerance, first_match, first_of_groups
from crystalvae.evaluation.novelty.train_index import TIMEOUT_S, ReducedCells, TrainIndex
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.validity.composition import check_compositions, reduced_compositions
from crystalvae.evaluation.validity.structure import describe

TOLERANCES: Mapping[str, Tolerance] = {"": (0.2, 0.3, 5.0), "_loose": (0.3, 0.5, 10.0)}
"""ltol, stol, angle_tol by the ending of a metric's name.

The first are pymatgen's defaults, with which MatterGen (its ordered matcher), FlowMM and Chemeleon2 judge uniqueness
and novelty; the second are CDVAE's for reconstruction, beside them because some judge novelty with those.
"""
AT_ONCE = 24
"""Crystals of one composition that are grouped in one task; the rest are compared with the groups found so far."""


@dataclass(frozen=True, eq=False)
class ValidUniqueNovel:
    """What is valid, unique and novel of B generated crystals.

    `first` is the crystal that stands for each crystal's group of equal ones, `train_match` the first equal crystal of
    the training set; -1 where there is none, or where it was not looked for. `undecided` says why there was no answer.
    """

    valid: Bool[np.ndarray, "B"]
    unique: Bool[np.ndarray, "B"]
    novel: Bool[np.ndarray, "B"]
    first: Int[np.ndarray, "B"]
    train_match: Int[np.ndarray, "B"]
    undecided: Mapping[int, str]

    @property
    def vun(self) -> Bool[np.ndarray, "B"]:
        """Crystals that are all three."""
        return self.valid & self.unique & self.novel

    def shares(self) -> dict[str, float]:
        """Return the shares of all crystals that are valid, valid and unique, and all three; NaN without crystals."""
        masks = {"valid": self.valid, "valid_unique": self.valid & self.unique, "vun": self.vun}
        return {name: float(mask.mean()) if len(mask) else math.nan for name, mask in masks.items()}


def valid_crystals(crystals: CrystalBatch) -> Bool[np.ndarray, "B"]:
    """Return which crystals are valid in structure (CDVAE's limits) and composition (SMACT, its 2014 states)."""
    checks = check_compositions(reduced_compositions(crystals))
    return describe(crystals).valid.to_numpy(dtype=bool) & np.array([check.valid for check in checks], dtype=bool)


def valid_unique_novel(
    generated: CrystalBatch | ReducedCells,
    train_index: TrainIndex | None,
    *,
    runner: Runner | None = None,
    valid: Bool[np.ndarray, "B"] | None = None,
    tolerance: Tolerance = TOLERANCES[""],
    only_valid: bool = True,
) -> ValidUniqueNovel:
    """Return which of the generated crystals are valid, unique among themselves, and not in the training set.

    With `only_valid`, which is what V.U.N. needs, only valid crystals are compared with each other and only unique ones
    with the training set; others count as neither unique nor novel. Valid crystals stand before invalid ones when
    groups are formed, so that V.U.N. is the same either way: the number of different valid crystals outside the
    training set, over the number of crystals. Without a training set everything that was compared is novel.

    `valid` defaults to `valid_crystals`, `runner` to this process alone without a progress bar. `ReducedCells` of the
    generated crystals can be given instead of a batch, to compare them twice.

    Raises `DataError` unless `valid` has one value per crystal.
    """
    runner = runner or Runner(n_jobs=1, progress=False)
    timeout_s = train_index.cells.timeout_s if train_index is not None else TIMEOUT_S
    cells = generated if isinstance(generated, ReducedCells) else ReducedCells(generated, timeout_s=timeout_s)
    valid = valid_crystals(cells.crystals) if valid is None else valid
    if valid.shape != (len(cells),):
        raise DataError(f"valid: expected one value for each of {len(cells)} crystals, got shape {valid.shape}")
    order = (np.flatnonzero(valid) if only_valid else np.argsort(~valid, kind="stable")).tolist()
    reduced = cells.get(order, runner)
    known = [i for i in order if i in reduced]
    comparison = _Comparison(tolerance, cells.timeout_s, runner)
    groups = _Groups(comparison, cells.compositions, reduced)
    groups.find(known)
    unique = groups.first == np.arange(len(cells))
    asked = [i for i in known if unique[i] or not only_valid]
    train_match, unclear = comparison.train_matches(asked, cells.compositions, reduced, train_index)
    novel = np.zeros(len(cells), dtype=bool)
    novel[[i for i in asked if train_match[i] < 0 and i not in unclear]] = True
    without_cell = {index: cells.failures[index] for index in order if index in cells.failures}
    return ValidUniqueNovel(
        valid=valid,
        unique=unique,
        novel=novel,
        first=groups.first,
        train_match=train_match,
        undecided={**without_cell, **groups.undecided, **unclear},
    )


@dataclass(frozen=True)
class _Comparison:
    """How reduced crystals are compared."""

    tolerance: Tolerance
    timeout_s: float | None
    runner: Runner

    def map(
        self, function: Callable[..., dict[str, Any]], items: Sequence[Any], description: str
    ) -> list[dict[str, Any]]:
        return self.runner.map(
            partial(function, tolerance=self.tolerance, timeout_s=self.timeout_s),
            items,
            description=description,
            namespace=f"{function.__name__}, tolerance {self.tolerance}, pymatgen {version('pymatgen-core')}",
        )

    def train_matches(
        self,
        indices: Sequence[int],
        compositions: Sequence[Composition],
        cells: Mapping[int, Arrays],
        train_index: TrainIndex | None,
    ) -> tuple[Int[np.ndarray, "B"], dict[int, str]]:
        """Return the first equal crystal of the training set, -1 for none, and why there was no answer where so."""
        found = np.full(len(compositions), -1, dtype=np.int64)
        if train_index is None:
            return found, {}
        wanted = {i: train_index.candidates(compositions[i]) for i in indices if compositions[i] in train_index}
        train_cells = train_index.cells.get([j for candidates in wanted.values() for j in candidates], self.runner)
        pairs = []
        for i, possible in wanted.items():
            candidates = [j for j in possible if j in train_cells and len(train_cells[j][0]) == len(cells[i][0])]
            if candidates:
                pairs.append((i, candidates))
        items = [(cells[i], [train_cells[j] for j in candidates]) for i, candidates in pairs]
        answers = self.map(first_match, items, "looking in the training set")
        unclear: dict[int, str] = {}
        for (i, candidates), answer in zip(pairs, answers, strict=True):
            if answer["match"] is not None:
                found[i] = candidates[answer["match"]]
            elif answer["failure"] is not None:
                unclear[i] = answer["failure"]
        return found, unclear


class _Groups:
    """Groups of equal crystals, as they are found: the first of each one's group, -1 where there was no answer."""

    def __init__(
        self, comparison: _Comparison, compositions: Sequence[Composition], cells: Mapping[int, Arrays]
    ) -> None:
        self.first: Int[np.ndarray, "B"] = np.full(len(compositions), -1, dtype=np.int64)
        self.undecided: dict[int, str] = {}
        self._comparison, self._compositions, self._cells = comparison, compositions, cells

    def find(self, order: Sequence[int]) -> None:
        """Form the groups of some crystals, earlier ones standing for later ones."""
        waiting: dict[tuple[Composition, int], list[int]] = defaultdict(list)
        for index in order:  # equal crystals have equal compositions and as many atoms in the primitive cell
            waiting[self._compositions[index], len(self._cells[index][0])].append(index)
        rest = list(waiting.values())
        while rest:
            heads = [members[:AT_ONCE] for members in rest]
            self._open(heads)
            rest = self._join(
                [
                    (members[AT_ONCE:], [i for i in head if self.first[i] == i])
                    for members, head in zip(rest, heads, strict=True)
                ]
            )

    def _open(self, heads: Sequence[list[int]]) -> None:
        """Group a few crystals of each composition."""
        for head in heads:
            if len(head) == 1:
                self.first[head[0]] = head[0]
        several = [head for head in heads if len(head) > 1]
        items = [[self._cells[i] for i in head] for head in several]
        answers = self._comparison.map(first_of_groups, items, "finding duplicates")
        for head, answer in zip(several, answers, strict=True):
            for index, position, failure in zip(head, answer["first"], answer["failure"], strict=True):
                if position is None:
                    self.undecided[index] = failure
                else:
                    self.first[index] = head[position]

    def _join(self, groups: Sequence[tuple[list[int], list[int]]]) -> list[list[int]]:
        """Let crystals join the groups that others opened; returns those that are left, by composition."""
        pairs = [(index, openers) for members, openers in groups for index in members]
        items = [(self._cells[index], [self._cells[i] for i in openers]) for index, openers in pairs]
        answers = self._comparison.map(first_match, items, "finding duplicates")
        joined: set[int] = set()
        for (index, openers), answer in zip(pairs, answers, strict=True):
            if answer["match"] is not None:
                self.first[index] = openers[answer["match"]]
                joined.add(index)
            elif answer["failure"] is not None:
                self.undecided[index] = answer["failure"]
                joined.add(index)
        left = [[index for index in members if index not in joined] for members, _ in groups]
        return [members for members in left if members]
