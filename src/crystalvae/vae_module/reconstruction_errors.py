"""What training and validation report beside the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import periodic_difference
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import TrainingError

if TYPE_CHECKING:
    from crystalvae.data.datamodule import CrystalDataModule


def reconstruction_errors(predicted: CrystalBatch, target: CrystalBatch) -> dict[str, Tensor]:
    """Return errors between crystals with the same atoms in the same order, each averaged over the batch.

    `element_accuracy`: share of atoms. `coord_error`: root mean square distance in Å, in the target's cell.
    `length_error`: mean absolute error in Å. `angle_error`: mean absolute error in degrees.
    """
    difference = periodic_difference(predicted.frac_coords, target.frac_coords)
    distance = torch.einsum("ni,nij->nj", difference, target.lattices[target.batch])
    return {
        "element_accuracy": (predicted.atom_types == target.atom_types).float().mean(),
        "coord_error": distance.square().sum(dim=-1).mean().sqrt(),
        "length_error": (predicted.lengths - target.lengths).abs().mean(),
        "angle_error": (predicted.angles - target.angles).abs().mean(),
    }


def check_finite(losses: Mapping[str, Tensor], batch: TrainingBatch, datamodule: CrystalDataModule | None) -> None:
    """Raise `TrainingError` naming the batch's crystals where the loss is NaN or infinite."""
    if bool(torch.isfinite(losses["loss"])):
        return
    rows = batch.indices.tolist()
    names = datamodule.train_ids(rows) if datamodule is not None else [str(row) for row in rows]
    parts = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in losses.items())
    raise TrainingError(
        f"the loss is not finite ({parts}) for the batch of {len(names)} crystals {', '.join(names[:20])}"
        f"{' …' if len(names) > 20 else ''}. The last checkpoint is good: look at these crystals or lower the learning "
        "rate, then continue with resume_from="
    )
