"""The folder of a training run: what it holds, who may write there, how a run is resumed, and `run.json`."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from crystalvae.checkpoints import format as checkpoints
from crystalvae.checkpoints.resuming import state_of_training
from crystalvae.errors import CheckpointError, ConfigError, OutputError
from crystalvae.files import write_text
from crystalvae.vae_module.bottlenecks.base import DEFAULT_BOTTLENECK
from crystalvae.vae_module.frozen import OverFrozenVAE

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Folder of a run folder."""
BEST_AND_LAST = BEST, LAST = "best.ckpt", "last.ckpt"
"""Checkpoints in it."""
DESCRIPTION, CONFIG = "run.json", "config.yaml"
"""What happened, and the config that says what was asked for."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes, and the checkpoint that it goes on from."""

    path: Path
    resumed_from: Path | None

    @classmethod
    def from_config(cls, config: DictConfig) -> RunFolder:
        """Take `output_dir` and `resume_from`: without an `output_dir` on the command line a run goes on in its folder.

        Raises `CheckpointError` where there is no checkpoint to go on from.
        """
        resumed_from = None if config.resume_from is None else _checkpoint(str(config.resume_from))
        if resumed_from is not None and resumed_from.parent.name == CHECKPOINTS and not _output_dir_given():
            return cls(resumed_from.parent.parent, resumed_from)
        return cls(Path(config.output_dir).expanduser().absolute(), resumed_from)

    @property
    def best(self) -> Path:
        """The checkpoint to use."""
        return self.path / CHECKPOINTS / BEST

    @property
    def goes_on(self) -> bool:
        """Whether the run that is resumed is the one of this folder."""
        return self.resumed_from is not None and self.resumed_from.is_relative_to(self.path)

    def check(self, *, overwrite: bool) -> None:
        """Raise `OutputError` where the folder holds another run, unless that is to be replaced."""
        held = (DESCRIPTION, *(f"{CHECKPOINTS}/{name}" for name in BEST_AND_LAST))
        if not self.goes_on and not overwrite and any((self.path / name).exists() for name in held):
            raise OutputError(
                f"output_dir={self.path}: holds another run; continue it with resume_from=, give another folder, or "
                "replace it with overwrite=true"
            )

    def start(self, config: DictConfig) -> None:
        """Make the folder and say in it what is about to happen; of an earlier run the checkpoints are removed."""
        try:
            if not self.goes_on:  # `check` let what an earlier run left be replaced
                for name in BEST_AND_LAST:
                    (self.path / CHECKPOINTS / name).unlink(missing_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise OutputError(f"output_dir={self.path}: cannot be written to ({error.strerror})") from error
        description = {
            "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "resumed_from": None if self.resumed_from is None else str(self.resumed_from),
            "seed": config.seed,
            "versions": checkpoints.package_versions(),
            "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
            "status": "running",
        }
        write_text(self.path / CONFIG, OmegaConf.to_yaml(config))
        write_text(self.path / DESCRIPTION, json.dumps(description, indent=2))

    def end(self, trainer: L.Trainer, *, status: str, seconds: float) -> None:
        """Say in the folder how the run ended."""
        path = self.path / DESCRIPTION
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
            description |= {
                "status": status,
                "seconds": round(seconds, 1),
                "epochs": trainer.current_epoch,
                "steps": trainer.global_step,
                "metrics": {name: float(value) for name, value in sorted(trainer.callback_metrics.items())},
            }
            write_text(path, json.dumps(description, indent=2))
        except (OSError, ValueError) as error:
            log.warning("%s: how the run ended could not be written (%s)", path, error)
            _say_status_in_place(path, status)


def check_same_model(module: L.LightningModule, path: Path, kind: str, model_keys: tuple[str, ...]) -> None:
    """Raise unless the checkpoint `path` is of a run of the same model: `model_keys` of its config, and its VAE.

    `CheckpointError` where it holds no state of training, `ConfigError` where the model is another.
    """
    content = state_of_training(path, checkpoints.read(path, plain_data_only=True))
    saved = checkpoints.check_metadata(content, kind)["config"]
    current: dict[str, Any] = getattr(module, "config", {})
    for key in model_keys:
        if essence(saved.get(key)) != essence(current[key]):
            raise ConfigError(
                f"resume_from={path}: its {kind}_module.{key} is {saved.get(key)}, this run's is {current[key]}; "
                f"repeat the options of the run (in {path.parent.parent / DESCRIPTION})"
            )
    if isinstance(module, OverFrozenVAE) and not _same_vae(module, content["state_dict"]):
        raise ConfigError(
            f"resume_from={path}: was trained over another VAE than {kind} training is given now; "
            f"repeat vae_ckpt_path of the run (in {path.parent.parent / DESCRIPTION})"
        )


def essence(config: Any) -> Any:
    """Return a part's config without what stands for a default, which checkpoints of earlier versions do not name."""
    if not isinstance(config, dict) or config == DEFAULT_BOTTLENECK:
        return None if config == DEFAULT_BOTTLENECK else config
    entries = {key: essence(value) for key, value in config.items()}
    return {key: value for key, value in entries.items() if value is not None}


def _say_status_in_place(path: Path, status: str) -> None:
    """Change the status of a description on a disk that is full: in the bytes that are there, which needs no others."""
    running = b'"status": "running"'
    with suppress(OSError):
        content = path.read_bytes()
        said = f'"status": "{status}"'.encode()[: len(running)]
        if content.count(running) == 1 and said.endswith(b'"'):
            with path.open("r+b") as file:
                file.seek(content.index(running))
                file.write(said.ljust(len(running)))


def _checkpoint(resume_from: str) -> Path:
    given = Path(resume_from).expanduser().absolute()
    path = given / CHECKPOINTS / LAST if given.is_dir() else given
    if not path.is_file():
        raise CheckpointError(f"resume_from={resume_from}: no checkpoint {path}")
    return path


def _output_dir_given() -> bool:
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(entry.startswith("output_dir=") for entry in overrides)


def _same_vae(module: OverFrozenVAE, saved: Mapping[str, Tensor]) -> bool:
    prefix = "vae_module.vae."
    own = {prefix + name: value for name, value in module.vae_module.vae.state_dict().items()}
    return all(name in saved and torch.equal(saved[name], value) for name, value in own.items())
