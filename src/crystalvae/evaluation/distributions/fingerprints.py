"""Fingerprints of crystals: CrystalNN order parameters of their sites, and Magpie statistics of their elements.

Worker processes import this module, so it stays clear of torch: they start in a second and stay small.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from crystalvae.data.symmetry import moyo_dataset
from crystalvae.evaluation.crystal_arrays import Arrays, problem, structure
from crystalvae.evaluation.parallel.attempt import Failure, attempt

if TYPE_CHECKING:
    from matminer.featurizers.composition.composite import ElementProperty
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

STRUCTURE_LENGTH, COMPOSITION_LENGTH = 61, 132
MIN_VOLUME_PER_ATOM = 0.03
"""Denser cells (Å^3 per atom) have no structure fingerprint: 50,000 atoms and more lie within CrystalNN's 7 Å."""
ORBIT_SYMPREC = 1e-3
"""Å; closer than any distance CrystalNN can tell apart."""
INSTALL = 'needs matminer: pip install "crystalvae[evaluation]"'


def matminer_installed() -> bool:
    """Say whether matminer, which makes the fingerprints, is there."""
    return find_spec("matminer") is not None


def structure_fingerprint(crystal: Arrays, *, timeout_s: float | None = None) -> dict[str, object]:
    """Return the mean over sites of matminer's `CrystalNNFingerprint`, preset ops, as 61 numbers in `fingerprint`.

    Atoms that a symmetry of the crystal maps onto each other have the same surroundings, so one of each orbit is looked
    at and counts as often as its orbit has atoms. Without a fingerprint the result is a failure's: `failure` says why.
    """

    def fingerprint() -> list[float]:
        whole = structure(crystal)
        representatives, multiplicities = np.unique(equivalent_atoms(crystal), return_counts=True)
        sites = [_site_featurizer().featurize(whole, int(index)) for index in representatives]
        return np.average(np.array(sites, dtype=float), axis=0, weights=multiplicities).tolist()

    reason = problem(crystal)
    if not reason:
        volume = abs(float(np.linalg.det(crystal[2]))) / len(crystal[0])
        reason = f"volume of {volume:.3g} Å^3 per atom" if volume < MIN_VOLUME_PER_ATOM else ""
    found = Failure(reason) if reason else attempt(fingerprint, timeout_s=timeout_s, wanted="fingerprint")
    return found.to_dict() if isinstance(found, Failure) else {"fingerprint": found}


def equivalent_atoms(crystal: Arrays) -> np.ndarray:
    """Return for each of n atoms the first atom of its orbit under the space group found at `ORBIT_SYMPREC`."""
    dataset = attempt(lambda: moyo_dataset(*crystal, ORBIT_SYMPREC))
    # moyo knows no symmetry of some strange cells: then every atom stands for itself.
    return np.arange(len(crystal[0])) if isinstance(dataset, Failure) else np.array(dataset.orbits)


def composition_fingerprint(composition: tuple[tuple[int, int], ...]) -> dict[str, object]:
    """Return matminer's `ElementProperty`, preset magpie, of atomic numbers and counts, as 132 numbers.

    Properties that Magpie does not know are NaN, as when the metric was published, not imputed.
    """
    from pymatgen.core import Composition, Element

    def fingerprint() -> list[float]:
        elements = Composition({Element.from_Z(number): count for number, count in composition})
        return [float(value) for value in _composition_featurizer().featurize(elements)]

    found = attempt(fingerprint)
    return found.to_dict() if isinstance(found, Failure) else {"fingerprint": found}


@cache
def _site_featurizer() -> CrystalNNFingerprint:
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

    return CrystalNNFingerprint.from_preset("ops")


@cache
def _composition_featurizer() -> ElementProperty:
    from matminer.featurizers.composition.composite import ElementProperty

    return ElementProperty.from_preset("magpie", impute_nan=False)
