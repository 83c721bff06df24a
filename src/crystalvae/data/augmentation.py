"""Random views of crystals for training: translations, rotations and input noise, drawn per crystal or atom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import random_rotations, wrap
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError


def translate(crystals: CrystalBatch, shifts: Float[Tensor, "B 3"]) -> CrystalBatch:
    """Shift all atoms of each crystal by its own fractional vector."""
    return crystals.replace(frac_coords=wrap(crystals.frac_coords + shifts[crystals.batch]))


def rotate(crystals: CrystalBatch, rotations: Float[Tensor, "B 3 3"]) -> CrystalBatch:
    """Rotate each lattice by its own rotation R: every cell vector v becomes R v, always in full precision."""
    with torch.autocast(crystals.device.type, enabled=False):
        return crystals.replace(lattices=crystals.lattices @ rotations.transpose(-1, -2))


def corrupt(crystals: CrystalBatch, masked: Bool[Tensor, "N"], displacements: Float[Tensor, "N 3"]) -> CrystalBatch:
    """Hide the elements of masked atoms (class 0) and move each atom by a Cartesian displacement in Å."""
    fractional = torch.linalg.solve(
        crystals.lattices.transpose(-1, -2)[crystals.batch], displacements.unsqueeze(-1)
    ).squeeze(-1)
    return crystals.replace(
        atom_types=crystals.atom_types.masked_fill(masked, 0), frac_coords=wrap(crystals.frac_coords + fractional)
    )


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Which random views of a crystal training sees: shifts of the origin, and rotations uniform on SO(3)."""

    translate: bool = False
    rotate: bool = False

    @classmethod
    def of(cls, config: Mapping[str, bool] | None) -> Augmentation:
        """Read plain config; `ConfigError` for another key or value."""
        allowed = {item.name for item in fields(cls)}
        for key, value in (config or {}).items():
            if key not in allowed or not isinstance(value, bool):
                raise ConfigError(
                    f"augmentation.{key}: got {value!r}; expected translate and rotate, each true or false"
                )
        return cls(**(config or {}))

    def __call__(self, batch: TrainingBatch, generator: torch.Generator) -> CrystalBatch:
        """Return the batch's crystals, each shifted and rotated by its own draw."""
        crystals, device = batch.crystals, batch.crystals.device
        if self.translate:
            shifts = torch.rand(batch.total_crystals, 3, generator=generator, device=device)
            crystals = translate(crystals, batch.per_crystal(shifts))
        if self.rotate:
            crystals = rotate(crystals, batch.per_crystal(random_rotations(batch.total_crystals, generator)))
        return crystals


@dataclass(frozen=True, kw_only=True)
class InputNoise:
    """What a denoising encoder gets to see: the share of masked elements, and Gaussian displacements (σ in Å)."""

    mask_ratio: float = 0.0
    displacement: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.mask_ratio <= 1.0:
            raise ConfigError(f"noise.mask_ratio: got {self.mask_ratio}; expected a share in [0, 1]")
        if not self.displacement >= 0.0:
            raise ConfigError(f"noise.displacement: got {self.displacement}; expected a length in Å, at least 0")

    def __bool__(self) -> bool:
        return self.mask_ratio > 0 or self.displacement > 0

    def __call__(self, batch: TrainingBatch, crystals: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        """Return `crystals`, a view of the batch's, with elements hidden and atoms moved; as they are without noise."""
        if not self:
            return crystals
        masked = torch.rand(batch.total_atoms, generator=generator, device=crystals.device) < self.mask_ratio
        moves = torch.randn(batch.total_atoms, 3, generator=generator, device=crystals.device) * self.displacement
        return corrupt(crystals, batch.per_atom(masked), batch.per_atom(moves))
