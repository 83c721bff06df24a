"""The checkpoints of a run, between Lightning and the disk: whole or not at all, plain data, in the run's folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from crystalvae.checkpoints import format as checkpoints
from crystalvae.checkpoints import resuming
from crystalvae.errors import CheckpointError, ConfigError, OutputError, TrainingError
from crystalvae.files import remove_stale_partials

log = logging.getLogger(__name__)

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class RunCheckpoints(CheckpointIO):
    """Writes, reads and removes the checkpoints of one run.

    A checkpoint is written beside its place and renamed there once it is on the disk, so that no kill and no full disk
    leaves half a file under its name; weights that are NaN or infinite are not written at all. What callbacks say of
    files is kept as names alone, and read as names of files in the folder of the callback that says it. Removed are
    only files that this run wrote or found so.
    """

    def __init__(self, callbacks: Sequence[L.Callback] = ()) -> None:
        self.callbacks = callbacks
        """Those of the trainer, whose state is read."""
        self.was_read = False
        self.optimizer_states: list[Any] = []
        self.schedules: list[Any] = []
        """Of the checkpoint that was read; what Lightning is going to load, and so what is checked."""
        self._own: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; `TrainingError` for weights that are not finite, `OutputError` where it cannot be."""
        if storage_options is not None or "://" in str(path):
            raise ConfigError(f"{path}: checkpoints are files in a folder of this machine")
        target = Path(path).absolute()
        try:
            for name in ("state_dict", "current_model_state"):
                checkpoints.check_finite_weights(checkpoint.get(name, {}))
        except CheckpointError as error:
            reason = str(error).removeprefix("damaged checkpoint: ")
            raise TrainingError(
                f"training diverged: {reason} at step {checkpoint.get('global_step')}. The last good checkpoint stays; "
                "lower the learning rate, or look at the data, and continue with resume_from="
            ) from error
        portable = {
            key: _without_folders(state) if isinstance(state, dict) else state
            for key, state in checkpoint.get("callbacks", {}).items()
        }
        try:
            remove_stale_partials(target)
            checkpoints.write({**checkpoint, **({"callbacks": portable} if "callbacks" in checkpoint else {})}, target)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            raise OutputError(
                f"{target}: cannot be written ({reason}); the checkpoint before it is still whole. Make room, and "
                "continue with resume_from="
            ) from error
        self._own.add(target)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,  # noqa: ARG002  Lightning's signature; tensors are moved where they are loaded to
        weights_only: bool | None = None,  # noqa: ARG002  always
    ) -> dict[str, Any]:
        """Read a checkpoint to go on from: plain data, checked, with callbacks' files in this run's folder alone."""
        source = Path(path)
        content = resuming.state_of_training(source, checkpoints.read(source, plain_data_only=True))
        states: Mapping[Any, Any] = content["callbacks"]
        content["callbacks"] = {
            callback.state_key: self._state(callback, states[callback.state_key])
            for callback in self.callbacks
            if callback.state_key in states
        }
        self.was_read = True
        self.optimizer_states, self.schedules = content["optimizer_states"], content["lr_schedulers"]
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint of this run; anything else stays, with a warning."""
        target = Path(path).absolute()
        if target not in self._own:
            log.warning("%s is not removed: it is no checkpoint of this run", path)
            return
        target.unlink(missing_ok=True)

    def _state(self, callback: L.Callback, state: Any) -> dict[str, Any]:
        name = f"callbacks.{type(callback).__name__}"
        if not isinstance(state, Mapping):
            raise CheckpointError(f"damaged checkpoint: {name} is a {type(state).__name__}")
        if not isinstance(callback, ModelCheckpoint):
            return resuming.like(name, state, callback.state_dict())
        folder = callback.dirpath
        best = resuming.file_here(state.get("best_model_path"), folder)
        kept = state.get("best_k_models")
        scores = {
            file: _score(f"{name}.best_k_models", score)
            for path, score in (kept.items() if isinstance(kept, Mapping) else ())
            if (file := resuming.file_here(path, folder))
        }
        last = resuming.file_here(state.get("last_model_path"), folder)
        self._own |= {Path(file).absolute() for file in (best, last, *scores) if file}
        others = {
            key: resuming.like(f"{name}.{key}", state[key], value)
            for key, value in callback.state_dict().items()
            if key in state and isinstance(value, (bool, int, float))
        }
        if not best:  # this folder holds no best model yet
            return {**callback.state_dict(), **others, "last_model_path": last}
        worst = resuming.file_here(state.get("kth_best_model_path"), folder)
        return {
            **callback.state_dict(),
            **others,
            "best_model_path": best,
            "best_model_score": _score(f"{name}.best_model_score", state.get("best_model_score")),
            "current_score": _score(f"{name}.current_score", state.get("current_score")),
            "best_k_models": scores,
            "kth_best_model_path": worst,
            "kth_value": callback.kth_value if not worst else _score(f"{name}.kth_value", state.get("kth_value")),
            "last_model_path": last,
        }


class CheckedResume(L.Callback):
    """Checks optimiser and schedule against those of this run before Lightning loads them; says when training began."""

    def __init__(self, files: RunCheckpoints) -> None:
        self._files = files
        self.began = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Compare shapes; `CheckpointError` where the state is of other parameters."""
        states, schedules = self._files.optimizer_states, self._files.schedules
        if len(states) != len(trainer.optimizers) and self._files.was_read:
            raise CheckpointError(f"damaged checkpoint: state of {len(states)} optimisers, expected one")
        for state, optimizer in zip(states, trainer.optimizers, strict=False):
            resuming.check_optimizer_state(state, optimizer.param_groups)
        for number, config in enumerate(trainer.lr_scheduler_configs[: len(schedules)]):
            schedules[number] = resuming.like("lr_schedulers", schedules[number], config.scheduler.state_dict())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """All of the checkpoint has been taken over."""
        self.began = True


def _without_folders(state: dict[str, Any]) -> dict[str, Any]:
    """Return a callback's state in which files are names alone."""
    kept = {
        key: resuming.file_name(value) if key in _PATHS and isinstance(value, str) else value
        for key, value in state.items()
        if key != "dirpath"
    }
    models = kept.get("best_k_models")
    if isinstance(models, dict):
        kept["best_k_models"] = {resuming.file_name(path): score for path, score in models.items()}
    return kept


def _score(name: str, value: Any) -> Any:
    if value is None or (isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()):
        return None if value is None else value.detach().reshape(())
    raise CheckpointError(f"damaged checkpoint: {name} is {str(value)[:80]!r}; expected a number")
