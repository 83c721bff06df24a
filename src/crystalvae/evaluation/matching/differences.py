"""How far predictions are from their targets, atom by atom in the same order: elements, lattices and coordinates."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import lattice_to_parameters, periodic_difference
from crystalvae.evaluation.metric import Metric


def error_metrics(target: CrystalBatch, prediction: CrystalBatch) -> dict[str, Metric]:
    """Return errors of elements, lattice and coordinates; the last two over crystals that are finite on both sides."""
    finite = _finite(target) & _finite(prediction)
    target_kept, prediction_kept = target[finite], prediction[finite]
    lengths, angles = lattice_to_parameters(target_kept.lattices)
    predicted_lengths, predicted_angles = lattice_to_parameters(prediction_kept.lattices)
    difference = periodic_difference(prediction_kept.frac_coords, target_kept.frac_coords)
    displacement = torch.einsum("ni,nij->nj", difference, target_kept.lattices[target_kept.batch])
    same = (target.atom_types == prediction.atom_types).double()
    count = int(finite.sum())

    def error(value: Tensor, definition: str, unit: str) -> Metric:
        return Metric(_number(value), f"{definition}, over `finite`", unit=unit, better="lower", count=count)

    return {
        "element_accuracy": Metric(
            _number(same.mean()),
            "share of atoms with the target's element, atoms compared in the same order",
            unit="share",
            better="higher",
            count=len(target),
        ),
        "length_mae": error((predicted_lengths - lengths).abs().mean(), "mean absolute error of a, b and c", "Å"),
        "angle_mae": error(
            torch.rad2deg(predicted_angles - angles).abs().mean(), "mean absolute error of α, β and γ", "°"
        ),
        "coordinate_rms": Metric(
            _number(displacement.square().sum(-1).mean().sqrt()),
            "root mean square over atoms, in the same order, of the difference of fractional coordinates, wrapped to "
            "the nearest image, in the target's lattice, over `finite`; no common shift is taken out",
            unit="Å",
            better="lower",
            count=count,
        ),
        "finite": Metric(count, "crystals with finite lattice and coordinates", better="higher"),
    }


def lattice_parameters(target: CrystalBatch, prediction: CrystalBatch) -> dict[str, list[object]]:
    """Return lengths (Å) and angles (degrees) of each crystal on both sides, to be drawn against each other."""
    result: dict[str, list[object]] = {}
    for name, crystals in (("target", target), ("prediction", prediction)):
        for quantity, values in (("lengths", crystals.lengths), ("angles", crystals.angles)):
            result[f"{name}_{quantity}"] = [
                [round(value, 5) if math.isfinite(value) else None for value in row] for row in values.tolist()
            ]
    return result


def _finite(crystals: CrystalBatch) -> Bool[Tensor, "B"]:
    finite = torch.isfinite(crystals.lattices).all(dim=-1).all(dim=-1)
    finite[crystals.batch[~torch.isfinite(crystals.frac_coords).all(dim=-1)]] = False
    return finite


def _number(value: Tensor) -> float | None:
    return float(value) if bool(torch.isfinite(value)) else None
