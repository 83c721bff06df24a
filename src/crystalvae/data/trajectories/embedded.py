"""The embedded example: copper under EMT by turns at three conditions, which the frames are labelled with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path

from crystalvae.data.sources import cache_root
from crystalvae.data.trajectories.dynamics import Dynamics, Regime
from crystalvae.data.trajectories.simulation import Simulation
from crystalvae.data.trajectories.storage import load_trajectories, save_trajectories
from crystalvae.data.trajectories.trajectory import Trajectory
from crystalvae.errors import DataError

log = logging.getLogger(__name__)

EMBEDDED_VERSION = 2
"""Part of every cache key: raise it whenever the same options would give other trajectories."""
REGIMES = {
    "cold": Regime(temperature=300.0),
    "hot": Regime(temperature=900.0),
    "hot and pressed": Regime(temperature=900.0, pressure=4.0),
}
"""The conditions by name, in the order of their labels 0, 1, 2; 4 GPa press the hot crystal to the cold one's size."""
DYNAMICS = Dynamics(
    ensemble="npt", timestep=10.0, interval=2, equilibration=50, thermostat_time=60.0, barostat_time=200.0
)
DWELL = (240, 360)
"""Frames that a visit to a regime lasts, at least and at most."""
LATTICE_CONSTANT = 3.6
"""Å of the copper that dynamics starts from."""


def embedded_trajectories(
    *,
    num_trajectories: int = 8,
    num_frames: int = 900,
    seed: int = 0,
    n_jobs: int = -1,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[Trajectory]:
    """Return `emt_demo`: eight copper atoms under EMT in a cell that breathes, by turns in three labelled regimes.

    `properties["regime"]` is 0 for 300 K, 1 for 900 K, 2 for 900 K under 4 GPa (`REGIMES`); a frame every 20 fs. Heat
    widens the cell and the motion of atoms; 4 GPa take the widening back and leave the motion. So the cold crystal and
    the hot and pressed one have the same mean cell (94.1 Å^3) and the same mean positions: they differ only in how
    much they fluctuate about them, which no frame shows and no mean over frames either.
    Labels hold by construction; for about 200 fs (10 frames) after a change the crystal is on its way.

    Runs once, in about a minute on two cores, and comes from the cache (`cache_dir`, else `CRYSTALVAE_CACHE_DIR`, else
    the user's) afterwards. `seed` decides order, start and thermostat.
    """
    simulation = Simulation(
        dynamics=DYNAMICS,
        regimes=list(REGIMES.values()),
        num_trajectories=num_trajectories,
        num_frames=num_frames,
        dwell=DWELL,
        seed=seed,
    )
    settings = json.dumps([EMBEDDED_VERSION, LATTICE_CONSTANT, dataclasses.asdict(simulation)], sort_keys=True)
    key = hashlib.sha256(settings.encode()).hexdigest()[:16]
    path = cache_root(cache_dir) / "trajectories" / f"emt_demo-{key}.safetensors"
    if path.is_file():
        try:
            return load_trajectories(path)
        except DataError as error:
            log.warning("%s; building it again", error)
    log.info("running %d trajectories of copper under EMT, once", num_trajectories)
    trajectories = _run(simulation, n_jobs=n_jobs, progress=progress)
    _keep(trajectories, path)
    return trajectories


def _run(simulation: Simulation, *, n_jobs: int, progress: bool) -> list[Trajectory]:
    from ase.build import bulk
    from ase.calculators.emt import EMT

    copper = bulk("Cu", "fcc", a=LATTICE_CONSTANT) * (2, 2, 2)
    return simulation.run(copper, EMT, n_jobs=n_jobs, description="copper under EMT", progress=progress)


def _keep(trajectories: list[Trajectory], path: Path) -> None:
    try:
        save_trajectories(trajectories, path)
    except OSError as error:
        log.warning("could not keep the trajectories at %s (%s); they will run again next time", path, error)
