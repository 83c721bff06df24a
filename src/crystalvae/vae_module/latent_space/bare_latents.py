"""Latents that come as a bare tensor: which crystals they are for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.checks import check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError


def crystals_of_latents(
    latents: Float[Tensor, "N L"], num_atoms: int | Sequence[int] | Tensor | None, atom_types: Tensor | None
) -> CrystalBatch:
    """Return crystals without coordinates for N latents, and with elements where they are given.

    `num_atoms` are the counts of all crystals, which add up to N, or one count that all crystals have. Raises
    `ConfigError` where they are not told or do not fit.
    """
    if latents.ndim != 2:
        raise ConfigError(f"decode: got latents of shape {tuple(latents.shape)}; expected one row per atom, (N, L)")
    total = len(latents)
    if num_atoms is None:
        raise ConfigError(
            f"decode: got {total} latents without atom counts, which say where one crystal ends and the next begins; "
            "give num_atoms=, one count for each crystal, such as num_atoms=batch.num_atoms"
        )
    if isinstance(num_atoms, int):
        each = check_count("decode: num_atoms", num_atoms)
        if total % each:
            raise ConfigError(f"decode: num_atoms={each} does not divide {total} latents; give one for each crystal")
        counts = torch.full((total // each,), each)
    else:
        counts = torch.as_tensor(num_atoms)
    if int(counts.sum()) != total:
        raise ConfigError(f"decode: num_atoms add up to {int(counts.sum())}; expected {total}, one latent per atom")
    crystals = CrystalBatch.empty(counts, device=latents.device)
    return crystals if atom_types is None else crystals.replace(atom_types=atom_types.to(latents.device))
