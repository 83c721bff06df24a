"""A stricter, physical test of structures: no atoms inside each other, and a volume and density that occur."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.contacts import MIN_CONTACT, contacts
from crystalvae.errors import ConfigError
from crystalvae.evaluation.validity.structure import MIN_DISTANCE, MIN_VOLUME, describe

VALID_TEST = f"distances >= {MIN_DISTANCE} Å and volume >= {MIN_VOLUME} Å^3 (CDVAE)"
"""What `valid` means in `samples.csv`."""


@dataclass(frozen=True)
class Ranges:
    """The range of volume per atom (Å^3) and density (g/cm^3) that counts as physical."""

    volume_per_atom: tuple[float, float]
    density: tuple[float, float]


def reference_ranges(facts: pd.DataFrame, *, tails: float = 0.0) -> Ranges:
    """Return the ranges of a reference set, given what `describe` says about it; only its valid crystals count.

    `tails` is the share of crystals cut off at either end: 0 gives the smallest and the largest value.

    Raises `ConfigError` for `tails` outside [0, 0.5) or a reference without valid crystals.
    """
    if not 0 <= tails < 0.5:
        raise ConfigError(f"tails={tails}: expected a share of at least 0 and less than 0.5")
    valid = facts[facts.valid & (facts.atoms > 0)]
    if valid.empty:
        raise ConfigError("the reference has no valid crystals: volumes and densities have no range")

    def span(values: pd.Series) -> tuple[float, float]:
        low, high = np.quantile(values.to_numpy(dtype=float), [tails, 1 - tails])
        return float(low), float(high)

    return Ranges(volume_per_atom=span(valid.volume / valid.atoms), density=span(valid.density))


def sample_facts(crystals: CrystalBatch) -> pd.DataFrame:
    """Return `describe`, with `shortest_contact` as `contacts` beside the distance, and by which test `valid` is."""
    facts = describe(crystals)
    columns = {name: facts[name] for name in facts}
    named: dict[str, object] = {}
    for name, values in columns.items():
        named[name] = values
        if name == "shortest_distance":
            named["shortest_contact"] = contacts(crystals)
        if name == "valid":
            named["valid_test"] = VALID_TEST
    return pd.DataFrame(named)


def physical_reasons(
    facts: pd.DataFrame, contact: Float[np.ndarray, "B"], ranges: Ranges | None, *, min_contact: float = MIN_CONTACT
) -> list[str]:
    """Return why each crystal is not physically valid, empty where it is; without `ranges` only contacts decide."""
    rows = zip(facts.itertuples(), contact.tolist(), strict=True)
    return [_reason(row, value, ranges, min_contact) for row, value in rows]


def within(values: Float[np.ndarray, "B"], limits: tuple[float, float]) -> Bool[np.ndarray, "B"]:
    """Return which values lie in a closed range, up to rounding; NaN does not."""
    low, high = limits
    return np.asarray((values >= low * (1 - 1e-6)) & (values <= high * (1 + 1e-6)), dtype=bool)


def physical_settings(ranges: Ranges | None, *, min_contact: float = MIN_CONTACT) -> dict[str, object]:
    """Return what decides about physical validity, for the output."""
    result: dict[str, object] = {
        "min_contact": min_contact,
        "covalent_radii": f"Cordero et al. 2008, as in ASE {version('ase')}",
    }
    if ranges is not None:
        result |= {
            "volume_per_atom_range": list(ranges.volume_per_atom),
            "density_range": list(ranges.density),
        }
    return result


def _reason(row: object, contact: float, ranges: Ranges | None, min_contact: float) -> str:
    reason = str(getattr(row, "reason", ""))
    if reason:
        return reason
    if np.isnan(contact):
        return "an element without a covalent radius"
    if contact < min_contact:
        return f"two atoms at {contact:.2f} of the sum of their covalent radii, below {min_contact:g}"
    if ranges is None:
        return ""
    sizes: Sequence[tuple[str, float, tuple[float, float], str]] = (
        ("volume per atom", getattr(row, "volume", 0.0) / getattr(row, "atoms", 1), ranges.volume_per_atom, "Å^3"),
        ("density", getattr(row, "density", 0.0), ranges.density, "g/cm^3"),
    )
    for name, value, (low, high), unit in sizes:
        if not within(np.array([value]), (low, high))[0]:
            return f"{name} of {value:.4g} {unit} outside the reference's {low:.4g} to {high:.4g}"
    return ""
