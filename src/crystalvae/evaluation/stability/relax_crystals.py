"""Many crystals under a potential: relaxations and energies, run in parallel and kept between runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.evaluation.crystal_arrays import Arrays
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.stability.hull import Entry, composition
from crystalvae.evaluation.stability.potentials import Potential
from crystalvae.evaluation.stability.relaxation import Relaxation, Relaxed, failed, relax
from crystalvae.evaluation.validity.structure import describe, map_valid

RELAX_VERSION = 2
"""Part of every cache key: raise it whenever the same crystal would be relaxed differently."""


def relax_crystals(
    crystals: CrystalBatch,
    *,
    potential: Potential,
    relaxation: Relaxation,
    runner: Runner,
    description: str = "relaxing crystals",
) -> list[Relaxed]:
    """Relax crystals, each on its own; structurally invalid ones, before or after, come back as failed.

    Results are cached by content, potential and settings; what ran out of time is tried again the next time.
    """
    results: list[Relaxed] = map_valid(
        partial(relax, potential=potential, relaxation=relaxation),
        crystals,
        runner=runner,
        otherwise=failed,
        description=description,
        namespace=f"relax/{RELAX_VERSION}/{potential.identity()}/{relaxation.identity()}",
        chunk=2,
    )
    ended = [i for i, result in enumerate(results) if not result["failure"]]
    before = crystals.to_arrays()
    relaxed = CrystalBatch.from_arrays([after_relaxation(before[i], results[i]) for i in ended])
    broken = dict(zip(ended, describe(relaxed)["reason"], strict=True))
    return [failed(f"after relaxation: {broken[i]}") if broken.get(i) else result for i, result in enumerate(results)]


def energies(crystals: CrystalBatch, results: Sequence[Relaxed]) -> list[Entry]:
    """Return composition and energy after relaxation of each crystal that has one."""
    return [
        Entry(composition(numbers), result["energy"])
        for (numbers, _, _), result in zip(crystals.to_arrays(), results, strict=True)
        if not result["failure"]
    ]


def only_energy(relaxation: Relaxation) -> Relaxation:
    """Return settings that give the energy of crystals as they are."""
    return Relaxation(
        optimizer=relaxation.optimizer, fmax=relaxation.fmax, max_steps=0, time_limit_s=relaxation.time_limit_s
    )


def after_relaxation(before: Arrays, result: Relaxed) -> Arrays:
    """Return a crystal as it was after relaxation, coordinates not wrapped."""
    return before[0], np.array(result["frac_coords"]).reshape(-1, 3), np.array(result["lattice"]).reshape(3, 3)
