"""The whole evaluation: which parts there are, and how they follow from each other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.distributions.coverage import CUTOFFS, Cutoffs, coverage_section
from crystalvae.evaluation.distributions.wasserstein import NUM_SAMPLES, wasserstein_section
from crystalvae.evaluation.evaluation_report import EvaluationReport, Kind
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.matching.csp import csp_section
from crystalvae.evaluation.matching.match_rate import Candidates
from crystalvae.evaluation.matching.pairs import TIME_LIMIT_S
from crystalvae.evaluation.matching.reconstruction import reconstruction_metrics
from crystalvae.evaluation.metric import Section
from crystalvae.evaluation.novelty.section import uniqueness_section
from crystalvae.evaluation.novelty.train_index import ReducedCells, TrainIndex
from crystalvae.evaluation.novelty.uniqueness import valid_unique_novel
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.speed import SamplingTimes, speed_section
from crystalvae.evaluation.stability.potentials import CHGNET, Potential
from crystalvae.evaluation.stability.section import StabilitySettings, stability_section
from crystalvae.evaluation.substitution.section import (
    Substitutes,
    csp_reference,
    generation_reference,
    skipped_reference,
)
from crystalvae.evaluation.symmetry.section import TOLERANCES as SYMMETRY_TOLERANCES
from crystalvae.evaluation.symmetry.section import symmetry_section
from crystalvae.evaluation.symmetry.space_groups import Library
from crystalvae.evaluation.validity.composition import PUBLISHED_STATES
from crystalvae.evaluation.validity.contacts import MIN_CONTACT
from crystalvae.evaluation.validity.section import validity_section

log = logging.getLogger(__name__)

SECTIONS = ("validity", "coverage", "wasserstein", "uniqueness", "symmetry", "stability", "speed")
"""Parts that judge generated crystals, in the order in which they are worked out and shown."""
DEFAULT_SECTIONS: Mapping[Kind, Sequence[str]] = {
    "reconstruction": ("validity",),
    "csp": ("validity",),
    "generation": ("validity", "coverage", "wasserstein", "uniqueness", "symmetry", "speed"),
}
"""What is worked out where nothing else is said; matching always is, where there are targets."""
REFERENCE_SECTIONS = ("validity", "uniqueness", "symmetry", "stability")
"""Which of them are worked out for the substitution reference too."""


@dataclass(frozen=True, kw_only=True)
class SuiteSettings:
    """What decides about the numbers, part by part; each field is explained at the part's own function.

    `sections` None means the default of the kind. `cutoffs` None means that no coverage is published for the data set.
    """

    sections: Sequence[str] | None = None
    seed: int = 0
    timeout_s: float | None = TIME_LIMIT_S
    oxidation_states: str = PUBLISHED_STATES
    min_contact: float = MIN_CONTACT
    range_tails: float = 0.0
    cutoffs: Cutoffs | None = CUTOFFS["mp_20"]
    wasserstein_samples: int = NUM_SAMPLES
    symmetry_tolerances: Sequence[float] = SYMMETRY_TOLERANCES
    symmetry_library: Library = "moyopy"
    stability: StabilitySettings = field(default_factory=StabilitySettings)
    potential: Potential = CHGNET

    def chosen(self, kind: Kind) -> Sequence[str]:
        """Return the parts to work out; `ConfigError` for unknown ones."""
        if self.sections is None:
            return DEFAULT_SECTIONS[kind]
        unknown = [name for name in self.sections if name not in SECTIONS]
        if unknown:
            raise ConfigError(f"sections: got {unknown[0]!r}; expected some of {', '.join(SECTIONS)}")
        return [name for name in SECTIONS if name in self.sections]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What generated crystals are compared with: the reference distribution, the training set, the hull's crystals."""

    reference: CrystalSet
    train: CrystalSet | None = None
    hull: CrystalSet | None = None


def evaluate_reconstruction(
    *,
    targets: CrystalSet,
    predictions: CrystalBatch,
    runner: Runner,
    settings: SuiteSettings,
    known: Known | None = None,
) -> EvaluationReport:
    """Compare a reconstruction with its targets, crystal i with crystal i, and judge the reconstructed crystals.

    These are compared with `known`, by default with the targets themselves.
    """
    clock = _Clock()
    generated = CrystalSet.of(f"reconstruction of {targets.name}", predictions, targets.ids)
    settings.chosen("reconstruction")  # what is wrong with it is said before the long work
    matched = clock.time(
        "reconstruction",
        lambda: reconstruction_metrics(
            targets.crystals, predictions, runner=runner, timeout_s=settings.timeout_s
        ).section(),
    )
    known = known or Known(reference=targets)
    others = _sections("reconstruction", generated, known, runner, settings, None, clock)
    return EvaluationReport(
        kind="reconstruction",
        generated=generated,
        reference=known.reference,
        train=known.train,
        sections=[matched, *others],
        seconds=clock.seconds,
        seed=settings.seed,
        targets=targets.crystals,
        predictions=predictions,
    )


