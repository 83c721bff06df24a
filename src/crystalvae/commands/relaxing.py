"""Relaxation of what was sampled, before it is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig, OmegaConf

from crystalvae import checks
from crystalvae.build import to_plain
from crystalvae.commands.config_files import config_dir
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.sources import cache_root
from crystalvae.errors import ConfigError
from crystalvae.evaluation.parallel.cache import ResultCache
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.stability.potentials import Potential
from crystalvae.evaluation.stability.relax_crystals import after_relaxation, relax_crystals
from crystalvae.evaluation.stability.relaxation import Arrays, Relaxation, displacement

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Relaxer:
    """Relaxes crystals under a potential; results are kept by content, so that a stopped run resumes."""

    potential: Potential
    relaxation: Relaxation
    runner: Runner

    @classmethod
    def from_config(cls, config: DictConfig) -> Relaxer | None:
        """Take `relax`, `potential`, `relaxation` and `n_jobs`; None where nothing is to be relaxed.

        Raises `ConfigError` for a potential that is not installed or cannot be built.
        """
        if not checks.check_switch("relax", config.relax):
            return None
        potential = Potential.from_config(to_plain(config.potential))
        if missing := potential.missing():
            raise ConfigError(f"relax=true: {missing}")
        potential.calculator()  # what is wrong with it is said now, and not by a worker
        return cls(
            potential=potential,
            relaxation=Relaxation(**to_plain(config.relaxation)),
            runner=Runner(
                n_jobs=checks.check_n_jobs(config.n_jobs),
                cache=ResultCache(cache_root(None) / "evaluation"),
            ),
        )

    def settings(self) -> dict[str, object]:
        """Return what decides about the relaxed structures, as plain data."""
        return {
            "potential": self.potential.name,
            "calculator": self.potential.config,
            "versions": self.potential.versions(),
            **asdict(self.relaxation),
        }

    def __call__(self, crystals: CrystalBatch) -> tuple[CrystalBatch, pd.DataFrame]:
        """Return the crystals relaxed, in their order, and one row for each of what became of it.

        The columns: `relaxed` and `converged`; `energy` after relaxation and `energy_change`, both in eV/atom;
        `displacement`, the root mean square one of the atoms in Å; `relax_failure`. A crystal that cannot be relaxed
        (structurally invalid, out of time, an element that the potential does not know) stays as it is, and says why.
        """
        import pandas as pd

        found = relax_crystals(crystals, potential=self.potential, relaxation=self.relaxation, runner=self.runner)
        before = crystals.to_arrays()
        after: list[Arrays] = []
        rows: list[dict[str, object]] = []
        for old, result in zip(before, found, strict=True):
            failed = bool(result["failure"])
            new = old if failed else after_relaxation(old, result)
            after.append(new)
            rows.append(
                {
                    "relaxed": not failed,
                    "converged": result["converged"],
                    "energy": result["energy"] / len(old[0]),  # NaN where it failed
                    "energy_change": (result["energy"] - result["initial_energy"]) / len(old[0]),
                    "displacement": np.nan if failed else displacement(old, new),
                    "relax_failure": result["failure"],
                }
            )
        return CrystalBatch.from_arrays(after), pd.DataFrame(rows)


def potential_named(name: str, *, key: str = "potential") -> Potential:
    """Return a potential of `configs/potential`; `ConfigError` listing those there are for another name."""
    path = config_dir() / "potential" / f"{name}.yaml"
    known = sorted(entry.stem for entry in path.parent.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"{key}: got {name!r}; expected one of {', '.join(known)}")
    return Potential.from_config(to_plain(OmegaConf.load(path)))
