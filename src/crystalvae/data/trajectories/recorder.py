"""What dynamics and relaxations leave behind: frames, collected one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from crystalvae.data.trajectories.trajectory import Trajectory
from crystalvae.data.trajectories.unwrap import remove_drift

if TYPE_CHECKING:
    from ase import Atoms


class Recorder:
    """Collects frames of atoms that move, with their energies and forces under their calculator."""

    def __init__(self, id: str, atoms: Atoms) -> None:  # noqa: A002  the field's own name
        self.id, self.atoms = id, atoms
        self._coords: list[np.ndarray] = []
        self._lattices: list[np.ndarray] = []
        self._energies: list[float] = []
        self._forces: list[np.ndarray] = []
        self._times: list[float] = []
        self._values: list[Mapping[str, float | int]] = []

    @property
    def frames(self) -> int:
        """Number of frames so far."""
        return len(self._times)

    def add(self, time: float, values: Mapping[str, float | int]) -> None:
        """Keep the atoms as they are now; every frame has the same names of values."""
        self._coords.append(self.atoms.get_scaled_positions(wrap=False))
        self._lattices.append(np.array(self.atoms.cell))
        self._energies.append(float(self.atoms.get_potential_energy()))
        self._forces.append(np.array(self.atoms.get_forces()))
        self._times.append(time)
        self._values.append(values)

    def trajectory(self) -> Trajectory:
        """Return the frames; the centre of mass is kept where it was in the first."""
        coords = remove_drift(np.array(self._coords), self.atoms.get_masses())
        return Trajectory(
            id=self.id,
            atom_types=torch.from_numpy(self.atoms.numbers.astype(np.int64)),
            frac_coords=torch.from_numpy(coords),
            lattices=torch.from_numpy(np.array(self._lattices)),
            times=torch.tensor(self._times, dtype=torch.float64),
            energies=torch.tensor(self._energies, dtype=torch.float64),
            forces=torch.from_numpy(np.array(self._forces)),
            properties={name: _column([values[name] for values in self._values]) for name in self._values[0]},
        )


def _column(values: list[float | int]) -> torch.Tensor:
    whole = all(isinstance(value, int) for value in values)
    return torch.tensor(values, dtype=torch.int64 if whole else torch.float64)
