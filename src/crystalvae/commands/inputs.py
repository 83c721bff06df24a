"""Where the crystals of an evaluation come from: splits of a data set, files, and a checkpoint's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from crystalvae import checks
from crystalvae.build import build
from crystalvae.checkpoints import bundled
from crystalvae.commands.config_files import config_dir
from crystalvae.commands.device import choose_device
from crystalvae.commands.sampling import sample_all, sample_request
from crystalvae.data.analogy import AnalogyLibrary
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.datamodule import CrystalDataModule
from crystalvae.data.sources import SPLITS, Split, cache_root
from crystalvae.errors import ConfigError
from crystalvae.evaluation.evaluation_report import Kind
from crystalvae.evaluation.inputs import CrystalSet, read_crystals
from crystalvae.evaluation.matching.candidates import Candidates
from crystalvae.evaluation.speed import SamplingTimes, time_sampling
from crystalvae.prior_module.learned_metric import learned_metric
from crystalvae.sampling import request_template
from crystalvae.vae_module.vae_module import VAEModule

CRYSTALS = f"{CrystalDataModule.__module__}.{CrystalDataModule.__name__}"
"""What a data set of crystals is, among the configs of data."""
TIMED_SAMPLES = 256
"""How many crystals the speed of sampling is measured with, where as many are asked for."""


class Inputs:
    """What a config names, read when first asked for."""

    def __init__(self, config: DictConfig, kind: Kind) -> None:
        self._config, self._kind = config, kind
        self._module: VAEModule | None = None
        self._data: CrystalDataModule | None = None
        self._reference: CrystalSet | None = None
        self.device: torch.device | None = None

    def module(self) -> VAEModule:
        """Return the checkpoint's model, on the device that was asked for."""
        if self._module is None:
            path = checks.check_path("ckpt_path", self._config.ckpt_path)
            self.device = choose_device(self._config.device)
            self._module = VAEModule.load_from_checkpoint(bundled.find(path), map_location=self.device)
        return self._module

    @property
    def dataset_name(self) -> str:
        """The name of the data set that the splits are of."""
        return str(self._datamodule().source.name)

    def split(self, name: Split) -> CrystalSet:
        """Return one split, whole."""
        return CrystalSet.of_dataset(f"{self.dataset_name} {name}", self._datamodule().dataset(name))

    def splits(self, names: object) -> CrystalSet:
        """Return several splits as one set."""
        if not isinstance(names, list) or not names or not set(names) <= set(SPLITS):
            raise ConfigError(f"stability.hull_splits: got {names!r}; expected a list of some of {', '.join(SPLITS)}")
        parts = [self.split(name) for name in names]
        crystals = CrystalBatch.cat([part.crystals for part in parts])
        ids = [name for part in parts for name in part.ids]
        return CrystalSet.of(f"{self.dataset_name} {'+'.join(names)}", crystals, ids)

    def reference(self) -> CrystalSet:
        """Return the split that is compared with; of one that is reconstructed or predicted the crystals asked for."""
        if self._reference is None:
            whole = self.split(self._config.split)
            chosen = self._kind != "generation" and self._config.num_crystals is not None
            self._reference = self.choose(whole) if chosen else whole
        return self._reference

    def analogies(self, *, learned: bool = False) -> AnalogyLibrary:
        """Return the training crystals as a library of analogues, its genes kept in the cache.

        `learned` distances between elements are those that the library itself teaches; see `learned_metric`.
        """
        name: Split = self._config.get("train_split", "train")
        train = self.split(name)
        library = AnalogyLibrary.of(train.crystals, train.ids, cache_dir=cache_root(None) / self.dataset_name)
        if learned:
            library.metric = learned_metric(library)
        return library

    def generated(self) -> CrystalSet:
        """Return the crystals from outside."""
        return read_crystals(checks.check_path("generated", self._config.generated))

    def choose(self, crystals: CrystalSet) -> CrystalSet:
        """Return a seeded choice of `num_crystals` in the set's order, unreadable ones being as likely as others."""
        count = checks.check_count("num_crystals", self._config.num_crystals)
        if count >= crystals.total:
            return crystals
        places = sorted([*crystals.positions, *(entry.position for entry in crystals.unreadable)])
        generator = torch.Generator().manual_seed(checks.check_count("seed", self._config.seed, at_least=0))
        order = torch.randperm(len(places), generator=generator)[:count].tolist()
        kept = {places[i] for i in order}
        rows = [row for row, position in enumerate(crystals.positions) if position in kept]
        return CrystalSet(
            crystals.name,
            crystals.crystals[rows],
            [crystals.ids[row] for row in rows],
            [crystals.positions[row] for row in rows],
            [entry for entry in crystals.unreadable if entry.position in kept],
        )

    def _datamodule(self) -> CrystalDataModule:
        if self._data is None:
            data: CrystalDataModule = build("data", self._data_config())
            self._data = data
        return self._data

    def _data_config(self) -> DictConfig:
        if self._config.get("data") is not None:
            return self._config.data
        if self._config.ckpt_path is None:
            known = ", ".join(_data_sets())
            raise ConfigError(f"data: say which data set to compare the crystals with, data=NAME, one of {known}")
        name = str(self.module().statistics.get("dataset"))
        if name not in _data_sets():
            raise ConfigError(
                f"the checkpoint was trained on {name!r}; say which data to use, data=NAME, one of "
                f"{', '.join(_data_sets())}"
            )
        return data_config(name, seed=self._config.seed)


