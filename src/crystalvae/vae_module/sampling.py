"""Crystals from the bottleneck's own prior, and how many atoms they are to have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from crystalvae.checks import check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.composition import parse_chemical_system
from crystalvae.errors import ConfigError
from crystalvae.vae_module.bottlenecks.base import check_temperature
from crystalvae.vae_module.vae import CrystalVAE

if TYPE_CHECKING:
    from crystalvae.vae_module.vae_module import VAEModule


def sample_crystals(
    vae: CrystalVAE, template: CrystalBatch, *, temperature: float, generator: torch.Generator | None
) -> CrystalBatch:
    """Decode latents from the bottleneck's own prior for the atom counts, and the given elements, of `template`.

    A generator may live on another device than the model: the same seed gives the same latents on every device if it is
    a CPU generator.
    """
    check_temperature(temperature)
    if not vae.atom_type_predict and bool((template.atom_types == 0).any()):
        raise ConfigError(
            "sample: this model predicts structures for given elements; expected a batch with atom_types, got element 0"
        )
    latents = vae.bottleneck.draw(template, temperature=temperature, generator=generator)
    return vae.to_crystals(vae.decode(latents, template), template)


def draw_atom_counts(
    statistics: Mapping[str, Any], count: int, *, generator: torch.Generator | None, elements: int = 0
) -> Int[Tensor, "B"]:
    """Draw atom counts from the training set's that have room for `elements` different elements.

    Raises `ConfigError` where a checkpoint's `statistics` do not tell them, or none has room.
    """
    seen = {int(size): int(crystals) for size, crystals in statistics.get("num_atoms", {}).items()}
    if not seen:
        raise ConfigError(
            "this checkpoint does not know how many atoms crystals have: say it with num_atoms= (in Python: give "
            "CrystalBatch.empty([…]))"
        )
    large_enough = {size: crystals for size, crystals in seen.items() if size >= elements}
    if not large_enough:
        raise ConfigError(f"{elements} elements, but the model saw {max(seen)} atoms at most: say num_atoms=")
    sizes, weights = zip(*sorted(large_enough.items()), strict=True)
    drawn = torch.multinomial(torch.tensor(weights).double(), count, replacement=True, generator=_on_cpu(generator))
    return torch.tensor(sizes)[drawn]


def _on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    if generator is None or generator.device.type == "cpu":
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))


def draw_template(
    module: VAEModule, count: int, generator: torch.Generator | None, options: Mapping[str, Any]
) -> CrystalBatch:
    """Return `count` crystals of which only the numbers of atoms are known, for `VAEModule.sample` with `options`."""
    check_count("sample: the number of crystals", count)
    elements = 0
    system = options.get("chemical_system")
    if system is not None and not module.atom_type_predict and not options.get("chemical_system_subsets", False):
        elements = len(parse_chemical_system(system))
    return CrystalBatch.empty(draw_atom_counts(module.statistics, count, generator=generator, elements=elements))
