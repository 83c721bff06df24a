"""Structural validity and plain facts of crystals, for thousands at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.distances import shortest_distances
from crystalvae.data.formulas import GRAM_PER_CM3, formulas_and_masses
from crystalvae.evaluation.crystal_arrays import Arrays
from crystalvae.evaluation.parallel.runner import Runner

if TYPE_CHECKING:
    import pandas as pd

MIN_DISTANCE = 0.5
"""Shortest distance in Å that a valid crystal may have (CDVAE, Xie et al. 2022, arXiv:2110.06197, section 5.2)."""
MIN_VOLUME = 0.1
"""Smallest cell volume in Å^3 that a valid crystal may have (same source, its published code)."""


def describe(crystals: CrystalBatch) -> pd.DataFrame:
    """Return one row of facts per crystal: formula, atoms, volume, density, shortest_distance, valid, reason.

    Formulas are reduced, in pymatgen's convention; `volume` is in Å^3, `density` in g/cm^3, `shortest_distance` in Å.
    The last is the shortest between any two atoms over all periodic images, an atom's own images included, for cells of
    any shape (infinite for a crystal without atoms). `valid` is CDVAE's definition of structural validity: every
    distance at least `MIN_DISTANCE` and the volume at least `MIN_VOLUME`. Its code leaves out own images; here they
    count, so what is valid here is valid there. `reason` is empty for valid crystals. Numbers that are not finite,
    unknown elements and missing atoms make a crystal invalid, never an error; what cannot be known is NaN.
    """
    import pandas as pd

    host = crystals.detach().to("cpu")
    numbers, counts = host.atom_types.numpy(), host.num_atoms.numpy()
    lattices, frac_coords = host.lattices.double().numpy(), host.frac_coords.double().numpy()
    owner = np.repeat(np.arange(len(counts)), counts)

    finite_lattice = np.asarray(np.isfinite(lattices).all(axis=(1, 2)))
    finite_coords = np.ones(len(counts), dtype=bool)
    finite_coords[owner[~np.isfinite(frac_coords).all(axis=1)]] = False
    known = np.ones(len(counts), dtype=bool)
    known[owner[(numbers < 1) | (numbers > 118)]] = False

    with np.errstate(invalid="ignore", over="ignore"):
        determinants = np.linalg.det(np.where(finite_lattice[:, None, None], lattices, 0.0))
    volumes = np.where(finite_lattice, np.abs(determinants), np.nan)
    formulas, masses = formulas_and_masses(numbers, counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        densities = np.where(known, masses / volumes * GRAM_PER_CM3, np.nan)
    distances = np.full(len(counts), np.nan)
    measurable = finite_lattice & finite_coords & np.isfinite(volumes) & (counts > 0)
    chosen = np.flatnonzero(measurable)
    distances[chosen] = shortest_distances(lattices[chosen], frac_coords[measurable[owner]], counts[chosen])
    distances[finite_lattice & (counts == 0)] = np.inf

    def reason(i: int) -> str:
        if counts[i] == 0:
            return "no atoms"
        if not finite_lattice[i] or not np.isfinite(volumes[i]):
            return "lattice is not finite"
        if not finite_coords[i]:
            return "coordinates are not finite"
        if not known[i]:
            return "unknown element"
        if volumes[i] < MIN_VOLUME:
            return f"volume {volumes[i]:.3g} Å^3 is below {MIN_VOLUME} Å^3"
        if distances[i] < MIN_DISTANCE:
            return f"shortest distance {distances[i]:.3f} Å is below {MIN_DISTANCE} Å"
        return ""

    reasons = [reason(i) for i in range(len(counts))]
    return pd.DataFrame(
        {
            "formula": pd.Series(formulas, dtype=object),
            "atoms": counts.astype(np.int64),
            "volume": volumes,
            "density": densities,
            "shortest_distance": distances,
            "valid": np.array([not entry for entry in reasons], dtype=bool),
            "reason": pd.Series(reasons, dtype=object),
        }
    )


def map_valid(
    function: Callable[[Arrays], Any],
    crystals: CrystalBatch,
    *,
    runner: Runner,
    otherwise: Callable[[str], Any],
    description: str,
    namespace: str,
    chunk: int = 16,
) -> list[Any]:
    """Return `function(arrays)` of each structurally valid crystal, and `otherwise(reason)` of each other one.

    The rest is as in `Runner.map`.
    """
    reasons: list[str] = describe(crystals)["reason"].tolist()
    arrays = [crystal for crystal, reason in zip(crystals.to_arrays(), reasons, strict=True) if not reason]
    found = iter(runner.map(function, arrays, description=description, namespace=namespace, chunk=chunk))
    return [otherwise(reason) if reason else next(found) for reason in reasons]
