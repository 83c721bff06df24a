"""Evaluate a checkpoint, or crystals from anywhere: every number, a JSON file and a page for the browser."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console

from crystalvae import checks
from crystalvae.build import to_plain
from crystalvae.commands.inputs import Inputs, generate, predict, reconstruct_all
from crystalvae.commands.relaxing import potential_named
from crystalvae.data.analogy import AnalogyLibrary
from crystalvae.data.sources import SPLITS, cache_root
from crystalvae.data.writers import write_crystals
from crystalvae.errors import ConfigError, DataError, OutputError
from crystalvae.evaluation.distributions.coverage import CUTOFFS, Cutoffs
from crystalvae.evaluation.evaluate import (
    EvaluationSettings,
    Known,
    evaluate_csp,
    evaluate_generation,
    evaluate_reconstruction,
)
from crystalvae.evaluation.evaluation_report import EvaluationReport, Kind
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.matching.candidates import assign
from crystalvae.evaluation.parallel.cache import ResultCache
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.parallel.time_limit import check_time_limit
from crystalvae.evaluation.report import JSON_NAME, format_summary, format_tables, write_report
from crystalvae.evaluation.report.archive import file_names
from crystalvae.evaluation.speed import describe_machine
from crystalvae.evaluation.stability.hull_file import read_hull
from crystalvae.evaluation.stability.potentials import Potential
from crystalvae.evaluation.stability.relaxation import Relaxation
from crystalvae.evaluation.stability.section import StabilitySettings
from crystalvae.evaluation.substitution.section import (
    NO_LIBRARY,
    Substitutes,
    substitutes_for_samples,
    substitutes_for_targets,
)
from crystalvae.evaluation.symmetry.symmetrized_cifs import write_symmetrized
from crystalvae.output_dir import check_writable

log = logging.getLogger(__name__)

REFERENCES = ("substitution", "ranked")


def evaluate(config: DictConfig) -> str:
    """Do what `config` asks for, print the tables and write the files; returns what to tell the user."""
    kind = _kind(config)
    runner = _runner(config)
    settings = _settings(config)
    inputs = Inputs(config, kind)
    output_dir = _output_dir(config, kind)
    targets = inputs.reference()
    settings = replace(settings, cutoffs=_cutoffs(config, targets.name))
    chosen = settings.chosen(kind)
    report = {"reconstruction": _reconstruction, "csp": _csp, "generation": _generation}[kind](
        config, inputs, targets, _known(config, inputs, chosen), runner, settings
    )
    report = replace(report, extra=_extra(config, inputs), machine=describe_machine(inputs.device or "cpu"))
    if config.verbose:
        console = Console(soft_wrap=False)
        for table in format_tables(report):
            console.print(table)
    paths = write_report(report, output_dir, html=config.report)
    if config.symmetry.write_cifs:
        paths.append(_write_symmetrized(report, output_dir / "symmetrized", runner, settings))
    if (written := _write_relaxed(report, output_dir / "relaxed")) is not None:
        paths.append(written)
    summary = [""] if config.verbose else format_summary(report)
    more = "" if config.verbose else " (verbose=true shows them here)"
    files = ", ".join(str(path) for path in paths)
    return "\n".join([*summary, *_worst(report), f"all numbers and definitions{more}, every crystal: {files}"]).lstrip(
        "\n"
    )


def _reconstruction(
    config: DictConfig, inputs: Inputs, targets: CrystalSet, known: Known, runner: Runner, settings: EvaluationSettings
) -> EvaluationReport:
    batch_size = checks.check_count("batch_size", config.batch_size)
    predictions = reconstruct_all(inputs.module(), targets.crystals, batch_size)
    return evaluate_reconstruction(
        targets=targets, predictions=predictions, runner=runner, settings=settings, known=known
    )


def _csp(
    config: DictConfig, inputs: Inputs, targets: CrystalSet, known: Known, runner: Runner, settings: EvaluationSettings
) -> EvaluationReport:
    count = None if config.num_candidates is None else checks.check_count("num_candidates", config.num_candidates)
    if config.ckpt_path is not None:
        generated, candidates = predict(config, inputs.module(), targets, count or 1)
    elif config.match_by == "order" and config.num_crystals is not None:
        raise ConfigError("num_crystals: match_by=order needs all targets; set match_by=id, or num_crystals=null")
    else:
        generated, candidates = assign(inputs.generated(), targets, match_by=config.match_by, num_candidates=count)
    ks = to_plain(config.ks)
    if ks is not None and not (isinstance(ks, list) and ks):
        raise ConfigError(f"ks: got {ks!r}; expected a list of numbers, such as [1,20]")
    most = count or (int(candidates.rank.max()) + 1 if len(candidates.rank) else 1)
    return evaluate_csp(
        targets=targets, generated=generated, candidates=candidates, runner=runner, settings=settings, known=known,
        substitutes=_substitutes(
            config, inputs, lambda library: substitutes_for_targets(library, targets, count=most)
        ),
        ks=None if ks is None else [checks.check_count("ks", k) for k in ks],
    )  # fmt: skip


def _generation(
    config: DictConfig, inputs: Inputs, targets: CrystalSet, known: Known, runner: Runner, settings: EvaluationSettings
) -> EvaluationReport:
    times = None
    if config.ckpt_path is None:
        generated = inputs.generated()
        if config.num_crystals is not None:
            generated = inputs.choose(generated)
    else:
        generated, times = generate(config, inputs.module(), timed="speed" in settings.chosen("generation"))
    return evaluate_generation(
        generated=generated, known=replace(known, reference=targets), runner=runner, settings=settings, times=times,
        substitutes=_substitutes(
            config, inputs, lambda library: substitutes_for_samples(library, generated, seed=settings.seed)
        ),
    )  # fmt: skip


def _substitutes(
    config: DictConfig, inputs: Inputs, find: Callable[[AnalogyLibrary], Substitutes]
) -> Substitutes | str | None:
    """Return the substitution reference, why there is none where it was asked for, or None where it was not."""
    if config.reference is None:
        return None
    if config.train_split is None:
        return NO_LIBRARY
    try:
        return find(inputs.analogies(learned=config.reference == "ranked"))
    except DataError as error:  # a data set of which there is no such split
        return str(error)


def _kind(config: DictConfig) -> Kind:
    if (config.ckpt_path is None) == (config.generated is None):
        raise ConfigError(
            "give one of ckpt_path=… (a checkpoint) and generated=… (a folder of CIFs, a CSV with a cif column, "
            "pymatgen JSON, extxyz or an ASE db); got " + ("neither" if config.ckpt_path is None else "both")
        )
    kind = config.task or ("reconstruction" if config.generated is None else "generation")
    if kind not in get_args(Kind):
        raise ConfigError(f"task: got {kind!r}; expected one of {', '.join(get_args(Kind))}")
    if kind == "reconstruction" and config.generated is not None:
        raise ConfigError("task=reconstruction needs ckpt_path; reconstructed crystals from files are task=csp")
    if config.reference not in (None, *REFERENCES):
        raise ConfigError(f"reference: got {config.reference!r}; expected {' or '.join(REFERENCES)}, or null")
    if config.split not in SPLITS:
        raise ConfigError(f"split: got {config.split!r}; expected one of {', '.join(SPLITS)}")
    return kind


def _runner(config: DictConfig) -> Runner:
    check_time_limit("timeout_s", config.timeout_s)
    cache = ResultCache(cache_root(None) / "evaluation") if config.cache else None
    return Runner(
        n_jobs=checks.check_n_jobs(config.n_jobs),
        backend=config.backend,
        address=config.address,
        cache=cache,
    )


def _settings(config: DictConfig) -> EvaluationSettings:
    stability: dict[str, Any] = to_plain(config.stability)
    for key in ("hull", "hull_splits"):  # read by `_known`
        stability.pop(key)
    second = stability.pop("second_potential")
    relaxation = Relaxation(**stability.pop("relaxation"))
    sections = to_plain(config.sections)
    if sections is not None and not isinstance(sections, list):
        raise ConfigError(f"sections: got {sections!r}; expected a list, such as [validity,uniqueness]")
    seed = checks.check_count("seed", config.seed, at_least=0)
    return EvaluationSettings(
        sections=sections,
        seed=seed,
        timeout_s=config.timeout_s,
        oxidation_states=config.validity.oxidation_states,
        min_contact=checks.check_number("validity.min_contact", config.validity.min_contact),
        range_tails=checks.check_number("validity.range_tails", config.validity.range_tails),
        wasserstein_samples=checks.check_count("wasserstein.num_samples", config.wasserstein.num_samples),
        symmetry_library=config.symmetry.library,
        symmetry_tolerances=tuple(to_plain(config.symmetry.tolerances)),
        stability=StabilitySettings(**stability, relaxation=relaxation, seed=seed),
        potential=Potential.from_config(to_plain(config.potential)),
        second_potential=None if second is None else potential_named(second, key="stability.second_potential"),
    )


def _cutoffs(config: DictConfig, dataset: str) -> Cutoffs | None:
    given = config.coverage.structure, config.coverage.composition
    if given == (None, None):
        return CUTOFFS.get(dataset.partition(" ")[0])
    if None in given:
        raise ConfigError("coverage: give both cut-offs, coverage.structure and coverage.composition, or neither")
    return Cutoffs(structure=float(given[0]), composition=float(given[1]))


def _known(config: DictConfig, inputs: Inputs, sections: Sequence[str]) -> Known:
    """Return what generated crystals are compared with; what no part asks for is not read."""
    train = None
    if config.train_split is not None and "uniqueness" in sections:
        if config.train_split not in SPLITS:
            raise ConfigError(f"train_split: got {config.train_split!r}; expected one of {', '.join(SPLITS)}, or null")
        train = inputs.split(config.train_split)
    hull = None
    if "stability" in sections:
        file = config.stability.hull
        hull = (
            read_hull(checks.check_path("stability.hull", file))
            if file is not None
            else inputs.splits(to_plain(config.stability.hull_splits))
        )
    return Known(reference=inputs.reference(), train=train, hull=hull)


def _output_dir(config: DictConfig, kind: Kind) -> Path:
    """Return where the results go, or raise `OutputError`: they are not mixed with files of other origin."""
    if config.output_dir is not None:
        folder = checks.check_path("output_dir", config.output_dir)
    elif config.generated is not None:
        source = checks.check_path("generated", config.generated)
        folder = source.with_name(f"{source.name.split('.')[0] or source.name}-evaluation")
    else:
        given = checks.check_path("ckpt_path", config.ckpt_path)
        beside = given.parent if given.is_file() else Path()
        folder = beside / f"evaluation-{kind}-{config.split}"
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"output_dir={folder} is a file; expected a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JSON_NAME).is_file():
        raise OutputError(
            f"output_dir={folder} holds files that no evaluation wrote; give a new folder with output_dir=…"
        )
    check_writable(folder)
    return folder


def _write_symmetrized(report: EvaluationReport, folder: Path, runner: Runner, settings: EvaluationSettings) -> Path:
    """Write symmetrised CIFs under the crystals' own ids, or under numbers where these are no names for files."""
    write_symmetrized(
        report.generated.crystals, folder, runner=runner, overwrite=True, ids=file_names(report.generated.ids),
        tolerance=settings.symmetry_tolerances[0],
    )  # fmt: skip
    return folder


