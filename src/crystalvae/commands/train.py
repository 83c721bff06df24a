"""Train from a composed config, and leave a run folder that says what happened."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from crystalvae.build import build
from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.commands import arguments
from crystalvae.commands.cli import is_main_process
from crystalvae.commands.precision import choose_precision
from crystalvae.errors import CheckpointError, ConfigError, OutputError
from crystalvae.vae_module.bottlenecks.base import DEFAULT_BOTTLENECK
from crystalvae.vae_module.conditions.injection import matching_names
from crystalvae.vae_module.layers.transformer import TransformerLayer
from crystalvae.vae_module.lightning import OverFrozenVAE
from crystalvae.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Folder of a run folder."""
BEST_AND_LAST = ("best.ckpt", "last.ckpt")
"""Checkpoints in it."""
_MODEL_KEYS = ("encoder", "decoder", "bottleneck", "latent_dim", "atom_type_predict", "condition", "optimizer")


def train(config: DictConfig) -> str:
    """Train a VAE as `config` describes; returns what to tell the user at the end."""

    def start() -> VAEModule:
        module: VAEModule = build("vae_module", config.vae_module)
        if config.ckpt_path is not None:
            _start_from(module, Path(config.ckpt_path))
        return module

    if config.resume_from is not None and config.ckpt_path is not None:
        raise ConfigError("resume_from and ckpt_path exclude each other: the one continues a run, the other starts one")
    return run_training(config, start, kind="vae", model_keys=_MODEL_KEYS)


def run_training(
    config: DictConfig, start: Callable[[], L.LightningModule], *, kind: str, model_keys: tuple[str, ...]
) -> str:
    """Train what `start` builds, with the data, trainer, callbacks and loggers of `config`.

    `kind` is the checkpoints' kind of model; a run is only resumed where `model_keys` of its config are the same.
    """
    resume = _resume_checkpoint(config)
    if resume is not None and resume.parent.name == CHECKPOINTS and not _output_dir_given():
        config.output_dir = str(resume.parent.parent)
    OmegaConf.resolve(config)
    output_dir = Path(config.output_dir).absolute()
    if is_main_process():
        _check_run_folder(output_dir, resume, overwrite=arguments.switch("overwrite", config.overwrite))
    L.seed_everything(config.seed, workers=True, verbose=False)
    datamodule = build("data", config.data)
    module = start()
    config.trainer.precision = choose_precision(config.trainer.precision, module, config.trainer.accelerator)
    if config.trainer.precision == "32-true" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    if config.get("compile"):
        compile_layers(module)
    if resume is not None:
        _check_same_model(module, resume, kind, model_keys)
    datamodule.prepare_data()  # a data set that is not there is said before a run folder exists
    started = time.time()
    if is_main_process():  # elsewhere the run folder's name may hold another second
        _start_run(config, output_dir, resumed_from=resume)
    callbacks = _build_all("callbacks", config.callbacks)
    loggers = _build_all("logger", config.logger)
    trainer: L.Trainer = build(
        "trainer", config.trainer, callbacks=callbacks, logger=loggers, default_root_dir=str(output_dir)
    )
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    finally:
        status = _status(sys.exc_info()[1])
        if trainer.is_global_zero:
            _end_run(output_dir, trainer, status=status, seconds=time.time() - started)
            if status == "interrupted":  # Lightning ends the process here
                log.warning("%s", _farewell(output_dir, trainer, status, kind))
    return _farewell(output_dir, trainer, status, kind)


def compile_layers(module: L.LightningModule, *, backend: str = "inductor") -> None:
    """Compile each transformer layer, for any number of atoms; weights keep their names."""
    layers = [layer for layer in module.modules() if isinstance(layer, TransformerLayer)]
    if not layers:
        raise ConfigError("compile: got true, but this model has no transformer layers to compile; set compile=false")
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)


def _status(error: BaseException | None) -> str:
    # Lightning turns Ctrl-C and SIGTERM into SystemExit; its own `trainer.interrupted` is true for any error.
    return "finished" if error is None else "interrupted" if isinstance(error, SystemExit) else "failed"


def _resume_checkpoint(config: DictConfig) -> Path | None:
    if config.resume_from is None:
        return None
    given = Path(config.resume_from).expanduser().absolute()
    path = given / CHECKPOINTS / "last.ckpt" if given.is_dir() else given
    if not path.is_file():
        raise CheckpointError(f"resume_from={config.resume_from}: no checkpoint {path}")
    return path


def _output_dir_given() -> bool:
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(entry.startswith("output_dir=") for entry in overrides)


def _start_from(module: VAEModule, path: Path) -> None:
    content = checkpoints.read(bundled.find(path), plain_data_only=False)
    checkpoints.check_metadata(content, "vae")
    weights = matching_names(content["state_dict"], module.state_dict())
    new, unused = checkpoints.load_shared_weights(module, weights)
    log.info("starting from the weights of %s", path)
    if new or unused:
        log.warning("new here, from scratch: %s; not used: %s", ", ".join(new) or "none", ", ".join(unused) or "none")


