"""The whole evaluation: which parts there are, and how they follow from each other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.distributions.coverage import CUTOFFS, Cutoffs
from crystalvae.evaluation.distributions.section import NUM_SAMPLES, coverage_section, wasserstein_section
from crystalvae.evaluation.evaluation_report import EvaluationReport, Kind
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.matching.candidates import Candidates
from crystalvae.evaluation.matching.pairs import TIME_LIMIT_S
from crystalvae.evaluation.matching.section import csp_section, reconstruction_metrics
from crystalvae.evaluation.metric import Section
from crystalvae.evaluation.novelty.section import uniqueness_section
from crystalvae.evaluation.novelty.train_index import ReducedCells, TrainIndex
from crystalvae.evaluation.novelty.uniqueness import valid_unique_novel
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.speed import SamplingTimes, speed_section
from crystalvae.evaluation.stability.hull_file import HullFile
from crystalvae.evaluation.stability.potentials import CHGNET, Potential
from crystalvae.evaluation.stability.second_opinion import with_second_opinion
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
class EvaluationSettings:
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
    second_potential: Potential | None = None

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
    """What generated crystals are compared with: the reference distribution, the training set, the hull.

    The hull are crystals, whose energies the potential gives, or energies from a file.
    """

    reference: CrystalSet
    train: CrystalSet | None = None
    hull: CrystalSet | HullFile | None = None


def evaluate_reconstruction(
    *,
    targets: CrystalSet,
    predictions: CrystalBatch,
    runner: Runner,
    settings: EvaluationSettings,
    known: Known | None = None,
) -> EvaluationReport:
    """Compare a reconstruction with its targets, crystal i with crystal i, and judge the reconstructed crystals.

    These are compared with `known`, by default with the targets themselves.
    """
    evaluation = _Evaluation(
        kind="reconstruction",
        generated=CrystalSet.of(f"reconstruction of {targets.name}", predictions, targets.ids),
        known=known or Known(reference=targets),
        runner=runner,
        settings=settings,
    )
    evaluation.time(
        "reconstruction",
        lambda: reconstruction_metrics(
            targets.crystals, predictions, runner=runner, timeout_s=settings.timeout_s
        ).section(),
    )
    evaluation.judge()
    return replace(evaluation.report(), targets=targets.crystals, predictions=predictions)


def evaluate_csp(
    *,
    targets: CrystalSet,
    generated: CrystalSet,
    candidates: Candidates,
    runner: Runner,
    settings: EvaluationSettings,
    ks: Sequence[int] | None = None,
    known: Known | None = None,
    substitutes: Substitutes | str | None = None,
) -> EvaluationReport:
    """Match candidates for given targets, @1 and @k, and judge the candidates; see `csp_section`.

    `substitutes` for the same targets are matched in the same way, in a part of their own; a text says why there are
    none.
    """
    evaluation = _Evaluation(
        kind="csp", generated=generated, known=known or Known(reference=targets), runner=runner, settings=settings
    )
    evaluation.time(
        "csp",
        lambda: csp_section(
            targets=targets.crystals, generated=generated.crystals, candidates=candidates, runner=runner, ks=ks,
            unreadable=len(generated.unreadable), target_ids=targets.ids, timeout_s=settings.timeout_s,
        ),
    )  # fmt: skip
    if isinstance(substitutes, str):
        evaluation.add(skipped_reference(substitutes))
    elif substitutes is not None:
        most = int(candidates.rank.max()) + 1 if len(candidates.rank) else 1
        at = list(ks) if ks else sorted({1, most})
        evaluation.time(
            "substitution",
            lambda: csp_reference(
                targets=targets, substitutes=substitutes, ks=at, runner=runner, timeout_s=settings.timeout_s
            ),
        )
    evaluation.judge()
    wanted = targets.crystals[candidates.owner]
    return replace(evaluation.report(), targets=wanted, predictions=generated.crystals)


def evaluate_generation(
    *,
    generated: CrystalSet,
    known: Known,
    runner: Runner,
    settings: EvaluationSettings,
    times: SamplingTimes | None = None,
    substitutes: Substitutes | str | None = None,
) -> EvaluationReport:
    """Judge crystals that were generated for no target: validity, coverage, uniqueness, novelty, symmetry, stability.

    `times` are those of sampling, where it was measured. `substitutes` are judged in the same way, in a part of their
    own; a text says why there are none. Raises `DataError` where there is nothing to judge.
    """
    if generated.total == 0:
        raise DataError(f"{generated.name}: expected at least one generated crystal, got none")
    evaluation = _Evaluation(
        kind="generation", generated=generated, known=known, runner=runner, settings=settings, times=times
    )
    evaluation.judge()
    if isinstance(substitutes, str):
        evaluation.add(skipped_reference(substitutes))
    elif substitutes is not None:
        judged = [name for name in evaluation.chosen if name in REFERENCE_SECTIONS]
        reference = _Evaluation(
            kind="generation",
            generated=substitutes.crystals,
            known=known,
            runner=runner,
            settings=replace(settings, sections=judged),
        )

        def judge_substitutes() -> Section:
            reference.judge()
            return generation_reference(reference.sections.values(), substitutes)

        evaluation.time("substitution", judge_substitutes)
    return evaluation.report()


class _Evaluation:
    """One evaluation under way: its parts as they are finished, and how many seconds each took."""

    def __init__(
        self,
        *,
        kind: Kind,
        generated: CrystalSet,
        known: Known,
        runner: Runner,
        settings: EvaluationSettings,
        times: SamplingTimes | None = None,
    ) -> None:
        self.kind: Kind = kind
        self.generated, self.known = generated, known
        self.runner, self.settings, self.times = runner, settings, times
        self.chosen = settings.chosen(kind)  # what is wrong with it is said before the long work
        if isinstance(known.hull, HullFile) and settings.second_potential is not None:
            raise ConfigError(
                "stability.hull and second_potential exclude each other: energies in a file are those of one potential"
            )
        self.sections: dict[str, Section] = {}
        self.seconds: dict[str, float] = {}

    def judge(self) -> None:
        """Work out the parts that judge generated crystals, those that were chosen."""
        for name in self.chosen:
            self.time(name, partial(self._section, name))

    def time(self, name: str, work: Callable[[], Section]) -> None:
        """Work out one part and keep it."""
        log.info("evaluating: %s", name)
        started = time.perf_counter()
        self.sections[name] = work()
        self.seconds[name] = float(np.round(time.perf_counter() - started, 3))

    def add(self, section: Section) -> None:
        """Keep a part that takes no work."""
        self.sections[section.name] = section

    def report(self) -> EvaluationReport:
        """Return what was found."""
        return EvaluationReport(
            kind=self.kind,
            generated=self.generated,
            reference=self.known.reference,
            train=self.known.train,
            sections=list(self.sections.values()),
            seconds=self.seconds,
            seed=self.settings.seed,
        )

    @cached_property
    def _train_index(self) -> TrainIndex | None:
        train = self.known.train
        return None if train is None else TrainIndex(train.crystals, timeout_s=self.settings.timeout_s)

    def _section(self, name: str) -> Section:
        """Work out one of the parts that judge generated crystals."""
        settings, runner, unreadable = self.settings, self.runner, len(self.generated.unreadable)
        generated, reference = self.generated.crystals, self.known.reference.crystals
        if name == "validity":
            return validity_section(
                generated=generated, reference=reference, unreadable=unreadable, tails=settings.range_tails,
                min_contact=settings.min_contact, oxidation_states=settings.oxidation_states,
            )  # fmt: skip
        if name == "coverage":
            if settings.cutoffs is None:
                reason = "no cut-offs are published for this data set: give coverage.structure and coverage.composition"
                return Section(name="coverage", title="Coverage", skipped=reason)
            return coverage_section(
                generated=generated, reference=reference, runner=runner, cutoffs=settings.cutoffs, unreadable=unreadable
            )
        if name == "wasserstein":
            return wasserstein_section(
                generated=generated, reference=reference, num_samples=settings.wasserstein_samples, seed=settings.seed
            )
        if name == "uniqueness":
            return uniqueness_section(
                generated=generated, train=self._train_index, runner=runner, unreadable=unreadable,
                timeout_s=settings.timeout_s, train_ids=None if self.known.train is None else self.known.train.ids,
            )  # fmt: skip
        if name == "symmetry":
            return symmetry_section(
                generated=generated, reference=reference, runner=runner, unreadable=unreadable,
                tolerances=settings.symmetry_tolerances, library=settings.symmetry_library,
            )  # fmt: skip
        if name == "speed":
            return speed_section(self.times)
        return self._stability_section(self.known.hull)

    def _stability_section(self, hull: CrystalSet | HullFile | None) -> Section:
        if hull is None:
            return Section(name="stability", title="Stability", skipped="no crystals to build a convex hull from")
        first, second = self._stability(self.settings.potential, hull), self.settings.second_potential
        if second is None:
            return first
        return with_second_opinion(first, self._stability(second, hull), name=second.name)

    def _stability(self, potential: Potential, hull: CrystalSet | HullFile) -> Section:
        columns = self.sections["uniqueness"].per_crystal if "uniqueness" in self.sections else {}
        return stability_section(
            generated=self.generated.crystals, reference=self.known.reference.crystals,
            hull=hull.entries if isinstance(hull, HullFile) else hull.crystals, hull_name=hull.name,
            runner=self.runner, potential=potential, settings=self.settings.stability,
            unreadable=len(self.generated.unreadable), unique=columns.get("unique"), novel=columns.get("novel"),
            classify=None if self._train_index is None else self._classify,
        )  # fmt: skip

    def _classify(self, relaxed: CrystalBatch) -> tuple[Sequence[bool], Sequence[bool]]:
        """Say of relaxed crystals which are unique among themselves, and which are not in the training set."""
        cells = ReducedCells(relaxed, timeout_s=self.settings.timeout_s)
        found = valid_unique_novel(cells, self._train_index, runner=self.runner, only_valid=False)
        return found.unique.tolist(), found.novel.tolist()