def _write_relaxed(report: EvaluationReport, folder: Path) -> Path | None:
    """Write the crystals that were relaxed for their stability, where it was asked for, with their energies."""
    section = next((section for section in report.sections if section.relaxed is not None), None)
    if section is None or section.relaxed is None or not section.relaxed[0]:
        return None
    rows, crystals = section.relaxed
    names, table = file_names(report.generated.ids), pd.DataFrame(section.per_crystal).iloc[list(rows)]
    info = {name: section.settings[name] for name in ("potential", "calculator", "versions", "relaxation")}
    ids = [names[row] for row in rows]
    write_crystals(crystals, folder, table=table, ids=ids, formats=["extxyz"], info=info, overwrite=True)
    return folder


def _extra(config: DictConfig, inputs: Inputs) -> dict[str, object]:
    return {
        "ckpt_path": None if config.ckpt_path is None else str(config.ckpt_path),
        "dataset": inputs.dataset_name,
        "split": config.split,
        "config": to_plain(config),
    }


def _worst(report: EvaluationReport) -> list[str]:
    if report.kind != "reconstruction":
        return []
    columns = report.section("reconstruction").per_crystal
    rows = zip(report.generated.ids, columns["rms"], columns["failure"], strict=True)
    badness = [(failure is not None, rms is None, rms or 0.0, name) for name, rms, failure in rows]
    return ["worst reconstructed: " + ", ".join(str(name) for *_, name in sorted(badness, reverse=True)[:5])]
