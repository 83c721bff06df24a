"""Crystals as the viewer draws them: atoms of one cell, bonds, edges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from crystalvae.data.distances import COLLAPSED_VOLUME

MAX_ATOMS = 400
"""Cells with more atoms are not drawn: what one sees of them is a ball."""
FACE = 0.15
"""Atoms nearer than this (Å) to a face of the cell are drawn on the opposite one as well."""
BOND = 1.15
"""Atoms at most this times the sum of their covalent radii (Cordero et al. 2008) apart are drawn as bonded.

Metal atoms only where the crystal has nothing else."""
MAX_BONDS_PER_ATOM = 16


@dataclass(frozen=True)
class Scene:
    """What is drawn: element symbols and positions in Å of the atoms, bonds as pairs of atoms, the cell's rows in Å."""

    elements: list[str]
    positions: list[list[float]]
    bonds: list[tuple[int, int]]
    cell: list[list[float]]

    def to_dict(self) -> dict[str, object]:
        """Return plain data for the viewer."""
        return {
            "elements": self.elements,
            "positions": self.positions,
            "bonds": [list(bond) for bond in self.bonds],
            "cell": self.cell,
        }


def scene(
    numbers: Int[np.ndarray, "n"], frac_coords: Float[np.ndarray, "n 3"], lattice: Float[np.ndarray, "3 3"]
) -> Scene | str:
    """Return what is drawn of a crystal, or why it cannot be drawn, in a few words."""
    from ase.data import chemical_symbols, covalent_radii

    reason = _obstacle(numbers, frac_coords, lattice)
    if reason:
        return reason
    source, inside = with_faces(np.mod(frac_coords.astype(float), 1.0), lattice.astype(float))
    positions = inside @ lattice.astype(float)
    drawn = np.where((numbers >= 1) & (numbers <= 118), numbers, 0)[source]
    radii = covalent_radii[drawn]
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    bonded = (distances <= BOND * (radii[:, None] + radii[None])) & (distances > 0.1)
    metallic = _metals(drawn)
    if not metallic.all():  # cations that happen to be near are no bond where there are anions
        bonded &= ~(metallic[:, None] & metallic[None])
    crowded = bonded.sum(axis=1) > MAX_BONDS_PER_ATOM  # a collapsed crystal, where lines would hide the atoms
    bonded[crowded] = False
    bonded[:, crowded] = False
    first, second = np.nonzero(np.triu(bonded))
    return Scene(
        elements=[chemical_symbols[z] for z in drawn.tolist()],
        positions=[[round(value, 3) for value in row] for row in positions.tolist()],
        bonds=list(zip(first.tolist(), second.tolist(), strict=True)),
        cell=[[round(value, 4) for value in row] for row in lattice.astype(float).tolist()],
    )


def look(scenes: Iterable[Scene | str]) -> dict[str, dict[str, str] | dict[str, float]]:
    """Return colours (#rrggbb, Jmol's convention) and covalent radii in Å of the elements in scenes, for the viewer."""
    from ase.data import atomic_numbers, covalent_radii
    from ase.data.colors import jmol_colors

    symbols = sorted({symbol for entry in scenes if isinstance(entry, Scene) for symbol in entry.elements})
    colours, radii = {}, {}
    for symbol in symbols:
        number = atomic_numbers[symbol]
        red, green, blue = (round(255 * part) for part in jmol_colors[min(number, len(jmol_colors) - 1)])
        colours[symbol] = f"#{red:02x}{green:02x}{blue:02x}"
        radii[symbol] = round(float(covalent_radii[number]), 3)
    return {"colours": colours, "radii": radii}


def _metals(atomic_numbers: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    from pymatgen.core import Element

    known = {int(z): z > 0 and Element.from_Z(int(z)).is_metal for z in np.unique(atomic_numbers)}
    return np.array([known[z] for z in atomic_numbers.tolist()], dtype=bool)


def _obstacle(numbers: np.ndarray, frac_coords: np.ndarray, lattice: np.ndarray) -> str:
    if len(numbers) == 0:
        return "it has no atoms"
    if len(numbers) > MAX_ATOMS:
        return f"it has {len(numbers)} atoms, more than the {MAX_ATOMS} that are drawn"
    if not (np.isfinite(frac_coords).all() and np.isfinite(lattice).all()):
        return "it has numbers that are not finite"
    volume = abs(float(np.linalg.det(lattice.astype(float))))
    if not math.isfinite(volume) or volume < COLLAPSED_VOLUME:
        return "its cell has no volume"
    return ""


def with_faces(frac_coords: np.ndarray, lattice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which atom each drawn one is, and its fractional coordinates, images on faces included."""
    margins = FACE * np.linalg.norm(np.linalg.inv(lattice), axis=0)  # FACE over the distance between opposite faces
    source, rows = [], []
    for atom, row in enumerate(frac_coords):
        choices = [
            (value, value + 1) if value < margin else (value, value - 1) if value > 1 - margin else (value,)
            for value, margin in zip(row.tolist(), np.minimum(margins, 0.25).tolist(), strict=True)
        ]
        for image in itertools.product(*choices):
            source.append(atom)
            rows.append(image)
    return np.array(source), np.array(rows)
