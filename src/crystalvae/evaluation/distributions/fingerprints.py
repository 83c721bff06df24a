"""Fingerprints of crystals: CrystalNN order parameters of their sites, and Magpie statistics of their elements.

Worker processes import this module, so it stays clear of torch: they start in a second and stay small.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from crystalvae.data.symmetry import moyo_dataset
from crystalvae.evaluation.matching.structure_matcher import Arrays, problem, structure
from crystalvae.evaluation.parallel.time_limit import TimedOutError, time_limit

if TYPE_CHECKING:
    from matminer.featurizers.composition.composite import ElementProperty
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

STRUCTURE_LENGTH, COMPOSITION_LENGTH = 61, 132
MIN_VOLUME_PER_ATOM = 0.03
"""Denser cells (Å^3 an atom) have no structure fingerprint: 50,000 atoms and more lie within CrystalNN's 7 Å."""
ORBIT_SYMPREC = 1e-3
"""Å; closer than any distance CrystalNN can tell apart."""
INSTALL = 'needs matminer: pip install "crystalvae[evaluation]"'


def matminer_installed() -> bool:
    """Say whether matminer, which makes the fingerprints, is there."""
    return find_spec("matminer") is not None


def structure_fingerprint(crystal: Arrays, *, timeout_s: float | None = None) -> dict[str, object]:
    """Return the mean over sites of matminer's `CrystalNNFingerprint`, preset ops, as 61 numbers in `fingerprint`.

    Atoms that a symmetry of the crystal maps onto each other have the same surroundings, so one of each orbit is looked
    at and counts as often as its orbit has atoms. Without a fingerprint the result has only `failure`, which says why.
    """
    reason = problem(crystal)
    if not reason:
        volume = abs(float(np.linalg.det(crystal[2]))) / len(crystal[0])
        reason = f"volume of {volume:.3g} Å^3 an atom" if volume < MIN_VOLUME_PER_ATOM else ""
    if reason:
        return {"failure": reason}
    try:
        with warnings.catch_warnings(), time_limit(timeout_s):
            warnings.simplefilter("ignore")
            whole = structure(crystal)
            representatives, multiplicities = np.unique(equivalent_atoms(crystal), return_counts=True)
            sites = [_site_featurizer().featurize(whole, int(index)) for index in representatives]
            mean = np.average(np.array(sites, dtype=float), axis=0, weights=multiplicities)
            return {"fingerprint": mean.tolist()}
    except TimedOutError:
        return {"failure": f"no fingerprint within {timeout_s:g} s"}
    except Exception as error:  # noqa: BLE001 - any error for one crystal must not take down the others
        return {"failure": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def equivalent_atoms(crystal: Arrays) -> np.ndarray:
    """Return for each of n atoms the first atom of its orbit under the space group found at `ORBIT_SYMPREC`."""
    numbers, frac_coords, lattice = crystal
    try:
        return np.array(moyo_dataset(numbers, frac_coords, lattice, ORBIT_SYMPREC).orbits)
    except Exception:  # noqa: BLE001 - moyo knows no symmetry of some strange cells: then every atom stands for itself
        return np.arange(len(numbers))


def composition_fingerprint(composition: tuple[tuple[int, int], ...]) -> dict[str, object]:
    """Return matminer's `ElementProperty`, preset magpie, of atomic numbers and counts, as 132 numbers.

    Properties that Magpie does not know are NaN, as when the metric was published, not imputed.
    """
    from pymatgen.core import Composition, Element

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            elements = Composition({Element.from_Z(number): count for number, count in composition})
            return {"fingerprint": [float(value) for value in _composition_featurizer().featurize(elements)]}
    except Exception as error:  # noqa: BLE001 - any error for one composition must not take down the others
        return {"failure": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


@cache
def _site_featurizer() -> CrystalNNFingerprint:
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

    return CrystalNNFingerprint.from_preset("ops")


@cache
def _composition_featurizer() -> ElementProperty:
    from matminer.featurizers.composition.composite import ElementProperty

    return ElementProperty.from_preset("magpie", impute_nan=False)
