"""Molecular dynamics under any ASE calculator: at one set of conditions, or at several by turns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from crystalvae.checks import check_count
from crystalvae.data.trajectories.recorder import Recorder
from crystalvae.data.trajectories.trajectory import Trajectory
from crystalvae.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ase import Atoms
    from ase.md.md import MolecularDynamics

ENSEMBLES = ("langevin", "nve", "npt")
BULK_MODULUS = 100.0
"""GPa; with it the cell's mass is chosen, so that `barostat_time` is about the period in which the cell breathes."""
TOO_HOT = 20.0
"""A crystal this many times as hot as it should be has come apart: time steps too long, or a start too strained."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Conditions that a crystal is held at: temperature in K; pressure in GPa or a strain of the cell.

    `strain` is the linear strain of the first cell, one number for all directions or six (xx, yy, zz, yz, xz, xy; the
    latter three half of the engineering strain). Pressure is for `npt`, where the cell moves, strain for fixed cells.
    """

    temperature: float
    pressure: float = 0.0
    strain: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature={self.temperature}: expected K, at least 0")
        if not math.isfinite(self.pressure):
            raise ConfigError(f"pressure={self.pressure}: expected GPa")
        self.deformation()

    def deformation(self) -> np.ndarray:
        """Return the matrix F = 1 + ε (3, 3) by which the rows of the first cell are multiplied."""
        strain = [self.strain] * 3 + [0.0] * 3 if isinstance(self.strain, (int, float)) else list(self.strain)
        if len(strain) != 6 or not all(math.isfinite(value) and abs(value) < 0.5 for value in strain):
            raise ConfigError(f"strain={self.strain}: expected one number or six (xx, yy, zz, yz, xz, xy), below 0.5")
        xx, yy, zz, yz, xz, xy = strain
        return np.eye(3) + np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """How a crystal moves.

    `ensemble` is `langevin` (fixed cell, a thermostat), `npt` (the cell moves as well, under pressure) or `nve` (fixed
    cell and energy, after `equilibration` with the thermostat). `timestep` is in fs; a frame is kept every `interval`
    steps, the first after `equilibration` steps in the first regime. `thermostat_time` (fs) is the time constant of
    friction, `barostat_time` (fs) that of the cell, and about the period in which it breathes. `hydrostatic` lets the
    volume move alone, and keeps the cell's shape.

    Langevin dynamics and NPT: the BAOAB splitting, Leimkuhler and Matthews, doi:10.1063/1.4802990, with the cell of
    Quigley and Probert, doi:10.1063/1.1755657, as ASE has them (`LangevinBAOAB`).
    """

    ensemble: Literal["langevin", "nve", "npt"] = "langevin"
    timestep: float = 2.0
    interval: int = 10
    equilibration: int = 0
    thermostat_time: float = 100.0
    barostat_time: float = 300.0
    hydrostatic: bool = True

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise ConfigError(f"dynamics.ensemble={self.ensemble!r}: expected one of {', '.join(ENSEMBLES)}")
        for name in ("timestep", "thermostat_time", "barostat_time"):
            value = getattr(self, name)
            if not is_positive(value):
                raise ConfigError(f"dynamics.{name}={value!r}: expected a positive number of fs")
        if not isinstance(self.hydrostatic, bool):
            raise ConfigError(f"dynamics.hydrostatic={self.hydrostatic!r}: expected true or false")
        check_count("dynamics.interval", self.interval)
        check_count("dynamics.equilibration", self.equilibration, at_least=0)

    def check(self, regimes: Sequence[Regime]) -> None:
        """Raise `ConfigError` where the ensemble cannot hold these conditions."""
        if not regimes:
            raise ConfigError("regimes: expected at least one set of conditions, got none")
        if self.ensemble == "nve" and len(regimes) > 1:
            raise ConfigError("dynamics.ensemble=nve keeps its energy; conditions change by turns in langevin and npt")
        if self.ensemble != "npt" and any(regime.pressure for regime in regimes):
            raise ConfigError(f"dynamics.ensemble={self.ensemble} has a fixed cell; pressure needs npt")
        if self.ensemble == "npt" and any((regime.deformation() != np.eye(3)).any() for regime in regimes):
            raise ConfigError("dynamics.ensemble=npt finds its cell itself; strain needs langevin or nve")


