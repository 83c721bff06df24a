"""Shortest contacts: the smallest distance in a crystal, measured in sums of covalent radii."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.distances import shortest_distances

MIN_CONTACT = 0.7
"""No two atoms should be closer than this share of the sum of their covalent radii."""
LAST_RADIUS = 96
"""Curium is the last element with a covalent radius in Cordero et al. 2008; heavier ones have none."""


def contacts(crystals: CrystalBatch) -> Float[np.ndarray, "B"]:
    """Return the smallest distance over the sum of both atoms' covalent radii of each crystal, all images included.

    Radii are those of Cordero et al. 2008 (doi:10.1039/b801115j), as ASE holds them. NaN where there is nothing to
    measure: no atoms, numbers that are not finite, an element without a radius. 0 for cells without volume.
    """
    from ase.data import covalent_radii

    host = crystals.detach().to("cpu")
    numbers, counts = host.atom_types.numpy(), host.num_atoms.numpy()
    lattices, frac_coords = host.lattices.double().numpy(), host.frac_coords.double().numpy()
    owner = np.repeat(np.arange(len(counts)), counts)
    known = (numbers >= 1) & (numbers <= LAST_RADIUS)
    measurable = np.isfinite(lattices).all(axis=(1, 2)) & (counts > 0)
    measurable[owner[~known | ~np.isfinite(frac_coords).all(axis=1)]] = False
    with np.errstate(over="ignore"):
        measurable &= np.isfinite(np.linalg.det(np.where(measurable[:, None, None], lattices, 0.0)))
    radii = np.asarray(covalent_radii, dtype=float)[np.where(known, numbers, 0)]
    chosen, atoms = np.flatnonzero(measurable), measurable[owner]
    result = np.full(len(counts), np.nan)
    result[chosen] = shortest_distances(lattices[chosen], frac_coords[atoms], counts[chosen], radii=radii[atoms])
    return result