def evaluate_csp(
    *,
    targets: CrystalSet,
    generated: CrystalSet,
    candidates: Candidates,
    runner: Runner,
    settings: SuiteSettings,
    ks: Sequence[int] | None = None,
    known: Known | None = None,
    substitutes: Substitutes | str | None = None,
) -> EvaluationReport:
    """Match candidates for given targets, @1 and @k, and judge the candidates; see `csp_section`.

    `substitutes` for the same targets are matched in the same way, in a part of their own; a text says why there are
    none.
    """
    clock = _Clock()
    settings.chosen("csp")
    matched = clock.time(
        "csp",
        lambda: csp_section(
            targets=targets.crystals, generated=generated.crystals, candidates=candidates, runner=runner, ks=ks,
            unreadable=len(generated.unreadable), target_ids=targets.ids, timeout_s=settings.timeout_s,
        ),
    )  # fmt: skip
    references: list[Section] = []
    if isinstance(substitutes, str):
        references.append(skipped_reference(substitutes))
    elif substitutes is not None:
        most = int(candidates.rank.max()) + 1 if len(candidates.rank) else 1
        references.append(
            clock.time(
                "substitution",
                lambda: csp_reference(
                    targets=targets, substitutes=substitutes, ks=ks or sorted({1, most}), runner=runner,
                    timeout_s=settings.timeout_s,
                ),
            )
        )  # fmt: skip
    known = known or Known(reference=targets)
    others = _sections("csp", generated, known, runner, settings, None, clock)
    return EvaluationReport(
        kind="csp",
        generated=generated,
        reference=known.reference,
        train=known.train,
        sections=[matched, *references, *others],
        seconds=clock.seconds,
        seed=settings.seed,
        targets=targets.crystals[candidates.owner],
        predictions=generated.crystals,
    )


def evaluate_generation(
    *,
    generated: CrystalSet,
    known: Known,
    runner: Runner,
    settings: SuiteSettings,
    times: SamplingTimes | None = None,
    substitutes: Substitutes | str | None = None,
) -> EvaluationReport:
    """Judge crystals that were generated for no target: validity, coverage, uniqueness, novelty, symmetry, stability.

    `times` are those of sampling, where it was measured. `substitutes` are judged in the same way, in a part of their
    own; a text says why there are none. Raises `DataError` where there is nothing to judge.
    """
    if generated.total == 0:
        raise DataError(f"{generated.name}: expected at least one generated crystal, got none")
    clock = _Clock()
    sections = _sections("generation", generated, known, runner, settings, times, clock)
    if isinstance(substitutes, str):
        sections.append(skipped_reference(substitutes))
    elif substitutes is not None:
        judged = [name for name in settings.chosen("generation") if name in REFERENCE_SECTIONS]
        own = replace(settings, sections=judged)
        sections.append(
            clock.time(
                "substitution",
                lambda: generation_reference(
                    _sections("generation", substitutes.crystals, known, runner, own, None, _Clock()), substitutes
                ),
            )
        )
    return EvaluationReport(
        kind="generation",
        generated=generated,
        reference=known.reference,
        train=known.train,
        sections=sections,
        seconds=clock.seconds,
        seed=settings.seed,
    )


def _sections(
    kind: Kind,
    generated: CrystalSet,
    known: Known,
    runner: Runner,
    settings: SuiteSettings,
    times: SamplingTimes | None,
    clock: _Clock,
) -> list[Section]:
    crystals, reference = generated.crystals, known.reference.crystals
    unreadable = len(generated.unreadable)
    index = TrainIndex(known.train.crystals, timeout_s=settings.timeout_s) if known.train is not None else None
    done: dict[str, Section] = {}

    def coverage() -> Section:
        if settings.cutoffs is None:
            reason = "no cut-offs are published for this data set: give coverage.structure and coverage.composition"
            return Section(name="coverage", title="Coverage", skipped=reason)
        return coverage_section(
            generated=crystals, reference=reference, runner=runner, cutoffs=settings.cutoffs, unreadable=unreadable
        )

    def stability() -> Section:
        if known.hull is None:
            return Section(name="stability", title="Stability", skipped="no crystals to build a convex hull from")
        columns = done["uniqueness"].per_crystal if "uniqueness" in done else {}
        unique, novel = columns.get("unique"), columns.get("novel")

        def classify(relaxed: CrystalBatch) -> tuple[Sequence[bool], Sequence[bool]]:
            cells = ReducedCells(relaxed, timeout_s=settings.timeout_s)
            found = valid_unique_novel(cells, index, runner=runner, only_valid=False)
            return found.unique.tolist(), found.novel.tolist()

        return stability_section(
            generated=crystals, reference=reference, hull=known.hull.crystals, hull_name=known.hull.name, runner=runner,
            potential=settings.potential, settings=settings.stability,
            unique=None if unique is None else [bool(value) for value in unique],
            novel=None if novel is None else [bool(value) for value in novel],
            classify=None if index is None else classify, unreadable=unreadable,
        )  # fmt: skip

    parts: dict[str, Callable[[], Section]] = {
        "validity": lambda: validity_section(
            generated=crystals, reference=reference, unreadable=unreadable, tails=settings.range_tails,
            oxidation_states=settings.oxidation_states, min_contact=settings.min_contact,
        ),
        "coverage": coverage,
        "wasserstein": lambda: wasserstein_section(
            generated=crystals, reference=reference, num_samples=settings.wasserstein_samples, seed=settings.seed
        ),
        "uniqueness": lambda: uniqueness_section(
            generated=crystals, runner=runner, train=index, unreadable=unreadable, timeout_s=settings.timeout_s,
            train_ids=None if known.train is None else known.train.ids,
        ),
        "symmetry": lambda: symmetry_section(
            generated=crystals, reference=reference, runner=runner, tolerances=settings.symmetry_tolerances,
            library=settings.symmetry_library, unreadable=unreadable,
        ),
        "stability": stability,
        "speed": lambda: speed_section(times),
    }  # fmt: skip
    for name in settings.chosen(kind):
        done[name] = clock.time(name, parts[name])
    return list(done.values())


class _Clock:
    """Keeps how many seconds each part took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Section]) -> Section:
        log.info("evaluating: %s", name)
        started = time.perf_counter()
        section = work()
        self.seconds[name] = float(np.round(time.perf_counter() - started, 3))
        return section
