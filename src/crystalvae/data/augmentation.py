"""Random views of crystals for training: translations, rotations and input noise, drawn per crystal or atom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import lattice_from_parameters, lattice_to_parameters, random_rotations, wrap
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


@dataclass(frozen=True)
class FeatureScales:
    """Standard deviations over a training set of fractional coordinates, lengths / n^(1/3) (Å), angles (radians)."""

    frac_coords: Float[Tensor, "3"]
    lengths: Float[Tensor, "3"]
    angles: Float[Tensor, "3"]

    @classmethod
    def of(cls, crystals: CrystalBatch) -> FeatureScales:
        """Return those of a training set."""
        features = (crystals.frac_coords, crystals.lengths_scaled, crystals.angles_radians)
        return cls(*(values.double().std(dim=0, correction=0).float() for values in features))


def jitter(
    crystals: CrystalBatch, coords: Float[Tensor, "N 3"], lengths: Float[Tensor, "B 3"], angles: Float[Tensor, "B 3"]
) -> CrystalBatch:
    """Add to fractional coordinates, lengths / n^(1/3) (Å) and angles (radians); the orientation of the cell stays.

    A cell that would have no volume stays as it is.
    """
    old, root = crystals.lattices.double(), crystals.num_atoms.double().pow(1 / 3)[:, None]
    opening = crystals.angles_radians.double() + angles.double()
    changed = lattice_from_parameters(crystals.lengths.double() + lengths.double() * root, opening)
    turned = torch.linalg.solve(lattice_from_parameters(*lattice_to_parameters(old)), old)
    new = changed @ turned
    ratio = torch.linalg.det(new).abs() / torch.linalg.det(old).abs()
    sound = ((opening > 0) & (opening < torch.pi)).all(-1) & new.isfinite().all(-1).all(-1)
    sound &= (ratio > 0.1) & (ratio < 10.0)
    lattices = torch.where(sound[:, None, None], new, old).to(crystals.lattices)
    return crystals.replace(frac_coords=wrap(crystals.frac_coords + coords), lattices=lattices)


@dataclass(frozen=True, kw_only=True)
class InputNoise:
    """What a denoising encoder gets to see: the share of masked elements, and Gaussian noise.

    `displacement` (σ in Å) moves atoms; `relative` is the σ of noise on coordinates, lengths and angles, in standard
    deviations over the training set (`FeatureScales`).
    """

    mask_ratio: float = 0.0
    displacement: float = 0.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.mask_ratio <= 1.0:
            raise ConfigError(f"noise.mask_ratio: got {self.mask_ratio}; expected a share in [0, 1]")
        if not 0.0 <= self.relative <= 1.0:
            raise ConfigError(f"noise.relative: got {self.relative}; expected standard deviations in [0, 1]")
        if not self.displacement >= 0.0:
            raise ConfigError(f"noise.displacement: got {self.displacement}; expected a length in Å, at least 0")

    def __bool__(self) -> bool:
        return self.mask_ratio > 0 or self.displacement > 0 or self.relative > 0

    def __call__(
        self,
        batch: TrainingBatch,
        crystals: CrystalBatch,
        generator: torch.Generator,
        scales: FeatureScales | None = None,
    ) -> CrystalBatch:
        """Return `crystals`, a view of the batch's, with elements hidden and atoms moved; as they are without noise.

        Raises `ConfigError` where `relative` noise is not told the training set's `scales`.
        """
        if not self:
            return crystals
        if self.relative > 0:
            crystals = self._jittered(batch, crystals, generator, scales)
        if self.mask_ratio == 0 and self.displacement == 0:
            return crystals
        masked = torch.rand(batch.total_atoms, generator=generator, device=crystals.device) < self.mask_ratio
        moves = torch.randn(batch.total_atoms, 3, generator=generator, device=crystals.device) * self.displacement
        return corrupt(crystals, batch.per_atom(masked), batch.per_atom(moves))

    def _jittered(
        self, batch: TrainingBatch, crystals: CrystalBatch, generator: torch.Generator, scales: FeatureScales | None
    ) -> CrystalBatch:
        if scales is None:
            raise ConfigError(
                "noise.relative: has to know the training set; in a loop of your own set "
                "module.noise_scales = FeatureScales.of(crystals) before the first step"
            )

        def normal(rows: int, scale: Tensor) -> Tensor:
            noise = torch.randn(rows, 3, generator=generator, device=crystals.device)
            return self.relative * scale.to(crystals.device) * noise

        coords = batch.per_atom(normal(batch.total_atoms, scales.frac_coords))
        lengths, angles = (batch.per_crystal(normal(batch.total_crystals, s)) for s in (scales.lengths, scales.angles))
        return jitter(crystals, coords, lengths, angles)
