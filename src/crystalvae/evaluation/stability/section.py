"""Stability of generated crystals under a potential: relaxation, energy above a convex hull, S.U.N."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version

import numpy as np
from ase.data import chemical_symbols

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import DataError
from crystalvae.evaluation.crystal_arrays import Arrays
from crystalvae.evaluation.metric import Section
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.stability.elemental_crystals import elemental_crystals
from crystalvae.evaluation.stability.hull import (
    Entry,
    SystemIndex,
    composition,
    elemental_energies,
    energies_above_hull,
    formation_energies,
)
from crystalvae.evaluation.stability.metrics import Outcome, stability_metrics
from crystalvae.evaluation.stability.potentials import CHGNET, Potential
from crystalvae.evaluation.stability.relax_crystals import after_relaxation, energies, only_energy, relax_crystals
from crystalvae.evaluation.stability.relaxation import Relaxation, Relaxed, displacement, matched_rmsd

Classify = Callable[[CrystalBatch], tuple[Sequence[bool], Sequence[bool]]]
"""Says of crystals which are unique among themselves, and which are novel."""
Relax = Callable[..., list[Relaxed]]
"""`relax_crystals` under a potential, by a runner."""

_RMSD_TIME_LIMIT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class StabilitySettings:
    """What decides about stability, besides the potential.

    Energies are in eV/atom. `lowest` guards against the potential's own artefacts: what it puts further below the hull
    of known crystals than that counts as failed. `relax_hull=false` takes the hull's crystals as they are in the data
    set, which is many times quicker, and kind to generated crystals, as these are relaxed. `complete_elements` adds
    relaxed elemental crystals (`elemental_crystals`) for elements of which the hull has none. `max_crystals` is a
    choice by `seed` of the generated crystals; None for all. `sample` is how many crystals of the reference, by `seed`,
    stand for its energies.
    """

    relaxation: Relaxation = field(default_factory=Relaxation)
    relax_hull: bool = True
    complete_elements: bool = True
    stable: float = 0.0
    metastable: float = 0.1
    lowest: float = -1.0
    max_crystals: int | None = None
    sample: int = 1000
    seed: int = 0


def stability_section(
    *,
    generated: CrystalBatch,
    reference: CrystalBatch,
    hull: CrystalBatch | Sequence[Entry],
    hull_name: str,
    runner: Runner,
    potential: Potential = CHGNET,
    settings: StabilitySettings | None = None,
    unique: Sequence[object] | None = None,
    novel: Sequence[object] | None = None,
    classify: Classify | None = None,
    unreadable: int = 0,
) -> Section:
    """Relax generated crystals, and compare them with the convex hull of known ones under the same potential.

    Args:
        generated: The crystals in question. Structurally invalid ones are not relaxed, and count as not stable.
        reference: The distribution that energies are compared with.
        hull: The known crystals, as many as there are: all splits of a data set, since a hull that lacks a phase calls
            too much stable, and one that lacks an element says nothing of its compounds. Of these only such are
            computed as share per chemical system, or part of one, with generated crystals. Or their energies, which are
            taken as they are and should be of the potential's level of theory; no elements are added then.
        hull_name: What to call them in the output.
        runner: Runs and caches one relaxation a task.
        potential: The potential, for generated and known crystals alike.
        settings: Limits and thresholds.
        unique: For each generated crystal, as generated, whether it is the first of its group of equal ones.
        novel: For each generated crystal, as generated, whether it is outside the training set.
        classify: The same two of relaxed crystals, for the variant that judges after relaxation (MatterGen's).
        unreadable: How many more crystals were generated but could not be read; they count as not stable.

    Without the potential's package the section is skipped, and says what to install. Raises `ConfigError` for a
    potential that cannot be built, `DataError` for masks of another length.
    """
    missing = potential.missing()
    if missing:
        return Section(name="stability", title="Stability", skipped=missing)
    settings = settings or StabilitySettings()
    for name, mask in (("unique", unique), ("novel", novel)):
        if mask is not None and len(mask) != len(generated):
            raise DataError(f"{name}: expected one value for each of {len(generated)} crystals, got {len(mask)}")
    potential.calculator()  # what is wrong with it is said now, and not by a worker
    among = _choose(len(generated) + unreadable, settings.max_crystals, settings.seed)
    chosen = among[among < len(generated)]
    relax: Relax = partial(relax_crystals, potential=potential, runner=runner)
    ours = relax(generated[chosen], relaxation=settings.relaxation, description="relaxing crystals")
    arrays = generated[chosen].to_arrays()
    sample = reference[_choose(len(reference), settings.sample, settings.seed)]
    elements = {number for numbers, _, _ in (*arrays, *sample.to_arrays()) for number in numbers.tolist()}
    given = not isinstance(hull, CrystalBatch)
    known, unusable = (list(hull), 0) if given else _known_entries(hull, arrays, elements, settings, relax)
    added: list[str] = []
    if settings.complete_elements and not given:
        more = _missing_elements(elements - set(elemental_energies(known)), settings, relax)
        known, added = [*known, *more], [chemical_symbols[number] for number in sorted(elemental_energies(more))]
    outcomes = _outcomes(arrays, ours, known, settings, runner)
    expected = _formation_energies_of(sample, known, settings, relax)
    masks = {} if unique is None or novel is None else {"": _both(unique, novel, chosen)}
    if classify is not None:
        masks["_relaxed"] = _classified(arrays, ours, outcomes, classify)
    lost = len(among) - len(chosen)
    masks = {ending: np.concatenate((mask, np.zeros(lost, dtype=bool))) for ending, mask in masks.items()}
    metrics = stability_metrics(
        [*outcomes, *[Outcome(failure="unreadable")] * lost],
        expected,
        masks,
        potential=potential.name,
        hull=hull_name,
        stable=settings.stable,
        metastable=settings.metastable,
        unusable=unusable,
    )
    return Section(
        name="stability",
        title="Stability",
        metrics=metrics,
        settings={
            "potential": potential.name,
            "calculator": potential.config,
            "versions": {**potential.versions(), "pymatgen-core": version("pymatgen-core")},
            "hull": hull_name,
            "hull_crystals": len(known),
            "hull_elements_added": added,
            **asdict(settings),
        },
        per_crystal=_columns(outcomes, chosen, len(generated)),
        relaxed=_relaxed(arrays, ours, chosen),
        distributions={
            "energy_above_hull": [outcome.above_hull for outcome in outcomes if math.isfinite(outcome.above_hull)],
            "formation_energy": {
                "generated": [o.formation_energy for o in outcomes if math.isfinite(o.formation_energy)],
                "reference": expected,
            },
        },
    )


def _known_entries(
    hull: CrystalBatch, judged: Sequence[Arrays], elements: set[int], settings: StabilitySettings, relax: Relax
) -> tuple[list[Entry], int]:
    """Return the energies of those known crystals that matter for `judged`, and all elemental ones of `elements`.

    Also returns how many of these had no energy.
    """
    index = SystemIndex(frozenset(numbers.tolist()) for numbers, _, _ in hull.to_arrays())
    systems = {frozenset(numbers.tolist()) for numbers, _, _ in judged} | {frozenset((number,)) for number in elements}
    part = hull[sorted({i for system in systems for i in index.inside(system)})]
    relaxation = settings.relaxation if settings.relax_hull else only_energy(settings.relaxation)
    description = "relaxing the hull's crystals" if settings.relax_hull else "energies of the hull's crystals"
    entries = energies(part, relax(part, relaxation=relaxation, description=description))
    return entries, len(part) - len(entries)


def _missing_elements(elements: set[int], settings: StabilitySettings, relax: Relax) -> list[Entry]:
    """Return the lowest relaxed crystal of each element, for those of which the potential gives one."""
    crystals = elemental_crystals(sorted(number for number in elements if 1 <= number <= 118))
    results = relax(crystals, relaxation=settings.relaxation, description="relaxing elements that the hull lacks")
    lowest = elemental_energies(energies(crystals, results))
    return [Entry({number: 1}, energy) for number, energy in lowest.items()]


def _outcomes(
    arrays: Sequence[Arrays],
    results: Sequence[Relaxed],
    known: Sequence[Entry],
    settings: StabilitySettings,
    runner: Runner,
) -> list[Outcome]:
    good = [i for i, result in enumerate(results) if not result["failure"]]
    entries = [Entry(composition(arrays[i][0]), results[i]["energy"]) for i in good]
    initial = [Entry(entry.composition, results[i]["initial_energy"]) for i, entry in zip(good, entries, strict=True)]
    above = energies_above_hull(entries, known, runner=runner)
    formation = formation_energies(initial, elemental_energies(known))
    pairs = [(arrays[i], after_relaxation(arrays[i], results[i])) for i in good]
    distances = runner.map(
        partial(matched_rmsd, time_limit_s=_RMSD_TIME_LIMIT_S),
        pairs,
        description="RMSD of relaxation",
        namespace=f"matched_rmsd/1/{version('pymatgen-core')}",
    )
    outcomes = [Outcome(failure=result["failure"]) for result in results]
    for i, entry, (energy, no_hull), at_start, pair, rmsd in zip(
        good, entries, above, formation, pairs, distances, strict=True
    ):
        failure = no_hull
        if energy < settings.lowest:
            failure = f"{energy:.2f} eV/atom above the hull, below {settings.lowest:g}: the potential cannot be trusted"
        outcomes[i] = Outcome(
            failure=failure,
            energy=results[i]["energy"] / entry.atoms,
            relaxation_energy=(results[i]["initial_energy"] - results[i]["energy"]) / entry.atoms,
            above_hull=math.nan if failure else energy,
            formation_energy=at_start,
            rmsd=rmsd["rmsd"],
            matched=rmsd["matched"],
            displacement=displacement(*pair),
            steps=results[i]["steps"],
            converged=results[i]["converged"],
            relaxed=True,
        )
    return outcomes


def _formation_energies_of(
    sample: CrystalBatch, known: Sequence[Entry], settings: StabilitySettings, relax: Relax
) -> list[float]:
    results = relax(sample, relaxation=only_energy(settings.relaxation), description="energies of the reference")
    found = formation_energies(energies(sample, results), elemental_energies(known))
    return [value for value in found if math.isfinite(value)]


def _classified(
    arrays: Sequence[Arrays], results: Sequence[Relaxed], outcomes: Sequence[Outcome], classify: Classify
) -> np.ndarray:
    relaxed = np.array([outcome.relaxed for outcome in outcomes], dtype=bool)
    batch = CrystalBatch.from_arrays(
        [after_relaxation(arrays[i], results[i]) for i in np.flatnonzero(relaxed).tolist()]
    )
    unique, novel = classify(batch)
    mask = np.zeros(len(outcomes), dtype=bool)
    mask[relaxed] = np.asarray(unique, dtype=bool) & np.asarray(novel, dtype=bool)
    return mask


def _relaxed(
    arrays: Sequence[Arrays], results: Sequence[Relaxed], chosen: np.ndarray
) -> tuple[Sequence[int], CrystalBatch]:
    """Return which of the generated crystals were relaxed, and the same as they ended."""
    done = [i for i, result in enumerate(results) if not result["failure"]]
    return chosen[done].tolist(), CrystalBatch.from_arrays([after_relaxation(arrays[i], results[i]) for i in done])


def _columns(outcomes: Sequence[Outcome], chosen: np.ndarray, total: int) -> dict[str, Sequence[object]]:
    by_index = dict(zip(chosen.tolist(), outcomes, strict=True))
    unasked = Outcome(failure="not chosen (max_crystals)")
    rows = [by_index.get(i, unasked) for i in range(total)]

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "energy_above_hull": [finite(row.above_hull) for row in rows],
        "energy": [finite(row.energy) for row in rows],
        "formation_energy": [finite(row.formation_energy) for row in rows],
        "relaxation_rmsd": [finite(row.rmsd) for row in rows],
        "relaxation_displacement": [finite(row.displacement) for row in rows],
        "relaxation_steps": [row.steps if row.relaxed else None for row in rows],
        "converged": [row.converged if row.relaxed else None for row in rows],
        "failure": [row.failure or None for row in rows],
    }


def _both(unique: Sequence[object], novel: Sequence[object], chosen: np.ndarray) -> np.ndarray:
    return (np.asarray(unique, dtype=bool) & np.asarray(novel, dtype=bool))[chosen]


def _choose(total: int, count: int | None, seed: int) -> np.ndarray:
    if count is None or count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, size=count, replace=False))
