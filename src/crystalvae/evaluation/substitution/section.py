"""The substitution reference: structures by analogy with the training set (`data.analogy`), judged as a model's are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from crystalvae.data.analogy import Analogue, AnalogyLibrary, ElementMetric
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import SkippedRow
from crystalvae.errors import DataError
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.matching.candidates import Candidates
from crystalvae.evaluation.matching.section import csp_section
from crystalvae.evaluation.metric import Metric, Section
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.validity.contacts import MIN_CONTACT, contacts

NAME = "substitution"
TITLE = "Substitution, without a model"
TITLE_LEARNED = "Substitution, distances of elements learned from the training set"
SOURCE = "this package's crystalvae.data.analogy"
PREFIX = f"{NAME}_"
"""In front of each metric's name: `substitution_vun` is what `vun` is of the model's crystals."""
MOST_CRYSTALS = 1000
"""Of how many generated crystals the compositions are taken; enough to tell percents apart."""
NO_LIBRARY = "train_split=null: there are no training crystals to take analogues from"
_OF_CANDIDATES = re.compile(
    r"(match_rate|rmse)(_strict|_gated|_gated_prediction)?@\d+|failed|timed_out|targets_without.*"
)
_OF_SAMPLES = re.compile(
    r"structure_valid|composition_valid|valid|contacts_valid|physical_valid|unique|novel|vun"
    r"|(p1|space_group_js|crystal_system_js|no_space_group)_[\d.]+"
    r"|(stable|metastable|sun|msun)(_relaxed)?|energy_above_hull|relaxation_(rmsd|displacement)"
)
"""Which metrics are shown, by name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Substitutes:
    """Crystals by analogy with those of a library.

    `candidates` says for which target each of them is; `sources` are the ids of the training crystals they came from.
    Targets without any are unreadable crystals of the set where one crystal was wanted for each. `metric` is the
    library's, by which they were chosen.
    """

    crystals: CrystalSet
    candidates: Candidates
    sources: Sequence[str]
    distances: Sequence[float]
    metric: ElementMetric


def substitutes_for_targets(
    library: AnalogyLibrary, targets: CrystalSet, *, count: int, progress: bool = True
) -> Substitutes:
    """Return up to `count` candidates for the composition of each target, none of them from the target itself."""
    wanted = zip(_tracked(targets.crystals, progress), targets.ids, strict=True)
    found = [library.search(numbers, count=count, exclude={name}) for numbers, name in wanted]
    library.genes.save()
    owner = np.repeat(np.arange(len(found)), [len(entries) for entries in found])
    rank = np.concatenate([np.empty(0, np.int64), *(np.arange(len(entries)) for entries in found)]).astype(np.int64)
    ids = [f"{targets.ids[i]}_{j}" for i, j in zip(owner.tolist(), rank.tolist(), strict=True)]
    entries = [entry for candidates in found for entry in candidates]
    name = f"up to {count} analogues per target of {targets.name}"
    crystals = CrystalSet.of(name, _batch(entries), ids)
    return _substitutes(library, crystals, entries, owner, rank, len(found))


def substitutes_for_samples(
    library: AnalogyLibrary, generated: CrystalSet, *, seed: int, progress: bool = True
) -> Substitutes:
    """Return the first analogue for the composition of each generated crystal, of at most `MOST_CRYSTALS` by `seed`.

    Where the library has none the crystal is an unreadable one of the set, and so counts as invalid. Raises
    `DataError` where there is no generated crystal to take a composition from.
    """
    if len(generated.crystals) == 0:
        raise DataError(f"{generated.name}: no readable crystal to take a composition from")
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = sorted(torch.randperm(len(generated.crystals), generator=generator)[:MOST_CRYSTALS].tolist())
    found = [library.search(numbers, count=1) for numbers in _tracked(generated.crystals[chosen], progress)]
    library.genes.save()
    ids = [generated.ids[i] for i in chosen]
    positions = [place for place, entries in enumerate(found) if entries]
    missing = [
        SkippedRow(place, ids[place], "no training crystal has as many atoms of each element")
        for place, entries in enumerate(found)
        if not entries
    ]
    entries = [found[place][0] for place in positions]
    name = f"analogues for {len(chosen)} compositions of {generated.name}"
    crystals = CrystalSet(name, _batch(entries), [ids[place] for place in positions], positions, missing)
    owner = np.array(positions, dtype=np.int64)
    return _substitutes(library, crystals, entries, owner, np.zeros(len(positions)), len(found))


