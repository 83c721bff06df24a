"""Where float32 has to stay float32."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> torch.autocast:
    """Return a context without autocast: what is read off or turned into geometry stays in float32 under bf16-mixed."""
    return torch.autocast(tensor.device.type, enabled=False)
