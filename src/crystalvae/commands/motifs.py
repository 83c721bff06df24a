"""From trajectories to motifs and their report: the steps of `crystalvae motifs`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from crystalvae import checks
from crystalvae.build import build, to_plain
from crystalvae.checkpoints import bundled
from crystalvae.checkpoints.format import package_versions
from crystalvae.commands.checked_config import with_values
from crystalvae.commands.pipeline import Pipeline, Step
from crystalvae.commands.run_folder import BEST_AND_LAST, CHECKPOINTS, LAST
from crystalvae.commands.train_sequence import sequence_module, train_sequence
from crystalvae.data.sources import Split
from crystalvae.data.trajectories import Trajectory
from crystalvae.data.trajectories.storage import save_trajectories
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.motif_report.animation import check_animations
from crystalvae.evaluation.motif_report.findings import MotifFindings
from crystalvae.evaluation.motif_report.latent_map import check_projection
from crystalvae.evaluation.motif_report.write import write_motif_report
from crystalvae.evaluation.speed import describe_machine
from crystalvae.files import file_hash, write_text
from crystalvae.sequence_module.datamodule import SequenceDataModule
from crystalvae.sequence_module.forecast_errors import forecast_errors
from crystalvae.sequence_module.generated_files import (
    Clip,
    forecasts,
    motif_clips,
    write_clips,
    write_forecasts,
    write_samples,
)
from crystalvae.sequence_module.motifs.agreement import adjusted_rand_index, raw_feature_motifs
from crystalvae.sequence_module.motifs.communities import motif_tree
from crystalvae.sequence_module.motifs.comparison import compare_groups
from crystalvae.sequence_module.motifs.fitting import choose_num_motifs, fit_motifs
from crystalvae.sequence_module.motifs.segmentation import segment_trajectories
from crystalvae.sequence_module.motifs.statistics import MotifStatistics, motif_statistics
from crystalvae.sequence_module.motifs.storage import Segmentation
from crystalvae.sequence_module.motifs.write import write_motifs
from crystalvae.sequence_module.sequence_module import SequenceModule

TRAJECTORIES = "trajectories.safetensors"
AGREEMENT, COMPARISON = "agreement.json", "comparison.json"
HORIZONS = 15
"""Frames ahead in the table of forecast errors."""


def motifs(config: DictConfig) -> str:
    """Run what of the steps is not done yet, and tell what they found."""
    run = MotifRun(config)
    pipeline = Pipeline(run.folder, run.steps())
    run.facts = lambda: {"seconds of the steps": pipeline.seconds}
    ran = pipeline.run(from_step=config.from_step, overwrite=checks.check_switch("overwrite", config.overwrite))
    return "\n".join((f"steps: {', '.join(ran) or 'none, all were done'}", *run.lines()))


class MotifRun:
    """The steps of a run, which read what those before them left in its folder."""

    def __init__(self, config: DictConfig) -> None:
        self.folder = checks.check_path("output_dir", config.output_dir).absolute()
        self.checkpoint = None if config.ckpt_path is None else bundled.find(str(config.ckpt_path))
        self.given = config
        self.config = with_values(config, {"output_dir": str(self.folder)})
        if self.checkpoint is not None:
            model = self.module.model
            sizes = {"window": model.window, "future_decoder": model.future_steps > 0}
            if model.future_steps:
                sizes["future_steps"] = model.future_steps
            self.config = with_values(self.config, {f"data.{key}": value for key, value in sizes.items()})
        _check(self.config)
        self.facts: Any = dict

    def steps(self) -> list[Step]:
        """Return the steps in order."""
        config = to_plain(self.config)
        described = config["sequence_module"]
        parts = {key: value for key, value in config["data"].items() if key not in {"source", "cache_dir"}}
        own = {"features": described["features"]} if self.checkpoint is None else {}
        callbacks = json.loads(json.dumps(config["callbacks"]).replace(str(self.folder), ""))
        training = {key: config[key] for key in ("trainer", "seed")}
        training |= {"sequence_module": described, "callbacks": callbacks}
        if self.checkpoint is not None:
            training = {"checkpoint": file_hash(self.checkpoint)}
        return [
            Step("data", {"source": config["data"]["source"], "files": _listing(config["data"])}, self.data),
            Step("features", {**own, "data": parts, "checkpoint": training.get("checkpoint")}, self.features),
            Step("training", training, self.training),
            Step("segmentation", {**config["motifs"], "communities": None, "seed": config["seed"]}, self.segmentation),
            Step(
                "statistics",
                {"communities": config["motifs"]["communities"], **{key: config[key] for key in ("label", "groups")}},
                self.statistics,
            ),
            Step("generation", config["generation"], self.generation),
            Step("report", {**config["report"], "name": config["name"]}, self.report),
        ]

    # ---- what the steps share ----------------------------------------------------------------------------------------

    @property
    def cache(self) -> Path:
        """Where features are kept."""
        return self.folder / "features"

    @cached_property
    def datamodule(self) -> SequenceDataModule:
        """The trajectories that the first step kept, and their parts."""
        source = {
            "_target_": "crystalvae.sequence_module.sources.SavedTrajectories",
            "path": str(self.folder / TRAJECTORIES),
            "name": self.config.data.source.name,
        }
        return build("data", {**to_plain(self.config.data), "source": source, "cache_dir": str(self.cache)})

    @cached_property
    def module(self) -> SequenceModule:
        """The trained model."""
        folder = self.folder / "training" / CHECKPOINTS
        path = self.checkpoint or next(folder / name for name in BEST_AND_LAST if (folder / name).is_file())
        return SequenceModule.load_from_checkpoint(path, trusted_targets=list(self.config.trusted_targets))

    @cached_property
    def found(self) -> Segmentation:
        """The motifs that were found."""
        return Segmentation.load(self.folder / "segmentation")

    @property
    def segmented(self) -> list[Trajectory]:
        """The trajectories that have windows, in the order of `found`."""
        known = {entry.id: entry for entry in self.datamodule.trajectories}
        return [known[entry.id] for entry in self.found.segmented]

    @cached_property
    def overall(self) -> MotifStatistics:
        """What the motifs do in all trajectories."""
        return motif_statistics([entry.frame_motifs for entry in self.found.segmented], self.found.model.num_motifs)

    @property
    def held_out(self) -> Split:
        """The part that nothing was fitted to: test, else val, else there is only train."""
        parts: tuple[Split, ...] = ("test", "val", "train")
        return next(part for part in parts if self.datamodule.segments(part))

    def training_config(self, *, begun: bool) -> DictConfig:
        """Return the config of `crystalvae train-sequence`; a run that was begun goes on where it has a checkpoint."""
        folder = self.folder / "training"
        config = with_values(self.given, {"output_dir": str(folder), "data.cache_dir": str(self.cache)})
        resumable = begun and (folder / CHECKPOINTS / LAST).is_file()
        keys = ("data", "sequence_module", "trainer", "callbacks", "logger", "name", "seed", "trusted_targets")
        return OmegaConf.create(
            {
                **{key: to_plain(config[key]) for key in keys},
                "output_dir": str(folder),
                "overwrite": not resumable,
                "resume_from": str(folder) if resumable else None,
                "ckpt_path": None,
            }
        )

    # ---- steps -------------------------------------------------------------------------------------------------------

    def data(self, _begun: bool) -> Iterable[Path]:
        """Read the trajectories, or run them, and keep them."""
        source = build("data", self.config.data).source
        trajectories = source.load()
        if not trajectories:
            raise DataError(f"{source.name}: no trajectories")
        save_trajectories(trajectories, self.folder / TRAJECTORIES)
        return [self.folder / TRAJECTORIES]

    def features(self, _begun: bool) -> Iterable[Path]:
        """Compute the features of all frames, which the steps that follow take from the cache."""
        train = self.datamodule.parts("train")
        if self.checkpoint is not None:
            module = self.module
        else:
            module = sequence_module(self.training_config(begun=False))
            module.describe(train)
            module.features.prepare(train)
        self.cache.mkdir(exist_ok=True)
        for entry in self.datamodule.trajectories:
            module.features.of(entry, cache_dir=self.cache)
        return [self.cache]

    def training(self, begun: bool) -> Iterable[Path]:
        """Train the sequence model, unless one was given."""
        if self.checkpoint is not None:
            return []
        train_sequence(self.training_config(begun=begun))
        self.__dict__.pop("module", None)
        return [self.folder / "training" / CHECKPOINTS / LAST]

    def segmentation(self, _begun: bool) -> Iterable[Path]:
        """Fit motifs to the windows of the training part and find them in all trajectories."""
        module, options = self.module, to_plain(self.config.motifs)
        window = module.model.window
        train = module.frames(self.datamodule.parts("train"), cache_dir=self.cache)
        fitted, lengths = module.latents(train).double().numpy(), train.window_counts(window)
        fit = {key: options[key] for key in ("method", "covariance", "restarts", "iterations")}
        fit |= {"seed": self.config.seed, "overlap": window}
        number = options["number"]
        if isinstance(number, list):
            number, _ = choose_num_motifs(fitted, lengths, number, criterion=options["criterion"], **fit)
        model = fit_motifs(fitted, lengths, number, **fit)
        trajectories = self.datamodule.trajectories
        frames = module.frames(trajectories, cache_dir=self.cache)
        latents, ids = module.latents(frames).double().numpy(), [entry.id for entry in trajectories]
        found = segment_trajectories(model, latents, frames.window_counts(window), ids, window=window)
        self.__dict__.pop("found", None)
        return Segmentation(model, latents, found).save(_folder(self.folder / "segmentation"))

    def statistics(self, _begun: bool) -> Iterable[Path]:
        """Count what motifs do, compare groups, and measure motifs against what is known of the frames."""
        self.__dict__.pop("overall", None)
        folder = _folder(self.folder / "statistics")
        each = {entry.id: entry.frame_motifs for entry in self.found.segmented}
        count = self.overall.num_motifs
        tree = motif_tree(self.overall.usage, self.overall.counts)
        paths = write_motifs(
            folder,
            self.found.segmented,
            {entry.id: entry for entry in self.segmented},
            self.overall,
            {name: motif_statistics([labels], count) for name, labels in each.items()},
            tree,
            tree.communities(self.config.motifs.communities),
            step=self.module.statistics.get("step"),
        )
        results: dict[str, object] = {}
        if self.config.label is not None:
            results[AGREEMENT] = self._agreement(each)
        if self.config.groups is not None:
            groups = {name: list(map(str, ids)) for name, ids in to_plain(self.config.groups).items()}
            results[COMPARISON] = compare_groups(each, groups, count).to_dict()
        for name in (AGREEMENT, COMPARISON):
            (folder / name).unlink(missing_ok=True)
        for name, content in results.items():
            write_text(folder / name, json.dumps(content, indent=1, allow_nan=False) + "\n")
        return [*paths, *(folder / name for name in results)]

    def _agreement(self, motifs_of: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return the adjusted Rand index of motifs and of k-means on raw features against the frames' labels."""
        label, window = str(self.config.label), self.module.model.window
        parts = self.datamodule.parts(self.held_out)
        for entry in parts:
            if label not in entry.properties:
                known = ", ".join(entry.properties) or "none"
                raise ConfigError(f"label: trajectory {entry.id} has no property {label}; its properties: {known}")
        places = [(self.datamodule.trajectories[s.trajectory].id, s) for s in self.datamodule.segments(self.held_out)]
        labels = [entry.properties[label].numpy() for entry in parts]
        train = self.module.frames(self.datamodule.parts("train"), cache_dir=self.cache)
        frames = self.module.frames(parts, cache_dir=self.cache)
        count, seed = self.found.model.num_motifs, self.config.seed
        candidates = {
            "motifs": [motifs_of[name][segment.start : segment.stop] for name, segment in places],
            "k-means on raw frames": raw_feature_motifs(train, frames, count, seed=seed),
            "k-means on raw windows": raw_feature_motifs(train, frames, count, window=window, seed=seed),
        }
        return {name: adjusted_rand_index(found, labels) for name, found in candidates.items()}

    def generation(self, _begun: bool) -> Iterable[Path]:
        """Write typical clips, samples, motif centres, forecasts and their errors."""
        options, module, folder = self.config.generation, self.module, _folder(self.folder / "generation")
        for path in folder.iterdir():
            path.unlink()
        train = module.frames(self.datamodule.parts("train"), cache_dir=self.cache)
        parts = self.datamodule.parts(self.held_out)
        paths = write_clips(self.clips(), folder)
        paths += write_samples(
            module,
            self.found,
            module.latents(train),
            folder,
            number=options.samples,
            components=options.components,
            seed=self.config.seed,
        )
        paths += write_forecasts(module, forecasts(module, parts, steps=options.forecast), folder)
        if module.model.future_steps:
            errors = forecast_errors(module, train, module.frames(parts, cache_dir=self.cache), horizons=HORIZONS)
            errors.to_csv(folder / "forecast_errors.csv", index=False)
            paths.append(folder / "forecast_errors.csv")
        return paths

    def clips(self) -> list[Clip]:
        """Return the typical windows of each motif."""
        return motif_clips(self.found, self.segmented, number=self.config.generation.clips)

    def report(self, _begun: bool) -> Iterable[Path]:
        """Write the page, its pictures and animations."""
        options = to_plain(self.config.report)
        return write_motif_report(
            self.findings(),
            self.folder,
            projection=options["map"],
            properties=options["properties"],
            animations=[name for name in ("gif", "mp4") if options[name]],
            seed=self.config.seed,
        )

    def findings(self) -> MotifFindings:
        """Return what the report is about, from what the steps left."""
        statistics, generation = self.folder / "statistics", self.folder / "generation"
        tree = motif_tree(self.overall.usage, self.overall.counts)
        parts = self.datamodule.parts(self.held_out)
        errors, logged = generation / "forecast_errors.csv", self.folder / "training" / "csv"
        files = {path.relative_to(self.folder).as_posix() for path in (*statistics.iterdir(), *generation.iterdir())}
        return MotifFindings(
            name=self.config.name,
            trajectories=self.segmented,
            segmentation=self.found,
            statistics=self.overall,
            tree=tree,
            communities=tree.communities(self.config.motifs.communities),
            clips=self.clips(),
            forecasts=forecasts(self.module, parts, steps=self.config.generation.forecast),
            feature_names=self.module.features.names,
            forecast_errors=pd.read_csv(errors) if errors.is_file() else None,
            training=_logged(logged) if self.checkpoint is None else None,
            held_out=self.held_out,
            label=self.config.label,
            agreement=_json(statistics / AGREEMENT),
            comparison=_json(statistics / COMPARISON),
            run={
                "command": shlex.join([Path(sys.argv[0]).name, "motifs", *sys.argv[1:]]),
                "seed": self.config.seed,
                "model": str(self.checkpoint) if self.checkpoint else "trained in this run",
                **self.facts(),
                "machine": describe_machine("cpu"),
                "versions": package_versions(),
            },
            config=to_plain(self.config),
            files=sorted(files),
        )

    def lines(self) -> list[str]:
        """Return what to tell the user."""
        usage = ", ".join(f"{share:.0%}" for share in self.overall.usage)
        lines = [f"{self.overall.num_motifs} motifs in {len(self.found.segmented)} trajectories; of the frames {usage}"]
        agreement = _json(self.folder / "statistics" / AGREEMENT)
        if agreement is not None:
            told = ", ".join(f"{name} {value:.2f}" for name, value in agreement.items())
            lines.append(f"adjusted Rand index against {self.config.label}, {self.held_out} part: {told}")
        return [*lines, f"report: {self.folder / 'report.html'}"]


def _check(config: DictConfig) -> None:
    """Raise `ConfigError` for what would be refused only after long work."""
    numbers = to_plain(config.motifs.number)
    for number in numbers if isinstance(numbers, list) else [numbers]:
        checks.check_count("motifs.number", number)
    if isinstance(numbers, list) and not numbers:
        raise ConfigError("motifs.number: got an empty list; expected a number, or a list of them")
    check_projection(config.report.map)
    check_animations([name for name in ("gif", "mp4") if config.report[name]])


def _listing(data: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Return name, size and time of the files that trajectories come from, so that a change is seen."""
    given = data["source"].get("path")
    if given is None:
        return []
    path = Path(str(given)).expanduser()
    files = sorted(entry for entry in (path.rglob("*") if path.is_dir() else [path]) if entry.is_file())
    return [(str(entry), entry.stat().st_size, entry.stat().st_mtime_ns) for entry in files]


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _logged(folder: Path) -> pd.DataFrame | None:
    """Return what training logged, a row an epoch, of the last run; None where its logger writes no CSV."""
    files = sorted(folder.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.rpartition("_")[2]))
    return pd.read_csv(files[-1]).groupby("epoch").last() if files else None
