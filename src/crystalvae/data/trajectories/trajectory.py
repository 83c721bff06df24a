"""One recording of a crystal in motion: the same atoms in the same order, frame after frame."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import wrap

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True, eq=False)
class Trajectory:
    """T frames of one system of N atoms, in order of time; immutable.

    Letters: T frames, N atoms. `frac_coords` are *unwrapped*: an atom that leaves the cell goes on beyond 1 (`frames`
    wraps them). `lattices` rows are vectors in Å, frame for frame the same three vectors of the crystal, deformed.
    `times` are in fs and rise. `energies` (eV, of the whole cell) and `forces` (eV/Å) are None where they are not
    known. `properties` holds further values per frame, such as `temperature` in K or a label, NaN where unknown.

    Raises `ValueError` naming the trajectory, the field, the expected and the given shape.
    """

    id: str
    atom_types: Int[Tensor, "N"]
    frac_coords: Float[Tensor, "T N 3"]
    lattices: Float[Tensor, "T 3 3"]
    times: Float[Tensor, "T"]
    energies: Float[Tensor, "T"] | None = None
    forces: Float[Tensor, "T N 3"] | None = None
    properties: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frames, atoms = self.times.shape[0], self.atom_types.shape[0]
        if frames < 1 or atoms < 1:
            raise ValueError(f"Trajectory {self.id!r}: expected frames and atoms, got {frames} frames of {atoms} atoms")
        expected = {
            "atom_types": (atoms,),
            "frac_coords": (frames, atoms, 3),
            "lattices": (frames, 3, 3),
            "times": (frames,),
            "energies": (frames,),
            "forces": (frames, atoms, 3),
        }
        for name, shape in expected.items():
            values = getattr(self, name)
            if values is not None and tuple(values.shape) != shape:
                raise ValueError(f"Trajectory {self.id!r}.{name}: expected shape {shape}, got {tuple(values.shape)}")
        for name, values in self.properties.items():
            if tuple(values.shape) != (frames,):
                got = tuple(values.shape)
                raise ValueError(f"Trajectory {self.id!r}.properties[{name!r}]: expected shape {(frames,)}, got {got}")
        if not bool((self.times[1:] > self.times[:-1]).all()):
            raise ValueError(f"Trajectory {self.id!r}.times: expected times that rise from frame to frame")

    @property
    def num_frames(self) -> int:
        """Number of frames T."""
        return self.times.shape[0]

    @property
    def num_atoms(self) -> int:
        """Number of atoms N."""
        return self.atom_types.shape[0]

    @property
    def cart_coords(self) -> Float[Tensor, "T N 3"]:
        """Cartesian coordinates in Å, unwrapped."""
        return self.frac_coords @ self.lattices

    @property
    def volumes(self) -> Float[Tensor, "T"]:
        """Cell volumes in Å^3."""
        return torch.linalg.det(self.lattices).abs()

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, index: slice) -> Trajectory:
        """Return part of the trajectory, such as `trajectory[100:200]` or every tenth frame, `trajectory[::10]`.

        Raises `TypeError` for anything but a slice, `ValueError` for one that is empty or runs backwards.
        """
        if not isinstance(index, slice):
            raise TypeError(f"Trajectory {self.id!r}: expected a slice, got {index!r}; one frame is frames({index!r})")
        start, stop, step = index.indices(len(self))
        if step < 1 or start >= stop:
            raise ValueError(
                f"Trajectory {self.id!r}[{index.start}:{index.stop}:{index.step}]: expected a slice with frames in it, "
                f"forwards in time; there are {len(self)} frames"
            )
        kept = slice(start, stop, step)
        return replace(
            self,
            frac_coords=self.frac_coords[kept],
            lattices=self.lattices[kept],
            times=self.times[kept],
            energies=None if self.energies is None else self.energies[kept],
            forces=None if self.forces is None else self.forces[kept],
            properties={name: values[kept] for name, values in self.properties.items()},
        )

    def frames(self, index: int | slice | Sequence[int] | np.ndarray | Tensor = slice(None)) -> CrystalBatch:
        """Return frames as crystals, float32 and wrapped into the cell, with their values as properties.

        `index` is a number (negative from the end), a slice, or several numbers, in any order; all frames by default.
        The properties are those of the trajectory, `time` and, where it is known, `energy`.
        """
        chosen = torch.arange(len(self))[index].reshape(-1)
        coords, atoms = self.frac_coords[chosen], self.num_atoms
        properties = {**self.properties, "time": self.times}
        if self.energies is not None:
            properties["energy"] = self.energies
        return CrystalBatch(
            atom_types=self.atom_types.repeat(len(chosen)),
            frac_coords=wrap(wrap(coords.double()).float()).reshape(-1, 3),
            lattices=self.lattices[chosen].float(),
            num_atoms=torch.full((len(chosen),), atoms, dtype=torch.long),
            properties={name: values[chosen] for name, values in properties.items()},
        )

    def to_atoms(self) -> list[Atoms]:
        """Return ASE atoms, one per frame: unwrapped positions, energies and forces as results, the rest in `info`.

        `info` has `time` in fs and the properties that are known; whole-number properties stay whole numbers.
        """
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator

        numbers, cells = self.atom_types.numpy(), self.lattices.double().numpy()
        positions = self.cart_coords.double().numpy()
        properties = {name: values.tolist() for name, values in self.properties.items()}
        frames = []
        for i, time in enumerate(self.times.tolist()):
            info = {"time": time, **{name: values[i] for name, values in properties.items() if values[i] == values[i]}}
            atoms = Atoms(numbers=numbers, positions=positions[i], cell=cells[i], pbc=True, info=info)
            results: dict[str, float | np.ndarray] = {}
            if self.energies is not None:
                results["energy"] = float(self.energies[i])
            if self.forces is not None:
                results["forces"] = self.forces[i].double().numpy()
            if results:
                atoms.calc = SinglePointCalculator(atoms, **results)
            frames.append(atoms)
        return frames

    def write_extxyz(self, path: Path | str) -> None:
        """Write all frames to an extended XYZ file, which `read_trajectory`, ASE and OVITO read.

        A file of this name is replaced, and only once the new one is complete.
        """
        from ase.io.extxyz import write_extxyz

        target = Path(path).expanduser()
        partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
        try:
            with partial.open("w", encoding="utf-8", newline="\n") as file:
                write_extxyz(file, self.to_atoms())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