def csp_reference(
    *, targets: CrystalSet, substitutes: Substitutes, ks: Sequence[int], runner: Runner, timeout_s: float | None
) -> Section:
    """Match substitutes with the targets as a model's candidates are matched; see `csp_section`."""
    crystals, candidates = substitutes.crystals, substitutes.candidates
    matched = csp_section(
        targets=targets.crystals, generated=crystals.crystals, candidates=candidates, runner=runner, ks=ks,
        target_ids=targets.ids, timeout_s=timeout_s,
    )  # fmt: skip
    early = contacts(crystals.crystals[candidates.rank == 0])
    sound = Metric(
        int((early >= MIN_CONTACT).sum()) / candidates.targets,
        f"share of targets whose first analogue has no contact below {MIN_CONTACT:g} of the covalent radii",
        SOURCE, "share", "higher", candidates.targets,
    )  # fmt: skip
    return Section(
        name=NAME,
        title=_title(substitutes.metric),
        metrics={**_renamed([matched], _OF_CANDIDATES), f"{PREFIX}contacts_valid@1": sound},
        settings=_settings(substitutes.metric, matched.settings),
        distributions={**_sources(substitutes), **matched.distributions},
    )


def generation_reference(sections: Iterable[Section], substitutes: Substitutes) -> Section:
    """Put together what the parts of an evaluation say of substitutes for generated crystals."""
    parts = [section for section in sections if not section.skipped]
    metrics = {
        f"{PREFIX}crystals": Metric(
            substitutes.candidates.targets, "compositions of generated crystals that an analogue was looked up for",
            SOURCE,
        ),
        f"{PREFIX}without_analogue": Metric(
            len(substitutes.crystals.unreadable),
            "of these, compositions without a training crystal of as many atoms per element; they count as invalid",
            SOURCE, better="lower",
        ),
    }  # fmt: skip
    return Section(
        name=NAME,
        title=_title(substitutes.metric),
        metrics={**metrics, **_renamed(parts, _OF_SAMPLES)},
        settings=_settings(substitutes.metric, {}),
        distributions=_sources(substitutes),
    )


def skipped_reference(reason: str) -> Section:
    """Return the section that says why there is no reference."""
    return Section(name=NAME, title=TITLE, skipped=reason)


def _substitutes(
    library: AnalogyLibrary,
    crystals: CrystalSet,
    entries: Sequence[Analogue],
    owner: np.ndarray,
    rank: np.ndarray,
    targets: int,
) -> Substitutes:
    return Substitutes(
        crystals=crystals,
        candidates=Candidates(owner=owner, rank=rank.astype(np.int64), targets=targets),
        sources=[entry.source for entry in entries],
        distances=[round(entry.distance, 3) for entry in entries],
        metric=library.metric,
    )


def _batch(entries: Sequence[Analogue]) -> CrystalBatch:
    return CrystalBatch.from_arrays(entry.arrays for entry in entries)


def _renamed(sections: Iterable[Section], shown: re.Pattern[str]) -> dict[str, Metric]:
    return {
        f"{PREFIX}{name}": replace(metric, definition=f"of the analogues: {metric.definition}")
        for section in sections
        for name, metric in section.metrics.items()
        if shown.fullmatch(name)
    }


def _title(metric: ElementMetric) -> str:
    return TITLE if metric.scales is None else TITLE_LEARNED


def _settings(metric: ElementMetric, settings: Mapping[str, object]) -> dict[str, object]:
    return {
        "library": "training set",
        "distances": "of the periodic table" if metric.scales is None else "learned from the training set",
        "order": f"sum of exp(-{metric.decay:g}·distance) over the crystals of a gene",
        **settings,
    }


def _sources(substitutes: Substitutes) -> dict[str, object]:
    return {
        "id": list(substitutes.crystals.ids),
        "source": list(substitutes.sources),
        "distance": list(substitutes.distances),
    }


def _tracked(crystals: CrystalBatch, progress: bool) -> Iterable[np.ndarray]:
    """Yield the atomic numbers of each crystal, with a progress bar where one is wanted."""
    numbers = [entry for entry, _, _ in crystals.to_arrays()]
    return track(numbers, "analogues", console=Console(stderr=True), transient=True, disable=not progress)
