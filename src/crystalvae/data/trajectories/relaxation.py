"""Relaxations that keep their frames: the way from a crystal to the nearest minimum of a potential."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from crystalvae.checks import check_count, check_number
from crystalvae.data.trajectories.dynamics import is_positive
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
    `rattle` (Å) displaces the atoms at random at first, since forces on the atoms of a symmetric crystal may be none.
    """

    optimizer: Literal["FIRE", "LBFGS", "BFGS"] = "FIRE"
    fmax: float = 0.01
    steps: int = 500
    interval: int = 1
    relax_cell: bool = True
    rattle: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"relaxation.optimizer={self.optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
        if not is_positive(self.fmax):
            raise ConfigError(f"relaxation.fmax={self.fmax!r}: expected a positive force in eV/Å")
        if not isinstance(self.relax_cell, bool):
            raise ConfigError(f"relaxation.relax_cell={self.relax_cell!r}: expected true or false")
        check_number("relaxation.rattle", self.rattle)
        check_count("relaxation.steps", self.steps)
        check_count("relaxation.interval", self.interval)


def run_relaxation(
    atoms: Atoms,
    *,
    descent: Descent,
    id: str,  # noqa: A002  the field's own name
    seed: int = 0,
    on_frame: Callable[[], object] | None = None,
) -> Trajectory:
    """Relax a crystal and return the frames on the way, without drift; the atoms given stay as they are.

    `seed` decides how atoms are displaced at first. The optimiser knows no time: a frame's `time` is the number of its
    step. `properties` are `max_force` (eV/Å), the largest on an atom.

    Raises `DataError` where energy or forces stop being finite.
    """
    from ase import optimize
    from ase.filters import FrechetCellFilter

    moving = atoms.copy()
    moving.calc = atoms.calc
    if descent.rattle:
        moving.rattle(descent.rattle, rng=np.random.default_rng(seed))
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
