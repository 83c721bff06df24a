"""Crystals that reach a model from Python are held to the rules that those from files are: named where they are not."""

from __future__ import annotations

import torch

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.cif import LENGTH_RANGE, MAX_FRAC_COORD, MIN_VOLUME_FRACTION
from crystalvae.errors import DataError


def sound_crystals(name: str, crystals: CrystalBatch) -> CrystalBatch:
    """Return crystals that a model can take, in right-handed cells; `name` is what an error calls them.

    One crystal with a cell or coordinates that are no numbers would make no numbers of the crystals that share a row
    of attention with it, and one of absurd size would change them. Raises `DataError` that says which crystal it is and
    why, for a cell that is not finite, absurdly short or long or without volume, and for coordinates that are not
    finite or absurdly far out.
    """
    host = crystals.detach().to("cpu")
    lattices, coords = host.lattices.double(), host.frac_coords.double()
    lengths = torch.linalg.vector_norm(lattices, dim=-1)
    finite = torch.isfinite(lattices).all(-1).all(-1)
    sensible = (lengths >= LENGTH_RANGE[0]).all(-1) & (lengths <= LENGTH_RANGE[1]).all(-1)
    volumes = torch.linalg.det(torch.where(finite[:, None, None], lattices, 0.0)).abs()
    far = torch.zeros(len(host), dtype=torch.bool)
    far[host.batch[~(coords.abs() <= MAX_FRAC_COORD).all(-1)]] = True
    faults = {
        "the cell is not finite": ~finite,
        "absurd cell lengths": ~sensible,
        "the cell has no volume": volumes < MIN_VOLUME_FRACTION * lengths.prod(-1),
        f"coordinates that are not finite, or larger than {MAX_FRAC_COORD:g}": far,
    }
    for reason, bad in faults.items():
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            shown = ", ".join(f"{value:.4g}" for value in lengths[row].tolist())
            others = f", and {int(bad.sum()) - 1} more" if int(bad.sum()) > 1 else ""
            raise DataError(
                f"{name}: crystal {row} of {len(host)} ({int(host.num_atoms[row])} atoms, cell lengths {shown} Å"
                f"{others}): {reason}; leave it out"
            )
    return crystals.right_handed()
