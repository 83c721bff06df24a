"""Draw the README's picture: the first ten crystals that the bundled model samples with a seed, none left out.

python docs/images/crystals.py --seed 0 --output docs/images/crystals.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import matplotlib as mpl

import src  # noqa: F401  # the package of this checkout

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import complete_cell
from ase.visualize.plot import plot_atoms

from crystalvae.sampling import SampleRequest, request_template
from crystalvae.vae_module import VAEModule

ROWS, COLUMNS = 2, 5
LABELS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def main() -> None:
    """Sample and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", default="mp20-symmetric-small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("crystals.png"))
    options = parser.parse_args()
    module = VAEModule.load_from_checkpoint(options.ckpt)
    generator = torch.Generator().manual_seed(options.seed)
    template = request_template(module, SampleRequest(number=ROWS * COLUMNS), generator=generator)
    crystals = module.sample(template, return_atoms=True, generator=generator)
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(12, 5.4))
    for axis, atoms in zip(axes.flat, crystals, strict=True):
        draw(axis, atoms)
    figure.tight_layout(pad=0.6)
    figure.savefig(options.output, dpi=90)


def draw(axis: plt.Axes, atoms: Atoms) -> None:
    """Draw one cell with the images of atoms on its faces, seen from slightly above a corner."""
    shown = with_faces(atoms)
    plot_atoms(shown, axis, rotation="-78x,-22y,-6z", radii=0.45 * covalent_radii[shown.numbers], show_unit_cell=2)
    axis.set_axis_off()
    axis.set_title(atoms.get_chemical_formula("metal", empirical=True).translate(LABELS), fontsize=13)


def with_faces(atoms: Atoms, margin: float = 0.02) -> Atoms:
    """Return the atoms of a cell and those of its neighbours that lie on its faces, edges and corners."""
    cell = complete_cell(atoms.cell)
    places = atoms.get_scaled_positions(wrap=True)
    numbers, positions = [], []
    for number, place in zip(atoms.numbers, places, strict=True):
        choices = [[0.0, 1.0] if x < margin else [0.0, -1.0] if x > 1 - margin else [0.0] for x in place]
        for a in choices[0]:
            for b in choices[1]:
                for c in choices[2]:
                    numbers.append(number)
                    positions.append((place + np.array([a, b, c])) @ cell)
    return Atoms(numbers=numbers, positions=positions, cell=cell, pbc=True)


if __name__ == "__main__":
    main()
