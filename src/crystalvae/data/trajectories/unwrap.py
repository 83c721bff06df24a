"""From frames as programs write them to one motion: the same cell vectors throughout, atoms followed across borders."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

AMBIGUOUS = 0.4
"""Steps longer than this share of the shortest distance between opposite faces of the cell may have gone elsewhere."""


class FrameError(ValueError):
    """A frame that cannot be used: its place in the file, from 1, and the reason."""

    def __init__(self, frame: int, reason: str) -> None:
        super().__init__(f"frame {frame}: {reason}")
        self.frame, self.reason = frame, reason


def same_cell_vectors(
    frac_coords: Float[np.ndarray, "T N 3"], lattices: Float[np.ndarray, "T 3 3"]
) -> tuple[Float[np.ndarray, "T N 3"], Float[np.ndarray, "T 3 3"]]:
    """Describe every frame in those cell vectors that follow from the frame before; the first frame stays as it is.

    A lattice has many sets of vectors. Programs change over to another where a cell becomes skewed (LAMMPS flips its
    box), and readers that reduce cells do. With the frame before's vectors L, the vectors L' become M L', where M is
    L L'^-1 rounded to whole numbers; it must have determinant ±1.

    Raises `FrameError` for a cell that no such M brings near to the one before.
    """
    changes = np.rint(lattices[:-1] @ np.linalg.inv(lattices[1:]))
    if bool((changes == np.eye(3)).all()):
        return frac_coords, lattices
    coords, cells = frac_coords.copy(), lattices.copy()
    for i in range(1, len(cells)):
        change = np.rint(cells[i - 1] @ np.linalg.inv(cells[i]))
        if abs(round(float(np.linalg.det(change)))) != 1:
            raise FrameError(i + 1, "another cell, more than half as different again from the one of the frame before")
        cells[i] = change @ cells[i]
        coords[i] = coords[i] @ np.linalg.inv(change)
    return coords, cells


def unwrap(
    frac_coords: Float[np.ndarray, "T N 3"], lattices: Float[np.ndarray, "T 3 3"]
) -> tuple[Float[np.ndarray, "T N 3"], float]:
    """Follow every atom from frame to frame by the shortest step among its images, across the borders of the cell.

    The first frame stays as it is. Returns the coordinates, and the longest step as a share of the shortest distance
    between opposite faces of the cell: above `AMBIGUOUS` frames are too far apart to be sure of each step.
    """
    if len(frac_coords) < 2:
        return frac_coords, 0.0
    steps = np.diff(frac_coords, axis=0)
    steps -= np.rint(steps)
    inverses = np.linalg.inv(lattices[1:])
    face_distances = 1.0 / np.linalg.norm(inverses, axis=1).max(axis=1)  # no lattice vector is shorter
    lengths = np.linalg.norm(steps @ lattices[1:], axis=-1).max(axis=1)
    # A step below half the shortest lattice vector is the shortest; in skewed cells others may have shorter images.
    for i in np.flatnonzero(lengths >= 0.5 * face_distances):
        from ase.geometry import find_mic

        shortest, distances = find_mic(steps[i] @ lattices[i + 1], lattices[i + 1])
        steps[i], lengths[i] = shortest @ inverses[i], distances.max()
    coords = np.concatenate((frac_coords[:1], frac_coords[:1] + np.cumsum(steps, axis=0)))
    return coords, float((lengths / face_distances).max())


def remove_drift(frac_coords: Float[np.ndarray, "T N 3"], masses: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T N 3"]:
    """Shift unwrapped frames so that the centre of mass stays where it is in the first, in fractional coordinates."""
    centres = np.einsum("n,tni->ti", masses / masses.sum(), frac_coords)
    return frac_coords - (centres - centres[0])[:, None]
