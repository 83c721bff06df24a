"""Fingerprints of many crystals, scaled as published, and how near two sets of them come to each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import Float

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.evaluation.distributions.fingerprints import (
    COMPOSITION_LENGTH,
    ORBIT_SYMPREC,
    STRUCTURE_LENGTH,
    composition_fingerprint,
    structure_fingerprint,
)
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.parallel.time_limit import check_time_limit
from crystalvae.evaluation.validity.composition import reduced_compositions

TIMEOUT_S = 300.0
"""Seconds that one structure fingerprint may take."""
ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class Cutoffs:
    """Distances within which a crystal is covered: of structure and of scaled composition fingerprints."""

    structure: float
    composition: float

    def __post_init__(self) -> None:
        for name in ("structure", "composition"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"coverage cut-off {name}={getattr(self, name)}: expected a positive number")


CUTOFFS: Mapping[str, Cutoffs] = {
    "mp_20": Cutoffs(structure=0.4, composition=10.0),
    "carbon_24": Cutoffs(structure=0.2, composition=4.0),
    "perov_5": Cutoffs(structure=0.2, composition=4.0),
}
"""The published cut-offs, by data set (CDVAE's code)."""


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Structure and scaled composition fingerprints of B crystals; `failures` say why a row is NaN."""

    structure: Float[np.ndarray, "B 61"]
    composition: Float[np.ndarray, "B 132"]
    failures: Sequence[str]

    def kept(self) -> np.ndarray:
        """Return the numbers of the crystals that have both."""
        return np.flatnonzero(np.isfinite(self.structure).all(axis=1) & np.isfinite(self.composition).all(axis=1))


def fingerprints(
    crystals: CrystalBatch, runner: Runner, *, timeout_s: float | None = TIMEOUT_S, description: str = "fingerprints"
) -> Fingerprints:
    """Return the fingerprints of crystals; compositions are scaled as published, with NaN set to 0 after it."""
    check_time_limit("timeout_s", timeout_s)
    packages = ("matminer", "moyopy", "pymatgen-core")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    structures = runner.map(
        partial(structure_fingerprint, timeout_s=timeout_s),
        crystals.to_arrays(),
        description=description,
        namespace=f"CrystalNN ops fingerprint, an atom of each orbit at {ORBIT_SYMPREC:g} Å, {versions}",
        chunk=4,
    )
    compositions = runner.map(
        composition_fingerprint,
        reduced_compositions(crystals),
        description=f"{description}: compositions",
        namespace=f"Magpie fingerprint, {versions}",
        chunk=256,
    )
    means, deviations = published_scaling()
    scaled = (_rows(compositions, COMPOSITION_LENGTH) - means) / deviations
    known = np.array(["failure" not in result for result in compositions], dtype=bool)
    scaled[known] = np.nan_to_num(scaled[known], nan=0.0)
    failures = [
        str(first.get("failure") or second.get("failure") or "")
        for first, second in zip(structures, compositions, strict=True)
    ]
    return Fingerprints(structure=_rows(structures, STRUCTURE_LENGTH), composition=scaled, failures=failures)


@cache
def published_scaling() -> tuple[Float[np.ndarray, "132"], Float[np.ndarray, "132"]]:
    """Return mean and standard deviation of each Magpie feature, in matminer's order, that CDVAE's code scales by."""
    stored = json.loads(Path(__file__).with_name("magpie_scaling.json").read_text(encoding="utf-8"))
    return np.concatenate(list(stored["mean"].values())), np.concatenate(list(stored["std"].values()))


def _rows(results: Sequence[Mapping[str, object]], length: int) -> np.ndarray:
    empty = [np.nan] * length
    return np.array([result.get("fingerprint", empty) for result in results], dtype=float).reshape(-1, length)


def nearest_distances(
    first: Float[np.ndarray, "M F"], second: Float[np.ndarray, "N F"]
) -> tuple[Float[np.ndarray, "M"], Float[np.ndarray, "N"]]:
    """Return the smallest Euclidean distance from each row of one array to the other's; infinite to an empty array."""
    from scipy.spatial.distance import cdist

    forward, backward = np.full(len(first), np.inf), np.full(len(second), np.inf)
    if len(first) == 0 or len(second) == 0:
        return forward, backward
    for start in range(0, len(first), ROWS_AT_ONCE):
        distances = cdist(first[start : start + ROWS_AT_ONCE], second)
        forward[start : start + ROWS_AT_ONCE] = distances.min(axis=1)
        backward = np.minimum(backward, distances.min(axis=0))
    return forward, backward
