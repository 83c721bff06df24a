"""Train from a composed config: a VAE here, a prior and a predictor by way of `run_training`."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from crystalvae.build import build
from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.checks import check_count
from crystalvae.commands.checked_config import with_values
from crystalvae.commands.cli import is_main_process
from crystalvae.commands.out_of_memory import memory_is_full
from crystalvae.commands.precision import choose_precision
from crystalvae.commands.run_checkpoints import CheckedResume, RunCheckpoints
from crystalvae.commands.run_folder import RunFolder, check_same_model
from crystalvae.errors import CheckpointError, ConfigError, CrystalVAEError, OutputError, TrainingError
from crystalvae.prior_module.denoiser import ModulatedLayer
from crystalvae.vae_module.layers.transformer import TransformerLayer
from crystalvae.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)

STOPPED = 130
"""Exit status after Ctrl-C: 128 and the signal's number."""
TERMINATED = 143
"""Exit status after SIGTERM, likewise."""
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError)
"""What Lightning and PyTorch raise on a state of training that is none."""
MODEL_KEYS = ("encoder", "decoder", "bottleneck", "latent_dim", "atom_type_predict", "condition", "optimizer")
"""What a resumed VAE has to have in common with its checkpoint."""


def train(config: DictConfig) -> str:
    """Train a VAE as `config` describes; returns what to tell the user at the end."""

    def start() -> VAEModule:
        module: VAEModule = build("vae_module", config.vae_module)
        if config.ckpt_path is not None:
            start_from(module, Path(config.ckpt_path))
        return module

    check_exclusive(config)
    return run_training(config, start, kind="vae", model_keys=MODEL_KEYS)


def check_exclusive(config: DictConfig) -> None:
    """Raise `ConfigError` where a run is to continue one checkpoint and start from another."""
    if config.resume_from is not None and config.ckpt_path is not None:
        raise ConfigError(
            "resume_from and ckpt_path exclude each other: resume_from continues a run, ckpt_path starts a new one"
        )


def check_it_ends(trainer: DictConfig) -> None:
    """Raise `ConfigError` where nothing says when training is over; Lightning would take 1,000 epochs for it.

    Validation, which chooses the best checkpoint, needs a whole number of epochs, too.
    """
    if trainer.get("check_val_every_n_epoch") is not None:
        check_count("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch)
    limits = {"max_epochs": trainer.get("max_epochs"), "max_steps": trainer.get("max_steps", -1)}
    if limits["max_epochs"] is None and limits["max_steps"] in {None, -1} and trainer.get("max_time") is None:
        raise ConfigError(
            "trainer.max_epochs: got null, and neither max_steps nor max_time; expected a number, or one of these"
        )


def run_training(
    config: DictConfig, start: Callable[[], L.LightningModule], *, kind: str, model_keys: tuple[str, ...]
) -> str:
    """Train what `start` builds, with the data, trainer, callbacks and loggers of `config`.

    `kind` is the checkpoints' kind of model; a run is only resumed where `model_keys` of its config are the same.
    Ctrl-C and SIGTERM end the process with `STOPPED` and `TERMINATED`, the run folder being in order.
    """
    check_it_ends(config.trainer)
    folder = RunFolder.from_config(config)
    moved = Path(config.output_dir).absolute() != folder.path
    config = with_values(config, {"output_dir": str(folder.path)} if moved else {})
    if is_main_process():
        folder.check(overwrite=config.overwrite)
    L.seed_everything(config.seed, workers=True, verbose=False)
    datamodule = build("data", config.data)
    module = start()
    precision = choose_precision(config.trainer.precision, module, config.trainer.accelerator)
    config = with_values(config, {"trainer.precision": precision})
    if precision == "32-true" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    if config.get("compile"):
        compile_layers(module)
    if folder.resumed_from is not None:
        check_same_model(module, folder.resumed_from, kind, model_keys)
    datamodule.prepare_data()  # a data set that is not there is said before a run folder exists
    started = time.time()
    if is_main_process():  # elsewhere the run folder's name may hold another second
        folder.start(config)
    trainer = _build_trainer(config, folder)
    try:
        fit(trainer, module, datamodule, resumed_from=folder.resumed_from)
    except SystemExit as error:  # Lightning's answer to SIGTERM and Ctrl-C, with statuses 0 and 1
        raise SystemExit(TERMINATED if isinstance(error, SIGTERMException) else STOPPED) from error
    finally:
        status = _status(sys.exc_info()[1])
        if trainer.is_global_zero:
            folder.end(trainer, status=status, seconds=time.time() - started)
            if status == "interrupted":
                log.warning("%s", _farewell(folder, trainer, status, kind))
    return _farewell(folder, trainer, status, kind)


def _build_trainer(config: DictConfig, folder: RunFolder) -> L.Trainer:
    callbacks = _build_all("callbacks", config.callbacks)
    loggers = _build_all("logger", config.logger)
    return build("trainer", config.trainer, callbacks=callbacks, logger=loggers, default_root_dir=str(folder.path))


def fit(
    trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule, *, resumed_from: Path | None
) -> None:
    """Train, with checkpoints as `RunCheckpoints` reads and writes them.

    Failures that are no mistake of ours end as one of our errors: `CheckpointError` for a damaged state of training,
    `TrainingError` for training that diverged or a device whose memory is full, `OutputError` for a full disk.
    """
    files = RunCheckpoints(trainer.callbacks)  # type: ignore[attr-defined]
    trainer.strategy.checkpoint_io = files
    resume = CheckedResume(files)
    trainer.callbacks.append(resume)  # type: ignore[attr-defined]
    full = False
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resumed_from, weights_only=True)
        _check_not_diverged(trainer)
    except torch.OutOfMemoryError:
        full = True  # answered below, when the error no longer keeps the step's tensors alive
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    except CrystalVAEError:
        raise
    except OSError as error:  # a logger's file on a full disk, for example
        where = error.filename or trainer.default_root_dir
        raise OutputError(f"{where}: cannot be written to ({error.strerror or error})") from error
    except _DAMAGED as error:
        if resumed_from is None or resume.began:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CheckpointError(f"resume_from={resumed_from}: its state of training is damaged ({reason})") from error
    if full:
        raise memory_is_full(trainer, module, datamodule)


