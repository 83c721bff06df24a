"""What training says when the device's memory is full: which batch size fits, found by trying."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor

from crystalvae.errors import TrainingError

SPARE = 0.1
"""Share of the device's memory that a batch has to leave free to be recommended: later batches may be larger."""
OPTIMIZER_BYTES = 8
"""Bytes per parameter that an optimiser keeps: two numbers in single precision, as Adam's moments."""


def memory_is_full(trainer: L.Trainer, module: L.LightningModule, datamodule: Any) -> TrainingError:
    """Return what to raise after a run that ended for want of memory, having tried smaller and smaller batches.

    Call it when the error is no longer held: its traceback keeps the tensors of the step alive.
    """
    asked = int(datamodule.batch_size)
    full = f"out of memory: data.batch_size={asked} is too much for {_described(trainer.strategy.root_device)}"
    if trainer.world_size > 1:
        return TrainingError(
            f"{full}; halve it, or run it with trainer.devices=1 trainer.strategy=auto, which tries what fits"
        )
    size = largest_batch(trainer, module, datamodule)
    if size is None:
        return TrainingError(f"{full}, and so is a single one; take a narrower model, or trainer.precision=bf16-mixed")
    if size == asked:
        return TrainingError(
            f"out of memory, though a step with data.batch_size={asked} fits, as was tried just now: validation takes "
            "larger batches (lower data.eval_batch_size), or another process used the device"
        )
    steps = -(-asked // size) * int(trainer.accumulate_grad_batches)
    return TrainingError(
        f"{full}; {size} fits, as was tried just now, with a tenth of the memory to spare: data.batch_size={size} "
        f"trainer.accumulate_grad_batches={steps} follows the same gradients"
    )


def largest_batch(trainer: L.Trainer, module: L.LightningModule, datamodule: Any) -> int | None:
    """Return the largest of the batch size asked for, half of it, a quarter, … of which a step fits; None for none."""
    size = int(datamodule.batch_size)
    while size:
        if _fits(size, trainer, module, datamodule):
            return size
        size //= 2
    return None


def _fits(size: int, trainer: L.Trainer, module: L.LightningModule, datamodule: Any) -> bool:
    """Take the loss of the first batch of `size`, and its gradient, beside what an optimiser and later batches need."""
    device = trainer.strategy.root_device
    smaller = copy.copy(datamodule)
    smaller.batch_size = size
    try:
        module.to(device).train()
        kept = _reserve(module, device)
        with _as_in_training(trainer, module), trainer.precision_plugin.train_step_context():
            loss: Any = module.training_step(next(iter(smaller.train_dataloader())).to(device), 0)
        loss.backward()
        del loss, kept
    except torch.OutOfMemoryError:
        return False
    finally:
        module.zero_grad()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _described(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    known = torch.cuda.get_device_properties(device)
    return f"{known.name} with {known.total_memory / 2**30:.1f} GiB"


def _reserve(module: L.LightningModule, device: torch.device) -> Tensor | None:
    if device.type != "cuda":
        return None
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    spare = SPARE * torch.cuda.get_device_properties(device).total_memory
    return torch.empty(int(OPTIMIZER_BYTES * trained + spare), dtype=torch.uint8, device=device)


@contextmanager
def _as_in_training(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Let schedules find a trainer at work, and `training_step` log nothing."""
    status, trainer.state.status = trainer.state.status, TrainerStatus.RUNNING
    quiet: dict[str, Any] = {"log": lambda *_, **__: None, "log_dict": lambda *_, **__: None}
    vars(module).update(quiet)
    try:
        yield
    finally:
        trainer.state.status = status
        for name in quiet:
            del vars(module)[name]
