"""Crystals in one agreed description: primitive Niggli cell, settled axes and origin, atoms in a standard order.

A crystal can be written down in endlessly many ways (origin, cell, order of the atoms), and a generative model that is
asked for all of them learns nothing else for a long time. Here each crystal has one, so that crystals of one prototype
have nearly the same numbers.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from functools import cache

import moyopy
import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor

from crystalvae.data.batch import MAX_ATOMIC_NUMBER, CrystalBatch
from crystalvae.data.cif import CrystalError, RawCrystal, check_coordinates, check_lattice, niggli_reduce
from crystalvae.data.dataset import CrystalDataset, crystals_key
from crystalvae.data.dataset_file import cached
from crystalvae.data.lattice import lattice_from_parameters, lattice_to_parameters
from crystalvae.data.sources import Source, Split, cache_root
from crystalvae.data.symmetry import moyo_dataset
from crystalvae.errors import ConfigError

SYMPREC = 0.1
"""Tolerance in Å of the symmetry search, the Materials Project's own."""
_SAME_COORDINATE = 5e-3
_BIN, _OFFSET = 2 * _SAME_COORDINATE, 0.37
"""Coordinates are compared in bins of this width, whose edges no fraction k/n with small n is close to."""
_SAME_METRIC = 1e-3
_AT_ONCE = 1_000_000
_CHUNK = 512
_VERSION = 3


@cache
def element_order() -> Int[Tensor, "E"]:
    """Return the rank of each atomic number 0..99 by Pauling electronegativity, as chemical formulas are written.

    Elements without one (noble gases and a few actinides) come last, by atomic number; class 0 has the last rank.
    """
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No Pauling electronegativity")
        scale = [np.inf, *(float(Element.from_Z(z).X) for z in range(1, MAX_ATOMIC_NUMBER + 1))]
    values = np.nan_to_num(np.array(scale), nan=99.0, posinf=100.0)
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.lexsort((np.arange(len(values)), values))] = np.arange(len(values))
    return torch.from_numpy(rank)


def canonical(crystals: CrystalBatch, *, symprec: float = SYMPREC, progress: bool = False) -> CrystalBatch:
    """Return crystals in their canonical description, with the space group found as property `space_group`.

    1. The idealised standard primitive cell (International Tables A, as moyo chooses it), which moves atoms by less
       than `symprec` Å, is expressed in its Niggli cell. A crystal whose symmetry is not found stays as it is, in its
       Niggli cell, with space group NaN; one without a cell that has a volume stays in its own.
    2. A lattice with symmetry can be given the same lengths and angles by several choices of axes, and any atom can be
       the origin. Of all right-handed choices that put an atom of the rarest element (of those, the first in
       `element_order`) at the origin, that with the smallest list of coordinates, in bins of 0.01, is taken.
    3. Atoms are ordered by `element_order`, then by coordinates.

    The result does not depend on the origin, the axes, the order of atoms or the supercell that were given. Atom counts
    can only shrink, where the given cell was not primitive.
    """
    if not symprec > 0:
        raise ConfigError(f"symprec: got {symprec}; expected a tolerance in Å above 0")
    host = crystals.detach().to("cpu")
    results: list[RawCrystal] = []
    groups: list[float] = []
    starts = range(0, len(host), _CHUNK)
    console = Console(stderr=True)
    shown = track(starts, "canonical cells", console=console, transient=True, disable=not progress)
    for start in shown:
        standard = list(_standardized(host[start : start + _CHUNK], symprec))
        groups += [group for _, group in standard]
        results += _settled([crystal for crystal, _ in standard])
    batch = CrystalBatch.from_arrays([(entry.numbers, entry.frac_coords, entry.lattice) for entry in results])
    lattices = lattice_from_parameters(*lattice_to_parameters(batch.lattices.double())).float()
    properties = {**host.properties, "space_group": torch.tensor(groups)}
    return batch.replace(lattices=lattices, properties=properties)


def _standardized(crystals: CrystalBatch, symprec: float) -> Iterator[tuple[RawCrystal, float]]:
    for numbers, coords, lattice in crystals.to_arrays():
        given = RawCrystal(numbers, coords, lattice)
        try:
            found = moyo_dataset(numbers, coords, lattice, symprec)
        except ValueError:  # no symmetry found, or a cell without volume
            yield given, float("nan")
            continue
        primitive = found.prim_std_cell
        standard = RawCrystal(np.array(primitive.numbers), np.array(primitive.positions), np.array(primitive.basis))
        # Atoms in one place are merged without a word.
        yield (standard, float(found.number)) if same_composition(standard, given) else (given, float("nan"))


