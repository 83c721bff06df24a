"""Walks through the latent space: from one crystal to another, and along one latent dimension."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystalvae.checks import check_choice, check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.latent_space.alignment import align
from crystalvae.vae_module.latent_space.latents import continuous_latents, decode_latents
from crystalvae.vae_module.vae import CrystalVAE

Mode = Literal["linear", "slerp"]
_PARALLEL = 1e-4
"""Below this sine of the angle between two vectors the great circle is no better than the line, or not unique."""


def lerp(a: Float[Tensor, "N L"], b: Float[Tensor, "N L"], fraction: float) -> Float[Tensor, "N L"]:
    """Return (1 - t) a + t b."""
    return (1.0 - fraction) * a + fraction * b


def slerp(a: Float[Tensor, "N L"], b: Float[Tensor, "N L"], fraction: float) -> Float[Tensor, "N L"]:
    """Return a sin((1 - t) ω) / sin ω + b sin(t ω) / sin ω for each row, ω the angle between a and b.

    Source: Shoemake, "Animating rotation with quaternion curves" (1985); for latents White, arXiv:1609.04468. Rows that
    are parallel, opposite or zero are interpolated on the line.
    """
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1, eps=1e-12).clamp(-1.0, 1.0)
    angle = torch.acos(cosine)[:, None]
    sine = torch.sin(angle)
    # A zero vector has no direction; its cosine comes out as 0.
    usable = (sine > _PARALLEL) & (a.norm(dim=-1, keepdim=True) > 0) & (b.norm(dim=-1, keepdim=True) > 0)
    safe = torch.where(usable, sine, torch.ones_like(sine))
    arc = a * torch.sin((1.0 - fraction) * angle) / safe + b * torch.sin(fraction * angle) / safe
    return torch.where(usable, arc, lerp(a, b, fraction))


@torch.no_grad()
def interpolate(
    vae: CrystalVAE, a: CrystalBatch, b: CrystalBatch, *, steps: int, mode: Mode = "linear", shift_origin: bool = True
) -> CrystalBatch:
    """Decode `steps` crystals from a to b, both included: latents interpolated atom by atom.

    b is laid on a first (`align`; its origin stays where it is unless `shift_origin`). Where the model is given the
    elements, an atom whose partner is another element changes at half way. The result's property `fraction` goes from
    0 to 1; other properties, and the conditions of a conditional decoder, are kept where both crystals have the same.

    Raises `ConfigError` for crystals of different sizes, fewer than two steps, an unknown mode, and a bottleneck whose
    latents cannot be interpolated.
    """
    check_choice("mode", mode, get_args(Mode))
    check_count("steps", steps, at_least=2)
    other = align(a, b, shift_origin=shift_origin).apply(b)
    first, last = (continuous_latents(vae, crystal, "interpolate") for crystal in (a, other))
    between = {"linear": lerp, "slerp": slerp}[mode]
    fractions = [step / (steps - 1) for step in range(steps)]
    latents = torch.cat([between(first, last, fraction) for fraction in fractions])
    elements = [a.atom_types if fraction < 0.5 else other.atom_types for fraction in fractions]
    template = _repeated(a, steps, atom_types=torch.cat(elements), like=(a, b))
    crystals = decode_latents(vae, latents, template)
    return _with_property(crystals, template, "fraction", fractions)


@torch.no_grad()
def traverse(
    vae: CrystalVAE,
    crystal: CrystalBatch,
    *,
    dim: int,
    limits: tuple[float, float],
    steps: int,
    atom: int | None = None,
) -> CrystalBatch:
    """Decode `steps` crystals in which an offset is added to latent dimension `dim`, from `limits[0]` to `limits[1]`.

    The offset goes to all atoms, or to one `atom`; 0 is the crystal's own reconstruction. The result's property
    `offset` tells it.

    Raises `ConfigError` for a latent dimension or an atom that there is not.
    """
    if isinstance(dim, bool) or not isinstance(dim, int) or not 0 <= dim < vae.latent_dim:
        raise ConfigError(f"dim: got {dim!r}; this model's latents are numbered 0 to {vae.latent_dim - 1}")
    if atom is not None and (isinstance(atom, bool) or not isinstance(atom, int) or not 0 <= atom < crystal.num_nodes):
        raise ConfigError(f"atom: got {atom!r}; this crystal's atoms are numbered 0 to {crystal.num_nodes - 1}")
    check_count("steps", steps)
    if len(limits) != 2 or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in limits):
        raise ConfigError(f"range: got {limits!r}; expected two finite numbers, from and to")
    latents = continuous_latents(vae, crystal, "latent_traversal")
    offsets = torch.linspace(float(limits[0]), float(limits[1]), steps, device=latents.device)
    moved = latents.repeat(steps, 1, 1)
    moved[:, slice(None) if atom is None else slice(atom, atom + 1), dim] += offsets[:, None]
    template = _repeated(crystal, steps, atom_types=crystal.atom_types.repeat(steps), like=(crystal, crystal))
    crystals = decode_latents(vae, moved.flatten(0, 1), template)
    return _with_property(crystals, template, "offset", offsets.tolist())


def _repeated(
    crystal: CrystalBatch,
    count: int,
    *,
    atom_types: Int[Tensor, "N"],
    like: tuple[CrystalBatch, CrystalBatch],
) -> CrystalBatch:
    """Return a crystal many times, with the properties and conditions that are the same for both of `like`."""
    one, other = like
    return CrystalBatch(
        atom_types=atom_types,
        frac_coords=crystal.frac_coords.repeat(count, 1),
        lattices=crystal.lattices.repeat(count, 1, 1),
        num_atoms=crystal.num_atoms.repeat(count),
        properties=_shared(one.properties, other.properties, count),
        conditions=_shared(one.conditions, other.conditions, count),
    )


def _shared(one: Mapping[str, Tensor], other: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    return {
        name: one[name].expand(count, *one[name].shape[1:])
        for name in sorted(one.keys() & other.keys())
        if one is other or torch.equal(one[name], other[name])
    }


def _with_property(crystals: CrystalBatch, template: CrystalBatch, name: str, values: list[float]) -> CrystalBatch:
    own = torch.tensor(values, device=crystals.device)
    return crystals.replace(properties={**template.properties, name: own})
