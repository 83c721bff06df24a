"""What the tests of sequences share: trajectories made by hand, and a module small enough to train in seconds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from crystalvae.data.trajectories import Trajectory
from crystalvae.sequence_module.datamodule import SequenceDataModule
from crystalvae.sequence_module.sequence_module import SequenceModule
from tests.samples import tiny_config

GEOMETRY = {"_target_": "crystalvae.sequence_module.features.GeometryFeatures"}
LATENTS = {"_target_": "crystalvae.sequence_module.features.LatentFeatures", "vae": tiny_config()}
EMBEDDING = {"_target_": "crystalvae.sequence_module.features.EmbeddingFeatures", "vae": tiny_config()}
TINY = {
    "window": 8,
    "future_steps": 4,
    "latent_dim": 4,
    "hidden_size": 12,
    "hidden_size_reconstruction": 10,
    "hidden_size_prediction": 6,
}


def swinging(
    name: str = "a", *, frames: int = 60, phase: float = 0.0, switch: int = 20, step: float = 2.0
) -> Trajectory:
    """A CsCl cell that breathes along c while an atom swings, slowly and quickly in turn for `switch` frames each."""
    rows = torch.arange(frames, dtype=torch.float64)
    regime = (rows // switch) % 2
    speed = torch.where(regime > 0, 1.3, 0.35)
    angle = speed.cumsum(dim=0) + phase
    coords = torch.zeros(frames, 2, 3, dtype=torch.float64)
    coords[:, 1] = 0.5
    coords[:, 1, 0] += 0.04 * angle.sin()
    coords[:, 1, 1] += 0.03 * (angle + 1.0).cos()
    lattices = 4.1 * torch.eye(3, dtype=torch.float64).repeat(frames, 1, 1)
    lattices[:, 2, 2] += 0.08 * (0.7 * angle).sin()
    return Trajectory(
        id=name,
        atom_types=torch.tensor([55, 17]),
        frac_coords=coords,
        lattices=lattices,
        times=step * rows,
        properties={"regime": regime.long(), "temperature": 300.0 + 600.0 * regime},
    )


class Recordings:
    """Hand-made trajectories as a source."""

    def __init__(self, trajectories: list[Trajectory], name: str = "recordings") -> None:
        self.name, self._trajectories = name, trajectories

    def load(self) -> list[Trajectory]:
        return self._trajectories


def recordings(count: int = 5, **options: Any) -> Recordings:
    return Recordings([swinging(f"t{i}", phase=2.0 * math.pi * i / count, **options) for i in range(count)])


def datamodule(source: Any = None, **options: Any) -> SequenceDataModule:
    defaults: dict[str, Any] = {
        "window": TINY["window"],
        "future_decoder": True,
        "future_steps": TINY["future_steps"],
        "val_fraction": 0.2,
        "test_fraction": 0.2,
        "batch_size": 32,
    }
    return SequenceDataModule(source=source or recordings(), **{**defaults, **options})


def tiny_module(features: Any = None, **options: Any) -> SequenceModule:
    defaults: dict[str, Any] = {
        "features": features or GEOMETRY,
        "model": TINY,
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 5e-3, "amsgrad": True},
    }
    return SequenceModule(**{**defaults, **options})


def built(features: Any = None, seed: int = 0, **options: Any) -> SequenceModule:
    """A tiny module with its parts, as it is before training."""
    torch.manual_seed(seed)
    module = tiny_module(features, **options)
    module.describe([swinging()])
    module.features.prepare([swinging()])
    module.features.fit(module.features.of(swinging()))
    return module.eval()


def windows(count: int = 5, frames: int = 12, features: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(count, frames, features, generator=torch.Generator().manual_seed(seed))
