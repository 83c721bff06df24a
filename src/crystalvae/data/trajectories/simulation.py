"""Several runs of one crystal, which differ in their seeds, on the cores of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalvae.checks import check_count
from crystalvae.data.trajectories.dynamics import Dynamics, Regime, run_dynamics, take_turns
from crystalvae.data.trajectories.relaxation import Descent, run_relaxation
from crystalvae.data.trajectories.trajectory import Trajectory
from crystalvae.errors import ConfigError, CrystalVAEError

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from rich.progress import Progress

    MakeCalculator = Callable[[], Calculator]
    OnFrame = Callable[[], object] | None


class Runs:
    """Several runs of one crystal, `one` after the other or on several processes."""

    num_trajectories: int

    @property
    def frames(self) -> int | None:
        """How many frames all trajectories have together, where that is known beforehand."""
        return None

    def one(self, number: int, on_frame: OnFrame, *, atoms: Atoms, calculator: MakeCalculator) -> Trajectory:
        """Do the run with this number, from 0, and call `on_frame` after each frame."""
        raise NotImplementedError

    def run(
        self,
        atoms: Atoms,
        calculator: MakeCalculator,
        *,
        n_jobs: int = 1,
        description: str = "trajectories",
        progress: bool = True,
    ) -> list[Trajectory]:
        """Do all runs and return their trajectories in order.

        `calculator` builds the potential; it is called once for each trajectory, in the process that runs it, and must
        be picklable for more than one process. `n_jobs` is joblib's: -1 for one process per core.
        """
        one = partial(self.one, atoms=atoms, calculator=calculator)
        return run_all(
            one, self.num_trajectories, frames=self.frames, n_jobs=n_jobs, description=description, progress=progress
        )


@dataclass(frozen=True, kw_only=True)
class Simulation(Runs):
    """Runs of one crystal through the same regimes, each in its own order and from its own start.

    `num_frames` frames each; `dwell` bounds the frames of a visit as `take_turns` has it. The same `seed` gives the
    same trajectories, on any number of processes; a run more leaves those before it as they are.
    """

    dynamics: Dynamics
    regimes: Sequence[Regime]
    num_trajectories: int
    num_frames: int
    dwell: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("num_trajectories", self.num_trajectories)
        check_count("num_frames", self.num_frames)
        check_count("seed", self.seed, at_least=0)
        self.dynamics.check(self.regimes)
        take_turns(len(self.regimes), self.num_frames, dwell=self.dwell, generator=np.random.default_rng(0))

    @property
    def frames(self) -> int:
        """How many frames all trajectories have together."""
        return self.num_trajectories * self.num_frames

    def one(self, number: int, on_frame: OnFrame, *, atoms: Atoms, calculator: MakeCalculator) -> Trajectory:
        """Run the trajectory with this number, from 0; its id is the number in four digits or more."""
        order, thermostat = np.random.SeedSequence([self.seed, number]).spawn(2)
        crystal = atoms.copy()
        crystal.calc = calculator()
        return run_dynamics(
            crystal,
            dynamics=self.dynamics,
            regimes=self.regimes,
            visits=take_turns(
                len(self.regimes), self.num_frames, dwell=self.dwell, generator=np.random.default_rng(order)
            ),
            seed=int(thermostat.generate_state(1)[0]),
            id=f"{number:04d}",
            on_frame=on_frame,
        )


@dataclass(frozen=True, kw_only=True)
class Descents(Runs):
    """Relaxations of one crystal, each from its own random displacements."""

    descent: Descent
    num_trajectories: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("num_trajectories", self.num_trajectories)
        check_count("seed", self.seed, at_least=0)
        if self.num_trajectories > 1 and not self.descent.rattle:
            raise ConfigError(
                f"num_trajectories={self.num_trajectories}: without rattle all would be the same; ask for one"
            )

    def one(self, number: int, on_frame: OnFrame, *, atoms: Atoms, calculator: MakeCalculator) -> Trajectory:
        """Run the relaxation with this number, from 0; its id is the number in four digits or more."""
        crystal = atoms.copy()
        crystal.calc = calculator()
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        return run_relaxation(crystal, descent=self.descent, id=f"{number:04d}", seed=seed, on_frame=on_frame)


def run_all(
    one: Callable[[int, Callable[[], object] | None], Trajectory],
    count: int,
    *,
    frames: int | None,
    n_jobs: int,
    description: str,
    progress: bool,
) -> list[Trajectory]:
    """Return `one(number, on_frame)` for each number below `count`, in order, on several processes where there are.

    The progress bar counts frames, `frames` altogether (None where that is not known), with one process, else
    trajectories.
    """
    from joblib import Parallel, delayed, effective_n_jobs, parallel_config

    workers = min(effective_n_jobs(n_jobs), count)
    with progress_bar(progress) as bar:
        if workers == 1:
            task = bar.add_task(description, total=frames)
            return [one(number, lambda: bar.advance(task)) for number in range(count)]
        task = bar.add_task(description, total=count)
        found = []
        with parallel_config(backend="loky", inner_max_num_threads=1):
            parallel: Any = Parallel(n_jobs=workers, return_as="generator")
            try:
                for entry in parallel(delayed(one)(number, None) for number in range(count)):
                    found.append(entry)
                    bar.advance(task)
            except BrokenProcessPool as error:
                raise CrystalVAEError(
                    "a worker process ended before its trajectory was done. Usually memory ran out: run again with "
                    "fewer processes (n_jobs)"
                ) from error
        return found


@contextmanager
def progress_bar(shown: bool) -> Iterator[Progress]:
    """Give a progress bar on standard error, with the time that is left."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
        yield bar