def _check_not_diverged(trainer: L.Trainer) -> None:
    """Raise `TrainingError` where training ended because what it watches is NaN or infinite."""
    for stopper in trainer.early_stopping_callbacks:
        value = trainer.callback_metrics.get(str(stopper.monitor))
        if stopper.check_finite and value is not None and not bool(torch.isfinite(value).all()):
            raise TrainingError(
                f"training diverged: {stopper.monitor} is {float(value)} after epoch {trainer.current_epoch}. The best "
                "checkpoint is of before; lower the learning rate, or look at the data"
            )


def compile_layers(module: L.LightningModule, *, backend: str = "inductor") -> None:
    """Compile each transformer layer, a flow's included, for any number of atoms; weights keep their names."""
    layers = [layer for layer in module.modules() if isinstance(layer, (TransformerLayer, ModulatedLayer))]
    if not layers:
        raise ConfigError("compile: got true, but this model has no transformer layers to compile; set compile=false")
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)


def _status(error: BaseException | None) -> str:
    # Lightning turns Ctrl-C and SIGTERM into SystemExit; its own `trainer.interrupted` is true for any error.
    return "finished" if error is None else "interrupted" if isinstance(error, SystemExit) else "failed"


def start_from(module: VAEModule, path: Path) -> None:
    """Take over the weights that a VAE's checkpoint has in common with this one, for fine-tuning."""
    content = checkpoints.read(bundled.find(path), plain_data_only=False)
    checkpoints.check_metadata(content, "vae")
    new, unused = checkpoints.load_shared_weights(module, content["state_dict"])
    log.info("starting from the weights of %s", path)
    if new or unused:
        log.warning(
            "weights trained from scratch: %s; weights of the checkpoint not used: %s",
            ", ".join(new) or "none",
            ", ".join(unused) or "none",
        )


def _build_all(name: str, group: DictConfig | None) -> list[Any]:
    entries = {} if group is None else group
    return [build(f"{name}.{key}", value) for key, value in entries.items() if value is not None]


def _farewell(folder: RunFolder, trainer: L.Trainer, status: str, kind: str) -> str:
    best = folder.best
    lines = [f"training {status} after {trainer.current_epoch} epochs; everything is in {folder.path}"]
    if status == "interrupted":
        lines.append(f"continue:    add resume_from={folder.path} to the same command")
    if best.is_file():
        lines.append(f"checkpoint:  {best}")
        if kind == "vae":
            lines.append(f"reconstruct: crystalvae evaluate ckpt_path={best} split=val{_data_options()}")
            lines.append(
                "new crystals: train a prior with crystalvae train-prior (docs/prior.md), or sample without one:"
            )
        if kind == "predictor":
            lines.append(f"search:      crystalvae latent operation=search ckpt_path={best} search.target=…")
        elif kind != "sequence":
            lines.append(f"sample:      crystalvae sample ckpt_path={best} num_samples=100 output_dir=samples")
    return "\n".join(lines)


def _data_options() -> str:
    """Return what to add to a command that is to use the same data, where this command gave more than its name."""
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    given = [entry for entry in overrides if entry.startswith("data.source.")]
    if not given:
        return ""
    return f" data={HydraConfig.get().runtime.choices['data']} {shlex.join(given)}"