def same_composition(one: RawCrystal, other: RawCrystal) -> bool:
    """Return whether two cells hold the same elements in the same shares."""
    counts = [np.bincount(crystal.numbers, minlength=MAX_ATOMIC_NUMBER + 1) for crystal in (one, other)]
    return bool((counts[0] * len(other.numbers) == counts[1] * len(one.numbers)).all())


def _settled(crystals: list[RawCrystal]) -> list[RawCrystal]:
    usable = [index for index, crystal in enumerate(crystals) if _has_volume(crystal)]
    results = list(crystals)
    for index, reduced in zip(usable, niggli_reduce([crystals[index] for index in usable]), strict=True):
        results[index] = _smallest(crystals[index] if isinstance(reduced, CrystalError) else reduced)
    return results


def _has_volume(crystal: RawCrystal) -> bool:
    try:
        check_lattice(crystal.lattice)
        check_coordinates(crystal.frac_coords)
    except CrystalError:
        return False
    return True


def _smallest(crystal: RawCrystal) -> RawCrystal:
    """Return the description with the smallest coordinates, over all axes and origins that are as good."""
    hand = 1.0 if np.linalg.det(crystal.lattice) > 0 else -1.0
    lattice, given = hand * crystal.lattice, hand * crystal.frac_coords
    axes, inverses = _same_metric(lattice)
    ranks = element_order().numpy()[crystal.numbers]
    elements, counts = np.unique(ranks, return_counts=True)
    origins = np.flatnonzero(ranks == elements[np.argmin(counts)])
    candidates: list[tuple[list[int], RawCrystal]] = []
    step = max(1, _AT_ONCE // (len(axes) * len(ranks)))
    for start in range(0, len(origins), step):
        shifted = given - given[origins[start : start + step], None]
        coords = np.einsum("onk,mkj->monj", shifted, inverses).reshape(-1, len(ranks), 3) % 1.0
        coords[coords > 1.0 - _SAME_COORDINATE] -= 1.0  # the two ends of the cell are one place
        places = np.floor(coords / _BIN + _OFFSET).astype(np.int64) + 1
        codes = ((ranks * 128 + places[..., 0]) * 128 + places[..., 1]) * 128 + places[..., 2]
        orders = codes.argsort(axis=1, kind="stable")
        sorted_codes = np.take_along_axis(codes, orders, axis=1)
        first = np.lexsort(sorted_codes.T[::-1])[0]
        order, basis = orders[first], axes[first // len(shifted)]
        found = RawCrystal(crystal.numbers[order], coords[first][order], basis @ lattice)
        candidates.append((sorted_codes[first].tolist(), found))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def _same_metric(lattice: Float[np.ndarray, "3 3"]) -> tuple[Int[np.ndarray, "M 3 3"], Float[np.ndarray, "M 3 3"]]:
    """Return the changes of axes that keep lengths, angles and handedness of a reduced cell, and their inverses."""
    axes, inverses, products = _axis_changes()
    metric = lattice @ lattice.T
    lengths = np.sqrt(np.diag(metric))
    changed = (products @ metric.reshape(9)).reshape(-1, 3, 3)
    kept = (np.abs(changed - metric) < _SAME_METRIC * np.outer(lengths, lengths)).all(axis=(1, 2))
    return axes[kept], inverses[kept]


@cache
def _axis_changes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all matrices M of -1, 0, 1 with determinant 1, their inverses, and M ⊗ M, which takes metric to metric.

    Those among them that keep the metric are all there are for a Niggli cell.
    """
    every = np.array(list(itertools.product((-1, 0, 1), repeat=9))).reshape(-1, 3, 3)
    axes = every[np.rint(np.linalg.det(every)) == 1]
    products = np.einsum("mij,mkl->mikjl", axes, axes).reshape(-1, 9, 9).astype(float)
    return axes, np.rint(np.linalg.inv(axes)), products


class CanonicalSource:
    """Another source's crystals in their canonical description, from the cache where they were made before."""

    def __init__(self, *, source: Source, symprec: float = SYMPREC, cache_dir: str | None = None) -> None:
        self.source, self.symprec = source, symprec
        self.name = source.name
        self.cache = cache_root(cache_dir)

    def load(self, split: Split) -> CrystalDataset:
        """Return a split; the ids are the source's."""
        dataset = self.source.load(split)
        key = crystals_key(dataset.crystals, f"{self.symprec} {_VERSION} {moyopy.__version__}")

        def build() -> CrystalDataset:
            crystals = canonical(dataset.crystals, symprec=self.symprec, progress=True)
            return CrystalDataset(crystals, dataset.ids, dataset.skipped)

        return cached(self.cache / self.name / f"{split}-canonical-{key}.safetensors", build)
