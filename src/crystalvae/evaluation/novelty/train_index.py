"""The training set as novelty needs it: by composition, with primitive cells that are made once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.evaluation.crystal_arrays import Arrays, Composition
from crystalvae.evaluation.matching.structure_matcher import reduce_cell
from crystalvae.evaluation.novelty.prototypes import anonymous_prototypes
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.parallel.time_limit import check_time_limit
from crystalvae.evaluation.validity.composition import reduced_compositions

TIMEOUT_S = 60.0
"""Seconds that one comparison, or one search for a primitive cell, may take."""


class ReducedCells:
    """Primitive Niggli cells of the crystals of a batch, made when first asked for and kept.

    `failures` tells, by crystal, why there is none.
    """

    def __init__(self, crystals: CrystalBatch, *, timeout_s: float | None = TIMEOUT_S) -> None:
        check_time_limit("timeout_s", timeout_s)
        self.crystals, self.timeout_s = crystals.detach().to("cpu"), timeout_s
        self.compositions = reduced_compositions(crystals)
        self.failures: dict[int, str] = {}
        self._cells: dict[int, Arrays] = {}

    def __len__(self) -> int:
        return len(self.crystals)

    def get(self, indices: Sequence[int], runner: Runner) -> dict[int, Arrays]:
        """Return the cells of some crystals, without those that have none."""
        missing = [index for index in dict.fromkeys(indices) if index not in self._cells | self.failures]
        reduced = runner.map(
            partial(reduce_cell, timeout_s=self.timeout_s),
            self.crystals[missing].to_arrays(),
            description="primitive cells",
            namespace=f"primitive Niggli cell, pymatgen {version('pymatgen-core')}",
        )
        for index, cell in zip(missing, reduced, strict=True):
            if "failure" in cell:
                self.failures[index] = str(cell["failure"])
            else:
                self._cells[index] = (
                    np.array(cell["numbers"], dtype=np.int64),
                    np.array(cell["frac_coords"], dtype=np.float64).reshape(-1, 3),
                    np.array(cell["lattice"], dtype=np.float64),
                )
        return {index: self._cells[index] for index in indices if index in self._cells}


class TrainIndex:
    """The crystals that a novel one must differ from, by composition; primitive cells are kept once they are made.

    Reusable: a training callback makes one and asks it again and again.
    """

    def __init__(self, crystals: CrystalBatch, *, timeout_s: float | None = TIMEOUT_S) -> None:
        self.cells = ReducedCells(crystals, timeout_s=timeout_s)
        self._by_composition: dict[Composition, list[int]] = defaultdict(list)
        for index, composition in enumerate(self.cells.compositions):
            self._by_composition[composition].append(index)
        self._prototypes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.cells)

    def __contains__(self, composition: Composition) -> bool:
        return composition in self._by_composition

    def candidates(self, composition: Composition) -> list[int]:
        """Return the numbers of the crystals of a composition, in order."""
        return self._by_composition.get(composition, [])

    def prototypes(self, runner: Runner) -> list[str]:
        """Return the anonymised prototype of each crystal, found once."""
        if self._prototypes is None:
            self._prototypes = anonymous_prototypes(self.cells.crystals, runner=runner)
        return self._prototypes