def is_positive(value: object) -> bool:
    """Say whether a value from a config is a finite number above 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


@dataclass(frozen=True)
class Visit:
    """So many frames in one regime, by its number."""

    regime: int
    frames: int


def take_turns(
    num_regimes: int, num_frames: int, *, dwell: tuple[int, int] | None, generator: np.random.Generator
) -> list[Visit]:
    """Return an order of regimes that fills `num_frames` frames.

    Without `dwell` each is visited once, in order, for the same time. With it each visit lasts a random number of
    frames between its two bounds (the last one as long as is left), every regime comes once before any comes again, in
    random order, and none follows itself.

    Raises `ConfigError` for fewer frames than regimes, or bounds that are none.
    """
    check_count("num_frames", num_frames, at_least=num_regimes)
    if dwell is None:
        ends = [round(num_frames * (i + 1) / num_regimes) for i in range(num_regimes)]
        return [Visit(i, end - start) for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True))]
    shortest, longest = dwell
    if not 1 <= shortest <= longest:
        raise ConfigError(f"dwell={list(dwell)}: expected two numbers of frames, the shorter first")
    visits: list[Visit] = []
    left = num_frames
    while left > 0:
        order = [int(i) for i in generator.permutation(num_regimes)]
        if visits and num_regimes > 1 and order[0] == visits[-1].regime:
            order.append(order.pop(0))
        for regime in order:
            frames = min(left, int(generator.integers(shortest, longest, endpoint=True)))
            if frames:
                visits.append(Visit(regime, frames))
            left -= frames
    return visits


def run_dynamics(
    atoms: Atoms,
    *,
    dynamics: Dynamics,
    regimes: Sequence[Regime],
    visits: Sequence[Visit],
    seed: int,
    id: str,  # noqa: A002  the field's own name
    on_frame: Callable[[], object] | None = None,
) -> Trajectory:
    """Run a crystal through regimes, one visit after the other, and return the frames, without drift.

    Args:
        atoms: The crystal, with its calculator; neither is changed.
        dynamics: How it moves.
        regimes: The conditions that there are; `properties["regime"]` of a frame is their number.
        visits: Which regime, and for how many frames. Conditions change at once at the beginning of a visit; the frames
            in which the crystal follows them, of the order of `thermostat_time`, bear the new regime's number already.
        seed: Decides the start and the thermostat.
        id: The trajectory's name.
        on_frame: Called after every frame, for progress.

    Energies are potential ones; `properties` are `temperature` (K, of the kinetic energy), `regime`, and for `npt`
    the pressure that is applied, `pressure` (GPa).

    Raises `ConfigError` for conditions that the ensemble cannot hold, `DataError` where the crystal comes apart.
    """
    from ase.md.velocitydistribution import Stationary, thermalize_momenta

    dynamics.check(regimes)
    moving = atoms.copy()
    moving.calc = atoms.calc
    first_cell, rng = np.array(atoms.cell), np.random.default_rng(seed)
    thermalize_momenta(moving, temperature_K=regimes[visits[0].regime].temperature, rng=rng)
    recorder = Recorder(id, moving)
    steps_due = dynamics.equilibration
    for visit in visits:
        regime = regimes[visit.regime]
        if dynamics.ensemble != "npt":
            moving.set_cell(first_cell @ regime.deformation(), scale_atoms=True)
        integrator = _integrator(moving, dynamics, regime, rng)
        if dynamics.ensemble == "nve":
            _integrator(moving, dynamics, regime, rng, thermostat=True).run(steps_due)
            Stationary(moving)
            steps_due = 0
        for _ in range(visit.frames):
            integrator.run(steps_due)
            values = {"temperature": moving.get_temperature(), "regime": visit.regime}
            if dynamics.ensemble == "npt":
                values["pressure"] = regime.pressure
            _check(moving, regime, id, recorder.frames * dynamics.interval * dynamics.timestep)
            recorder.add(recorder.frames * dynamics.interval * dynamics.timestep, values)
            steps_due = dynamics.interval
            if on_frame is not None:
                on_frame()
    return recorder.trajectory()


def _integrator(
    atoms: Atoms, dynamics: Dynamics, regime: Regime, rng: np.random.Generator, *, thermostat: bool = False
) -> MolecularDynamics:
    from ase import units
    from ase.md.langevinbaoab import LangevinBAOAB
    from ase.md.verlet import VelocityVerlet

    timestep = dynamics.timestep * units.fs
    if dynamics.ensemble == "nve" and not thermostat:
        return VelocityVerlet(atoms, timestep)
    options: dict[str, Any] = {}
    if dynamics.ensemble == "npt":
        # For small changes the volume swings at ω² = 9 B V / W, a strain of one direction at a third of that.
        frequency = 2 * math.pi / (dynamics.barostat_time * units.fs)
        factor = 9.0 if dynamics.hydrostatic else 3.0
        options = {
            "externalstress": -regime.pressure * units.GPa,
            "hydrostatic": dynamics.hydrostatic,
            "P_tau": dynamics.barostat_time * units.fs,
            "P_mass": factor * BULK_MODULUS * units.GPa * atoms.get_volume() / frequency**2,
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LangevinBAOAB(
            atoms,
            timestep,
            temperature_K=regime.temperature,
            T_tau=dynamics.thermostat_time * units.fs,
            rng=rng,
            **options,
        )


def _check(atoms: Atoms, regime: Regime, name: str, time: float) -> None:
    temperature = atoms.get_temperature()
    whole = np.isfinite(atoms.positions).all() and np.isfinite(np.asarray(atoms.cell)).all()
    if not (whole and temperature < TOO_HOT * max(regime.temperature, 300.0)):
        raise DataError(
            f"trajectory {name}: the crystal comes apart after {time:g} fs (its atoms move as at {temperature:.3g} K). "
            "Use a shorter dynamics.timestep, relax it first, or look whether the potential knows its elements"
        )
