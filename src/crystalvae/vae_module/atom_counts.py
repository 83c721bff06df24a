"""How many atoms new crystals are to have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from crystalvae.checks import check_count
from crystalvae.errors import ConfigError


def seen_atom_counts(statistics: Mapping[str, Any]) -> dict[int, int]:
    """Return how many crystals of each atom count the training set had; nothing where a checkpoint does not know."""
    return {int(size): int(crystals) for size, crystals in statistics.get("num_atoms", {}).items()}


def draw_atom_counts(
    statistics: Mapping[str, Any],
    count: int,
    *,
    generator: torch.Generator | None,
    elements: int = 0,
    weights_of: Callable[[Sequence[int]], Tensor] | None = None,
) -> Int[Tensor, "B"]:
    """Draw atom counts from the training set's that have room for `elements` different elements.

    `weights_of` says how much likelier or less likely each is than in the training set. Raises `ConfigError` where a
    checkpoint's `statistics` do not tell them, or none has room or weight.
    """
    check_count("sample: the number of crystals", count)
    seen = seen_atom_counts(statistics)
    if not seen:
        raise ConfigError(
            "num_atoms: this checkpoint holds no distribution of atom counts; give num_atoms= (in Python: pass "
            "CrystalBatch.empty([…]))"
        )
    large_enough = {size: crystals for size, crystals in seen.items() if size >= elements}
    if not large_enough:
        raise ConfigError(
            f"{elements} elements, but the training crystals have at most {max(seen)} atoms: give num_atoms="
        )
    sizes, seen_crystals = zip(*sorted(large_enough.items()), strict=True)
    weights = torch.tensor(seen_crystals).double()
    if weights_of is not None:
        weights = weights * weights_of(sizes).cpu()
        if not bool((weights > 0).any()):
            raise ConfigError(
                f"no crystal with {min(sizes)} to {max(sizes)} atoms in the primitive cell can be like that"
            )
    drawn = torch.multinomial(weights, count, replacement=True, generator=_on_cpu(generator))
    return torch.tensor(sizes)[drawn]


def _on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    if generator is None or generator.device.type == "cpu":
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))
