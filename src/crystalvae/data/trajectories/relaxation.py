"""Relaxations that keep their frames: the way from a crystal to the nearest minimum of a potential."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from crystalvae.checks import check_count
from crystalvae.data.trajectories.recorder import Recorder
from crystalvae.data.trajectories.trajectory import Trajectory
from crystalvae.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ase import Atoms

OPTIMIZERS = ("FIRE", "LBFGS", "BFGS")


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How a crystal is relaxed: to forces below `fmax` (eV/Å), in at most `steps` steps, with its cell or without.

    A frame is kept at the start, every `interval` steps and at the end. The cell moves by ASE's `FrechetCellFilter`.
    """

    optimizer: Literal["FIRE", "LBFGS", "BFGS"] = "FIRE"
    fmax: float = 0.01
    steps: int = 500
    interval: int = 1
    relax_cell: bool = True

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"descent.optimizer={self.optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
        if not (math.isfinite(self.fmax) and self.fmax > 0):
            raise ConfigError(f"descent.fmax={self.fmax}: expected a positive force in eV/Å")
        check_count("descent.steps", self.steps)
        check_count("descent.interval", self.interval)


def run_relaxation(
    atoms: Atoms,
    *,
    descent: Descent,
    id: str,  # noqa: A002  the field's own name
    on_frame: Callable[[], object] | None = None,
) -> Trajectory:
    """Relax a crystal and return the frames on the way, without drift; the atoms given stay as they are.

    The optimiser knows no time: a frame's `time` is the number of its step. `properties` are `max_force` (eV/Å), the
    largest on an atom. Raises `DataError` where energy or forces stop being finite.
    """
    from ase import optimize
    from ase.filters import FrechetCellFilter

    moving = atoms.copy()
    moving.calc = atoms.calc
    recorder = Recorder(id, moving)
    optimizer = getattr(optimize, descent.optimizer)(
        FrechetCellFilter(moving) if descent.relax_cell else moving, logfile=None
    )

    def keep() -> None:
        forces = moving.get_forces()
        if not (np.isfinite(forces).all() and math.isfinite(moving.get_potential_energy())):
            raise DataError(f"trajectory {id}: energy or forces are not finite at step {optimizer.nsteps}")
        recorder.add(float(optimizer.nsteps), {"max_force": float(np.linalg.norm(forces, axis=1).max())})
        if on_frame is not None:
            on_frame()

    for converged in optimizer.irun(fmax=descent.fmax, steps=descent.steps):
        last = converged or optimizer.nsteps == descent.steps
        if last or optimizer.nsteps % descent.interval == 0:
            keep()
    return recorder.trajectory()