def _check_same_model(module: L.LightningModule, path: Path, kind: str, model_keys: tuple[str, ...]) -> None:
    content = checkpoints.read(path, plain_data_only=True)
    if "optimizer_states" not in content:
        raise CheckpointError(f"{path}: holds a model without its optimiser; fine-tune from it with ckpt_path=")
    saved = checkpoints.check_metadata(content, kind)["config"]
    current: dict[str, Any] = getattr(module, "config", {})
    for key in model_keys:
        if _described(saved.get(key)) != _described(current[key]):
            raise ConfigError(
                f"resume_from={path}: its {kind}_module.{key} is {saved.get(key)}, this run's is {current[key]}; "
                f"repeat the options of the run (in {path.parent.parent / 'run.json'})"
            )
    if isinstance(module, OverFrozenVAE) and not _same_vae(module, content["state_dict"]):
        raise ConfigError(
            f"resume_from={path}: was trained over another VAE than {kind} training is given now; "
            f"repeat vae_ckpt_path of the run (in {path.parent.parent / 'run.json'})"
        )


def _same_vae(module: OverFrozenVAE, saved: Mapping[str, Tensor]) -> bool:
    prefix = "vae_module.vae."
    own = {prefix + name: value for name, value in module.vae_module.vae.state_dict().items()}
    return all(name in saved and torch.equal(saved[name], value) for name, value in own.items())


def _described(config: Any) -> Any:
    """Return a part's config without what stands for a default, which checkpoints of earlier versions do not name."""
    if not isinstance(config, dict) or config == DEFAULT_BOTTLENECK:
        return None if config == DEFAULT_BOTTLENECK else config
    entries = {key: _described(value) for key, value in config.items()}
    return {key: value for key, value in entries.items() if value is not None}


def _build_all(name: str, group: DictConfig | None) -> list[Any]:
    entries = {} if group is None else group
    return [build(f"{name}.{key}", value) for key, value in entries.items() if value is not None]


def _check_run_folder(output_dir: Path, resume: Path | None, *, overwrite: bool) -> None:
    held = ("run.json", *(f"{CHECKPOINTS}/{name}" for name in BEST_AND_LAST))
    if not _continues(output_dir, resume) and not overwrite and any((output_dir / name).exists() for name in held):
        raise OutputError(
            f"output_dir={output_dir}: holds another run; continue it with resume_from=, give another folder, or "
            "replace it with overwrite=true"
        )


def _continues(output_dir: Path, resume: Path | None) -> bool:
    return resume is not None and resume.is_relative_to(output_dir)


def _start_run(config: DictConfig, output_dir: Path, *, resumed_from: Path | None) -> None:
    try:
        if not _continues(output_dir, resumed_from):  # `_check_run_folder` let what an earlier run left be replaced
            for name in BEST_AND_LAST:
                (output_dir / CHECKPOINTS / name).unlink(missing_ok=True)
        output_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(output_dir, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise OutputError(f"output_dir={output_dir}: cannot be written to ({error.strerror})") from error
    description = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "resumed_from": None if resumed_from is None else str(resumed_from),
        "seed": config.seed,
        "versions": checkpoints.package_versions(),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
        "status": "running",
    }
    write_text(output_dir / "config.yaml", OmegaConf.to_yaml(config))
    write_text(output_dir / "run.json", json.dumps(description, indent=2))


def _end_run(output_dir: Path, trainer: L.Trainer, *, status: str, seconds: float) -> None:
    path = output_dir / "run.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    description |= {
        "status": status,
        "seconds": round(seconds, 1),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "metrics": {name: float(value) for name, value in sorted(trainer.callback_metrics.items())},
    }
    write_text(path, json.dumps(description, indent=2))


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _farewell(output_dir: Path, trainer: L.Trainer, status: str, kind: str) -> str:
    best = output_dir / CHECKPOINTS / "best.ckpt"
    lines = [f"training {status} after {trainer.current_epoch} epochs; everything is in {output_dir}"]
    if status == "interrupted":
        lines.append(f"continue:    add resume_from={output_dir} to the same command")
    if best.is_file():
        lines.append(f"checkpoint:  {best}")
        if kind == "vae":
            lines.append(f"reconstruct: crystalvae evaluate ckpt_path={best} split=val{_data_options()}")
            lines.append(
                "new crystals: train a prior over its latents, crystalvae train-prior (docs/prior.md); from noise:"
            )
        if kind == "predictor":
            lines.append(f"search:      crystalvae latent operation=search ckpt_path={best} search.target=…")
        elif kind != "sequence":
            lines.append(f"sample:      crystalvae sample ckpt_path={best} num_samples=100 output_dir=samples")
    return "\n".join(lines)


def _data_options() -> str:
    """Return what to add to a command that shall see the same data, where this one said more than their name."""
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    given = [entry for entry in overrides if entry.startswith("data.source.")]
    if not given:
        return ""
    return f" data={HydraConfig.get().runtime.choices['data']} {shlex.join(given)}"
