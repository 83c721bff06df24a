"""How far decoded crystals are from their targets: one number for elements, coordinates, lengths and angles each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crystalvae.checks import check_choice
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import periodic_difference
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.decoders.heads import DecodedCrystals

CoordLoss = Literal["periodic", "mse"]
ElementLoss = Literal["cross_entropy", "bce"]
Reduction = Literal["mean", "sum"]
PARTS = ("atom_types", "frac_coords", "lengths", "angles", "kl")
"""What a reduction can be said for, and a weight."""


def check_reductions(given: Mapping[str, Any] | None) -> dict[str, Reduction]:
    """Return the reduction of every part, "mean" where nothing is said; `ConfigError` for what is neither."""
    for part, value in (given or {}).items():
        if part not in PARTS:
            raise ConfigError(f"objective.reductions.{part}: unknown part; expected some of {', '.join(PARTS)}")
        check_choice(f"objective.reductions.{part}", value, get_args(Reduction))
    return {**dict.fromkeys(PARTS, "mean"), **(given or {})}


def reconstruction_losses(
    decoded: DecodedCrystals,
    target: CrystalBatch,
    batch: TrainingBatch,
    *,
    coord_loss: CoordLoss,
    element_loss: ElementLoss,
    reductions: Mapping[str, Reduction],
) -> dict[str, Tensor]:
    """Return each part of the reconstruction loss, unweighted.

    `atom_types`: nats per atom; cross-entropy, or the binary cross-entropy of every class, summed over classes.
    `frac_coords`: squared error per coordinate, in units of the cell edge; on the circle it is
    |v - (cos 2πf, sin 2πf)|² / (2π)², the same for small errors. `lengths`: squared error of lengths / n^(1/3) in Å².
    `angles`: squared error in rad². "mean" averages over the atoms (or crystals) of the batch and over the three axes;
    "sum" adds up all of a crystal and averages over crystals. Sums over what is here are divided by this process's
    share of the global batch.
    """
    atoms, graphs = batch.mean_atoms, batch.mean_crystals
    sums = {
        "frac_coords": (_coord_error(decoded, target, coord_loss).sum(), 3 * atoms),
        "lengths": ((decoded.lengths_scaled - target.lengths_scaled).square().sum(), 3 * graphs),
        "angles": ((decoded.angles - target.angles_radians).square().sum(), 3 * graphs),
    }
    if decoded.atom_logits is not None:
        sums["atom_types"] = (_element_error(decoded.atom_logits, target.atom_types, element_loss), atoms)
    return {name: total / (count if reductions[name] == "mean" else graphs) for name, (total, count) in sums.items()}


def _element_error(logits: Float[Tensor, "N E"], atom_types: Tensor, element_loss: ElementLoss) -> Float[Tensor, ""]:
    if element_loss == "cross_entropy":
        return F.cross_entropy(logits, atom_types, reduction="sum")
    hot = F.one_hot(atom_types, logits.shape[-1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, hot, reduction="sum")


def _coord_error(decoded: DecodedCrystals, target: CrystalBatch, coord_loss: CoordLoss) -> Float[Tensor, "N 3"]:
    if coord_loss == "mse":
        return (decoded.frac_coords - target.frac_coords).square()
    if decoded.coord_vectors is None:
        return periodic_difference(decoded.frac_coords, target.frac_coords).square()
    phase = 2 * torch.pi * target.frac_coords
    points = torch.stack((phase.cos(), phase.sin()), dim=-1)
    return (decoded.coord_vectors - points).square().sum(dim=-1) / (2 * torch.pi) ** 2