def data_config(name: str, *, seed: int) -> DictConfig:
    """Return the config of a data set, `configs/data/NAME.yaml`; `ConfigError` lists them for any other name."""
    if name not in _data_sets():
        raise ConfigError(f"data: got {name!r}; expected one of {', '.join(_data_sets())}")
    config = OmegaConf.create({"data": OmegaConf.load(config_dir() / "data" / f"{name}.yaml"), "seed": seed})
    OmegaConf.resolve(config)
    return config.data


def data_module(name: str, *, seed: int) -> CrystalDataModule:
    """Return the data module of a data set by its name."""
    module: CrystalDataModule = build("data", data_config(name, seed=seed))
    return module


def _data_sets() -> list[str]:
    """Name the data sets of crystals; those of motions are none to compare with."""
    files = (config_dir() / "data").glob("*.yaml")
    return sorted(entry.stem for entry in files if OmegaConf.select(OmegaConf.load(entry), "_target_") == CRYSTALS)


def reconstruct_all(module: VAEModule, crystals: CrystalBatch, batch_size: int) -> CrystalBatch:
    """Reconstruct crystals with the posterior mean, `batch_size` at a time, on the module's device."""
    return CrystalBatch.cat(
        module.reconstruct_crystals(crystals[start : start + batch_size].to(module.device)).to("cpu")
        for start in _tracked(len(crystals), batch_size, "reconstructing")
    )


def generate(config: DictConfig, module: VAEModule, *, timed: bool) -> tuple[CrystalSet, SamplingTimes | None]:
    """Sample `num_samples` crystals from a checkpoint, and measure how quickly that goes where `timed`."""
    count = checks.check_count("num_samples", config.num_samples)
    request = sample_request(config, count)
    generator = torch.Generator().manual_seed(request.seed)
    template = request_template(module, request, generator=generator)
    crystals = sample_all(module, request, template=template, generator=generator)
    name = f"{count} samples of {config.ckpt_path}"
    times = None
    if timed:
        other = torch.Generator().manual_seed(1)
        times = time_sampling(
            lambda size: module.draw(template[:size], replace(request, conditions=None), generator=other),
            samples=min(count, TIMED_SAMPLES),
            device=module.device,
        )
    return CrystalSet.of(name, crystals), times


def predict(
    config: DictConfig, module: VAEModule, targets: CrystalSet, candidates: int
) -> tuple[CrystalSet, Candidates]:
    """Sample structures for the elements of each target; `ConfigError` where the checkpoint cannot take elements."""
    if module.atom_type_predict:
        raise ConfigError(
            "task=csp: this checkpoint predicts the elements itself and cannot take them; give one that was trained "
            "for structure prediction (experiment=mp_20/vae_csp), or task=generation"
        )
    owner = np.repeat(np.arange(len(targets.ids)), candidates)
    rank = np.tile(np.arange(candidates), len(targets.ids))
    wanted = targets.crystals[owner]
    template = CrystalBatch.empty(wanted.num_atoms).replace(atom_types=wanted.atom_types)
    ids = [f"{targets.ids[i]}_{j}" for i, j in zip(owner.tolist(), rank.tolist(), strict=True)]
    crystals = sample_all(module, sample_request(config, len(template)), template=template)
    name = f"{candidates} candidates per target of {config.ckpt_path}"
    return CrystalSet.of(name, crystals, ids), Candidates(owner=owner, rank=rank, targets=len(targets.ids))


def _tracked(total: int, size: int, description: str):  # noqa: ANN202  rich's own type
    console = Console(stderr=True)
    return track(range(0, total, size), description=description, console=console, transient=True)
