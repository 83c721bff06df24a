"""Which device to compute on."""

from __future__ import annotations

import torch

from crystalvae.errors import ConfigError


def choose_device(name: str, *, local_rank: int = 0) -> torch.device:
    """Return the device called `name`; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Of several processes on a machine, `local_rank` counts them; "auto" and "cuda" give each a GPU while there are some.
    """
    if name in {"auto", "cuda"} and local_rank and torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"device: got {name!r}, which cannot be used here ({reason}); expected auto, cpu, cuda, …"
        ) from error
    return device
