"""The part of the evaluation that tells new crystals from repeated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np
from jaxtyping import Bool

from crystalvae.data.batch import CrystalBatch
from crystalvae.evaluation.matching.structure_matcher import Tolerance
from crystalvae.evaluation.metric import Metric, Section
from crystalvae.evaluation.novelty.prototypes import anonymous_prototypes, prototype_metrics
from crystalvae.evaluation.novelty.train_index import TIMEOUT_S, ReducedCells, TrainIndex
from crystalvae.evaluation.novelty.uniqueness import TOLERANCES, ValidUniqueNovel, valid_crystals, valid_unique_novel
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.validity.composition import INSTALL, smact_installed

STRICT = (
    "MatterGen (Zeni et al. 2025, doi:10.1038/s41586-025-08628-5; its matcher for ordered crystals), FlowMM, Chemeleon2"
)
LOOSE = "CDVAE's tolerances of reconstruction (Xie et al. 2022, arXiv:2110.06197)"


def uniqueness_section(
    *,
    generated: CrystalBatch,
    runner: Runner,
    train: CrystalBatch | TrainIndex | None = None,
    valid: Bool[np.ndarray, "B"] | None = None,
    unreadable: int = 0,
    timeout_s: float | None = TIMEOUT_S,
    train_ids: Sequence[str] | None = None,
) -> Section:
    """Return the shares of crystals that are unique, novel, and valid, unique and novel, at two sets of tolerances.

    So of structures; of formulas and of anonymised prototypes, it is told how many are different and how many new.

    Without `train` there is no novelty and no V.U.N. `valid` says which crystals are valid, by default those valid in
    structure and composition; without it and without SMACT there is no V.U.N. `unreadable` crystals, which are not in
    `generated`, count against every share. A comparison that takes more than `timeout_s` has no answer; crystals that
    it leaves undecided, and those without a primitive cell (no volume, numbers that are not finite), count as neither
    unique nor novel. With `train_ids` the matching crystal of the training set is named for each crystal.

    Raises `ConfigError` for an impossible `timeout_s`, `DataError` unless `valid` has one value per crystal.
    """
    index = TrainIndex(train, timeout_s=timeout_s) if isinstance(train, CrystalBatch) else train
    settings: dict[str, object] = {"pymatgen_version": version("pymatgen-core"), "timeout_s": timeout_s}
    settings["tolerances"] = {
        name or "default": dict(zip(("ltol", "stol", "angle_tol"), tolerance, strict=True))
        for name, tolerance in ((ending.removeprefix("_"), tolerance) for ending, tolerance in TOLERANCES.items())
    }
    known = valid is not None or smact_installed()
    if not known:
        settings["vun"] = f"left out: compositional validity {INSTALL}"
    if valid is None:
        valid = valid_crystals(generated) if smact_installed() else np.ones(len(generated), dtype=bool)
    cells = ReducedCells(generated, timeout_s=timeout_s)
    total = len(generated) + unreadable
    metrics: dict[str, Metric] = {}
    columns: dict[str, list[object]] = {}
    for ending, tolerance in TOLERANCES.items():
        found = valid_unique_novel(cells, index, runner=runner, valid=valid, tolerance=tolerance, only_valid=False)
        metrics |= _metrics(found, total, ending, tolerance, novelty=index is not None, validity=known)
        columns |= _columns(found, ending, train_ids, novelty=index is not None, validity=known)
    metrics |= _formula_metrics(cells, index, total)
    prototypes = anonymous_prototypes(cells.crystals, runner=runner)
    metrics |= prototype_metrics(prototypes, None if index is None else index.prototypes(runner), total)
    columns["prototype"] = [name or None for name in prototypes]
    if index is not None:
        settings["train_crystals"] = len(index)
        settings["train_crystals_without_primitive_cell"] = len(index.cells.failures)
    return Section(
        name="uniqueness",
        title="Uniqueness and novelty",
        metrics=metrics,
        settings=settings,
        per_crystal=columns,
    )


def _metrics(
    found: ValidUniqueNovel, total: int, ending: str, tolerance: Tolerance, *, novelty: bool, validity: bool
) -> dict[str, Metric]:
    source = f"StructureMatcher{tolerance}: {LOOSE if ending else STRICT}"
    shares: dict[str, tuple[Bool[np.ndarray, "B"], str]] = {
        "unique": (found.unique, "crystals that are the first of a group of equal ones; each group counts once"),
    }
    if novelty:
        shares["novel"] = (found.novel, "crystals that equal no crystal of the training set")
        shares["unique_novel"] = (found.unique & found.novel, "crystals that are unique and novel")
    if novelty and validity:
        shares["vun"] = (found.vun, "V.U.N.: crystals that are valid (structure and composition), unique and novel")
    equal = f"equal is what StructureMatcher fits at (ltol, stol, angle_tol) = {tolerance}"
    return {
        **{
            f"{name}{ending}": Metric.share(mask, total, f"share of {text}; {equal}", source)
            for name, (mask, text) in shares.items()
        },
        f"undecided{ending}": Metric(
            len(found.undecided),
            "crystals that could not be compared (no primitive cell, an error or a time-out), which count as "
            "not unique or not novel",
            unit="crystals",
            better="lower",
            count=total,
        ),
    }


def _formula_metrics(cells: ReducedCells, index: TrainIndex | None, total: int) -> dict[str, Metric]:
    different = len(set(cells.compositions))
    metrics = {
        "unique_formula": Metric.share(
            different, total, "number of different reduced formulas over the number of crystals"
        )
    }
    if index is not None:
        new = sum(composition not in index for composition in cells.compositions)
        definition = "share of crystals whose reduced formula is not in the training set"
        metrics["novel_formula"] = Metric.share(new, total, definition)
    return metrics


def _columns(
    found: ValidUniqueNovel, ending: str, train_ids: Sequence[str] | None, *, novelty: bool, validity: bool
) -> Mapping[str, list[object]]:
    columns: dict[str, list[object]] = {
        "unique": found.unique.tolist(),
        "same_as": [int(first) if 0 <= first != index else None for index, first in enumerate(found.first.tolist())],
        "undecided": [found.undecided.get(index, "") for index in range(len(found.unique))],
    }
    if novelty:
        columns["novel"] = found.novel.tolist()
        columns["train_match"] = [
            None if match < 0 else match if train_ids is None else train_ids[match]
            for match in found.train_match.tolist()
        ]
    if novelty and validity:
        columns["vun"] = found.vun.tolist()
    return {f"{name}{ending}": values for name, values in columns.items()}
