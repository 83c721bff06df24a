"""Crystals from a prior and the VAE whose latents it draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.canonical import element_order
from crystalvae.data.composition import parse_chemical_system
from crystalvae.errors import ConfigError
from crystalvae.prior_module.flow import SamplerOptions
from crystalvae.prior_module.latent_flow import LatentFlow
from crystalvae.vae_module.conditions.values import Values, asked_values
from crystalvae.vae_module.distribution import normal_noise
from crystalvae.vae_module.vae import CrystalVAE

if TYPE_CHECKING:
    from crystalvae.vae_module.vae_module import VAEModule


@torch.no_grad()
def sample_from_prior(
    vae: CrystalVAE,
    prior: LatentFlow,
    template: CrystalBatch,
    values: Values,
    *,
    options: SamplerOptions,
    generator: torch.Generator,
    chemical_system: Sequence[int] | None = None,
    subsystems: bool = False,
    batch_size: int = 512,
    advance: Callable[[int], object] = lambda _done: None,
) -> CrystalBatch:
    """Draw crystals with the atom counts, and the elements where they are not 0, of `template`, in its order.

    `chemical_system` lists the only atomic numbers that may appear, all of which do unless `subsystems` (where the VAE
    decodes elements itself, they need not). Crystals are drawn in batches of similar size, each with random numbers of
    its own; the result depends on the generator's seed and on `batch_size`, not on the device where the generator is on
    the CPU. `advance` is told how many crystals are done after each batch.

    Raises `ConfigError` for elements that the kind of model or `chemical_system` does not allow.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: got {batch_size}; expected at least 1")
    unknown = template.atom_types == 0
    if bool(unknown.any()) and not bool(unknown.all()):
        raise ConfigError("composition: some atoms have element 0; expected elements for all atoms, or for none")
    device = prior.latent_mean.device
    jobs = batches_by_size(template.num_atoms, batch_size, generator)
    parts = []
    for rows, own in jobs:
        part = template[rows].to(device)
        asked = {name: given[rows.to(given.device)].to(device) for name, given in values.items()}
        part, restore = _with_elements(prior, part, asked, options, own, chemical_system, subsystems)

        draw = partial(normal_noise, (part.num_nodes, prior.latent_dim), device, own)
        latents = prior.sample_latents(part, asked, options=options, noise=draw)
        decoded = vae.decode(latents, part)
        if chemical_system is not None and decoded.atom_logits is not None:
            forbidden = torch.ones(decoded.atom_logits.shape[1], dtype=torch.bool, device=device)
            forbidden[torch.tensor(sorted(set(chemical_system)), device=device)] = False
            decoded = replace(decoded, atom_logits=decoded.atom_logits.masked_fill(forbidden, -torch.inf))
        crystals = vae.to_crystals(decoded, part)
        if restore is not None:
            crystals = crystals.replace(
                atom_types=crystals.atom_types[restore], frac_coords=crystals.frac_coords[restore]
            )
        parts.append(crystals.to("cpu"))
        advance(len(part))
    order = torch.cat([rows for rows, _ in jobs])
    return CrystalBatch.cat(parts)[order.argsort().cpu()].to(template.device)


def batches_by_size(
    num_atoms: Int[Tensor, "B"], batch_size: int, generator: torch.Generator
) -> list[tuple[Int[Tensor, "b"], torch.Generator]]:
    """Return batches of crystals of similar size, and for each its own generator, so that they can be drawn anywhere.

    One batch takes the generator as it is: drawing several one by one gives what drawing them together does.
    """
    rows = num_atoms.argsort(stable=True).split(batch_size)
    if len(rows) == 1:
        return [(rows[0], generator)]
    seeds = torch.randint(2**62, (len(rows),), generator=generator, device=generator.device).tolist()
    own = [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]
    return list(zip(rows, own, strict=True))


def _with_elements(
    prior: LatentFlow,
    part: CrystalBatch,
    values: Values,
    options: SamplerOptions,
    generator: torch.Generator,
    chemical_system: Sequence[int] | None,
    subsystems: bool,
) -> tuple[CrystalBatch, Tensor | None]:
    """Return crystals with elements in the order that the prior was trained on, and what puts them back in order."""
    unknown = part.atom_types == 0
    if not prior.elements_given:
        if not bool(unknown.all()):
            raise ConfigError(
                "composition: this model decodes elements from its latents and cannot be told them; use a checkpoint "
                "for structure prediction"
            )
        return part, None
    if bool(unknown.all()):
        drawn = prior.sample_elements(
            part.num_atoms,
            values,
            generator=generator,
            temperature=options.composition_temperature,
            chemical_system=chemical_system,
            subsystems=subsystems,
        )
        return part.replace(atom_types=drawn), None
    if chemical_system is not None and not bool(torch.isin(part.atom_types.cpu(), torch.tensor(chemical_system)).all()):
        raise ConfigError("composition and chemical_system exclude each other: the one has elements the other has not")
    ranks = element_order().to(part.device)[part.atom_types]
    order = (part.batch * len(element_order()) + ranks).argsort(stable=True)
    return part.replace(atom_types=part.atom_types[order]), order.argsort()


def sample_from_module(
    module: VAEModule,
    template: CrystalBatch,
    *,
    generator: torch.Generator | None,
    conditions: Mapping[str, object] | None = None,
    chemical_system: str | Sequence[str | int] | None = None,
    chemical_system_subsets: bool = False,
    sampler: Mapping[str, Any] | None = None,
    batch_size: int = 512,
    advance: Callable[[int], object] = lambda _done: None,
) -> CrystalBatch:
    """Draw crystals from a module's prior: what `VAEModule.sample` does where there is one.

    `conditions`: what to ask for, such as {"crystal_system": "cubic", "band_gap": 1.5}. `chemical_system`: "Li-Mn-O",
    or a list of symbols or atomic numbers. `sampler`: changes to the prior's default `SamplerOptions`. The rest is
    described at `sample_from_prior`.
    """
    prior = module.prior
    if not isinstance(prior, LatentFlow):
        raise ConfigError("sample: this checkpoint holds no learned prior")
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    allowed = {field.name for field in fields(SamplerOptions)}
    unknown = sorted(set(sampler or {}) - allowed)
    if unknown:
        raise ConfigError(f"sampler: unknown {', '.join(unknown)}; expected some of {', '.join(sorted(allowed))}")
    return sample_from_prior(
        module.vae,
        prior,
        template,
        asked_values(conditions or {}, prior.names, len(template)),
        options=replace(prior.sampler, **(sampler or {})),
        generator=generator,
        chemical_system=None if chemical_system is None else parse_chemical_system(chemical_system),
        subsystems=chemical_system_subsets,
        batch_size=batch_size,
        advance=advance,
    )
