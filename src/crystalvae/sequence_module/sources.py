"""Where trajectories come from: files, the embedded example, or what an earlier step kept."""

from __future__ import annotations

from pathlib import Path

from crystalvae.data.trajectories import Trajectory, embedded_trajectories, read_trajectories
from crystalvae.data.trajectories.storage import load_trajectories
from crystalvae.errors import ConfigError


class TrajectoryFiles:
    """A file of frames, or a folder of such files, one trajectory each; options are those of `read_trajectories`."""

    def __init__(
        self,
        *,
        path: Path | str | None,
        name: str = "trajectories",
        stride: int = 1,
        timestep: float | None = None,
        without_drift: bool = True,
        elements: list[str] | None = None,
        strict: bool = False,
    ) -> None:
        if path is None:
            raise ConfigError("data.source.path: got null; expected a file of frames, or a folder of such files")
        self.name, self.path = name, path
        self.stride, self.timestep, self.without_drift = stride, timestep, without_drift
        self.elements, self.strict = elements, strict

    def load(self) -> list[Trajectory]:
        """Read them."""
        return read_trajectories(
            self.path,
            stride=self.stride,
            timestep=self.timestep,
            without_drift=self.without_drift,
            elements=self.elements,
            strict=self.strict,
        )


class EmbeddedTrajectories:
    """The embedded example: copper under EMT, by turns in three labelled regimes; see `embedded_trajectories`."""

    def __init__(
        self,
        *,
        name: str = "emt_demo",
        num_trajectories: int = 8,
        num_frames: int = 900,
        seed: int = 0,
        n_jobs: int = -1,
        cache_dir: str | None = None,
    ) -> None:
        self.name = name
        self.num_trajectories, self.num_frames, self.seed = num_trajectories, num_frames, seed
        self.n_jobs, self.cache_dir = n_jobs, cache_dir

    def load(self) -> list[Trajectory]:
        """Return them from the cache, or run them once."""
        return embedded_trajectories(
            num_trajectories=self.num_trajectories,
            num_frames=self.num_frames,
            seed=self.seed,
            n_jobs=self.n_jobs,
            cache_dir=self.cache_dir,
        )


class SavedTrajectories:
    """Trajectories that `save_trajectories` kept, in one file."""

    def __init__(self, *, path: Path | str, name: str) -> None:
        self.name, self.path = name, path

    def load(self) -> list[Trajectory]:
        """Read them."""
        return load_trajectories(Path(self.path))
