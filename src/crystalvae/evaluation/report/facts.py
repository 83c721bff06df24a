"""Plain numbers of crystals that the plots show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.distances import COLLAPSED_VOLUME
from crystalvae.data.formulas import GRAM_PER_CM3

LAST_ELEMENT = 118


@dataclass(frozen=True, eq=False)
class Facts:
    """Numbers of B crystals: density in g/cm^3, volume per atom in Å^3, and counts; NaN where there is none.

    `element_share` is the share of crystals that hold the element of each atomic number.
    """

    density: Float[np.ndarray, "B"]
    volume_per_atom: Float[np.ndarray, "B"]
    num_elements: Int[np.ndarray, "B"]
    num_atoms: Int[np.ndarray, "B"]
    element_share: Float[np.ndarray, "119"]


def crystal_facts(crystals: CrystalBatch) -> Facts:
    """Return the numbers of each crystal; cells that are not finite or have no volume give NaN, never an error."""
    from ase.data import atomic_masses

    host = crystals.detach().to("cpu")
    numbers, counts = host.atom_types.numpy(), host.num_atoms.numpy()
    lattices = host.lattices.double().numpy()
    owner = np.repeat(np.arange(len(counts)), counts)
    known = (numbers >= 1) & (numbers <= LAST_ELEMENT)
    present = np.zeros((len(counts), LAST_ELEMENT + 1), dtype=bool)
    present[owner[known], numbers[known]] = True

    finite = np.asarray(np.isfinite(lattices).all(axis=(1, 2)))
    with np.errstate(over="ignore", invalid="ignore"):
        volumes = np.abs(np.linalg.det(np.where(finite[:, None, None], lattices, 0.0)))
    usable = finite & np.isfinite(volumes) & (volumes > COLLAPSED_VOLUME) & (counts > 0)
    volumes = np.where(usable, volumes, np.nan)
    atom_masses = np.where(known, atomic_masses[np.where(known, numbers, 0)], np.nan)
    masses = np.zeros(len(counts))
    np.add.at(masses, owner, atom_masses)
    return Facts(
        density=masses / volumes * GRAM_PER_CM3,
        volume_per_atom=volumes / np.maximum(counts, 1),
        num_elements=present.sum(axis=1),
        num_atoms=counts.astype(np.int64),
        element_share=present.mean(axis=0) if len(counts) else np.zeros(LAST_ELEMENT + 1),
    )
