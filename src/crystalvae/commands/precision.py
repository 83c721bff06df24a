"""The number format to train in."""

from __future__ import annotations

import logging

import torch
from torch import nn

log = logging.getLogger(__name__)

WIDE = 128
"""Models with layers at least this wide train in bfloat16 by default where the device has units for it."""


def choose_precision(asked: str, model: nn.Module, accelerator: str) -> str:
    """Return Lightning's name of a precision; "auto" takes bf16-mixed for wide models on devices that are made for it.

    Narrow models stay in float32, where bfloat16 gains little: most of their time is not in matrix products.
    """
    if asked != "auto":
        return asked
    matrices = [min(weight.shape) for weight in model.parameters() if weight.ndim == 2]
    half = max(matrices, default=0) >= WIDE and has_bfloat16_units(accelerator)
    chosen = "bf16-mixed" if half else "32-true"
    log.info("trainer.precision=auto: %s", chosen)
    return chosen


def has_bfloat16_units(accelerator: str) -> bool:
    """Say whether matrix products in bfloat16 are quicker than in float32 on what Lightning will train on."""
    if accelerator in {"auto", "gpu", "cuda"} and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        # Private in PyTorch, and not in every version: without an answer it is no.
        tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in tests)
    return False
