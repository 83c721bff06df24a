"""How far the densities and the numbers of elements of generated crystals are from those of a reference."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from crystalvae.data.batch import CrystalBatch
from crystalvae.evaluation.validity.composition import reduced_compositions
from crystalvae.evaluation.validity.structure import describe


def wasserstein(first: Float[np.ndarray, "M"], second: Float[np.ndarray, "N"]) -> float | None:
    """Return the Wasserstein-1 distance of two samples, NaN left out; None where one of them is empty."""
    from scipy.stats import wasserstein_distance

    first, second = first[np.isfinite(first)], second[np.isfinite(second)]
    return float(wasserstein_distance(first, second)) if len(first) and len(second) else None


def quantities(crystals: CrystalBatch) -> pd.DataFrame:
    """Return density (g/cm^3), number of elements and volume per atom (Å^3) of each crystal, NaN for unknown."""
    facts = describe(crystals)
    with np.errstate(divide="ignore", invalid="ignore"):
        volume = facts.volume.to_numpy(dtype=float) / facts.atoms.to_numpy(dtype=float)
    density = np.where(np.isfinite(facts.density), facts.density, np.nan)
    elements = [len(composition) for composition in reduced_compositions(crystals)]
    return pd.DataFrame({"density": density, "num_elements": elements, "volume_per_atom": volume})
