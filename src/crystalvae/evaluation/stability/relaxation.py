"""Single crystals under a potential: energies, relaxation, how far atoms moved. Workers import this: no torch here."""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np

from crystalvae.errors import ConfigError
from crystalvae.evaluation.crystal_arrays import Arrays, structure
from crystalvae.evaluation.matching.structure_matcher import forget_reduced_cells
from crystalvae.evaluation.parallel.attempt import Failure, attempt
from crystalvae.evaluation.parallel.time_limit import check_time_limit
from crystalvae.evaluation.stability.potentials import Potential

if TYPE_CHECKING:
    from ase import Atoms

OPTIMIZERS = ("FIRE", "LBFGS", "BFGS")
RMSD_TOLERANCES = {"ltol": 0.5, "stol": 0.5, "angle_tol": 10}
"""Tolerances of the matcher for the RMSD of relaxation in MatterGen's code; unmatched crystals get `stol` itself."""


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """How crystals are relaxed: atoms and cell together (ASE's `FrechetCellFilter`), to forces below `fmax` in eV/Å.

    One that has not arrived after `max_steps` keeps its last energy and counts as not converged; one that takes longer
    than `time_limit_s` counts as failed. `max_steps=0` gives energies only.
    """

    optimizer: Literal["FIRE", "LBFGS", "BFGS"] = "FIRE"
    fmax: float = 0.05
    max_steps: int = 500
    time_limit_s: float | None = 300.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"relaxation.optimizer={self.optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
        if not (math.isfinite(self.fmax) and self.fmax > 0):
            raise ConfigError(f"relaxation.fmax={self.fmax}: expected a positive force in eV/Å")
        if self.max_steps < 0:
            raise ConfigError(f"relaxation.max_steps={self.max_steps}: expected 0 or more")
        check_time_limit("relaxation.time_limit_s", self.time_limit_s)

    def identity(self) -> str:
        """Return the settings that decide about the numbers; the time limit is not one of them."""
        return f"{self.optimizer}/{self.fmax}/{self.max_steps}"


class Relaxed(TypedDict):
    """What became of one crystal: total energies in eV before and after, and where atoms and cell ended.

    `failure` says why there is nothing, and is empty otherwise; `passing` is true where that depends on the machine.
    """

    initial_energy: float
    energy: float
    steps: int
    converged: bool
    frac_coords: list[list[float]]
    lattice: list[list[float]]
    failure: str
    passing: bool


def relax(crystal: Arrays, *, potential: Potential, relaxation: Relaxation) -> Relaxed:
    """Relax a crystal, or with `max_steps=0` only find its energy; what goes wrong with it is reported as `failure`.

    Coordinates are not wrapped, so that how far each atom moved can be read off. Raises `ConfigError` where the
    potential itself cannot be built.
    """
    from ase import Atoms

    numbers, frac_coords, lattice = crystal
    atoms = Atoms(numbers=numbers, scaled_positions=frac_coords, cell=lattice, pbc=True)
    atoms.calc = potential.calculator()

    def quietly() -> Relaxed:
        with contextlib.redirect_stdout(io.StringIO()):  # potentials print what they think of single crystals
            return _relax(atoms, relaxation)

    found = attempt(quietly, timeout_s=relaxation.time_limit_s)
    return failed(found.reason, passing=found.passing) if isinstance(found, Failure) else found


def failed(reason: str, *, passing: bool = False) -> Relaxed:
    """Return the outcome of a crystal that has no energy, and why."""
    return Relaxed(
        initial_energy=math.nan,
        energy=math.nan,
        steps=0,
        converged=False,
        frac_coords=[],
        lattice=[],
        failure=reason,
        passing=passing,
    )


def _relax(atoms: Atoms, relaxation: Relaxation) -> Relaxed:
    initial_energy = float(atoms.get_potential_energy())
    if not math.isfinite(initial_energy):
        return failed("the energy is not finite")
    steps, converged = 0, False
    if relaxation.max_steps > 0:
        from ase import optimize
        from ase.filters import FrechetCellFilter

        optimizer = getattr(optimize, relaxation.optimizer)(FrechetCellFilter(atoms), logfile=None)
        converged = bool(optimizer.run(fmax=relaxation.fmax, steps=relaxation.max_steps))
        steps = int(optimizer.nsteps)
    energy, cell = float(atoms.get_potential_energy()), np.asarray(atoms.cell)
    frac_coords = atoms.get_scaled_positions(wrap=False)
    if not (math.isfinite(energy) and np.isfinite(cell).all() and np.isfinite(frac_coords).all()):
        return failed("relaxation ended at numbers that are not finite")
    return Relaxed(
        initial_energy=initial_energy,
        energy=energy,
        steps=steps,
        converged=converged,
        frac_coords=frac_coords.tolist(),
        lattice=cell.tolist(),
        failure="",
        passing=False,
    )


def displacement(before: Arrays, after: Arrays) -> float:
    """Return the root mean square displacement of atoms in Å, in the mean of both cells, less the common shift.

    Atoms are compared in the order given, and coordinates are taken as they are, not to the nearest image.
    """
    moved = after[1] - before[1]
    cart = (moved - moved.mean(axis=0)) @ ((before[2] + after[2]) / 2)
    return float(np.sqrt((cart**2).sum(axis=1).mean()))


def matched_rmsd(pair: tuple[Arrays, Arrays], *, time_limit_s: float | None) -> dict[str, object]:
    """Return the RMSD of relaxation in Å as MatterGen's code has it: `rmsd`, `matched`, and `passing`.

    pymatgen's matcher at `RMSD_TOLERANCES`, unscaled, with supercells; its normalised result times (V/n)^(1/3) of the
    mean lattice. Where there is no match the normalised result is taken to be `stol`.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Lattice

    first, second = map(structure, pair)
    parameters = (np.array(first.lattice.parameters) + np.array(second.lattice.parameters)) / 2
    length = (Lattice.from_parameters(*parameters).volume / len(first)) ** (1 / 3)
    matcher = StructureMatcher(**RMSD_TOLERANCES, primitive_cell=True, scale=False, attempt_supercell=True)
    forget_reduced_cells()
    found = attempt(lambda: matcher.get_rms_dist(first, second), timeout_s=time_limit_s)
    if found is None or isinstance(found, Failure):  # what cannot be compared is not matched
        passing = found is not None and found.passing
        return {"rmsd": RMSD_TOLERANCES["stol"] * length, "matched": False, "passing": passing}
    return {"rmsd": float(found[0]) * length, "matched": True, "passing": False}
