"""Data sets in the symmetric description, made once and kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import moyopy
import numpy as np
import torch
from jaxtyping import Int
from rich.console import Console
from rich.progress import track
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.canonical import SYMPREC, element_order, same_composition
from crystalvae.data.cif import CrystalError, RawCrystal, check_coordinates, check_lattice
from crystalvae.data.dataset import CrystalDataset, SkippedRow, crystals_key, report_skipped
from crystalvae.data.dataset_file import cached
from crystalvae.data.lattice import lattice_from_parameters, lattice_to_parameters
from crystalvae.data.sources import Source, Split, cache_root
from crystalvae.data.symmetric.describe import SymmetricCrystal, symmetric_crystal
from crystalvae.data.symmetric.space_groups import ORBIT_SITES, SPACE_GROUP
from crystalvae.data.symmetry import moyo_dataset
from crystalvae.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_VERSION = 2


def symmetric(
    crystals: CrystalBatch, *, symprec: float = SYMPREC, progress: bool = False
) -> tuple[CrystalBatch, dict[int, str]]:
    """Return crystals in their symmetric description, and why those that have none are missing, by position.

    The description is that of `symmetric_crystal`, of moyo's idealised standard primitive cell, in which atoms are
    moved by less than `symprec` Å; crystals in which no symmetry is found are described as those of P1. Properties
    `space_group` and `orbit_sites` say which group and sites. It does not depend on the origin, the axes, the order of
    atoms or the supercell that were given.
    """
    if not symprec > 0:
        raise ConfigError(f"symprec: got {symprec}; expected a tolerance in Å above 0")
    ranks = element_order().numpy()
    found: dict[int, SymmetricCrystal] = {}
    reasons: dict[int, str] = {}
    shown = track(
        enumerate(crystals.detach().to("cpu").to_arrays()),
        "symmetric cells",
        total=len(crystals),
        console=Console(stderr=True),
        transient=True,
        disable=not progress,
    )
    for position, (numbers, coords, lattice) in shown:
        try:
            found[position] = _described(RawCrystal(numbers, coords, lattice), ranks, symprec)
        except (CrystalError, ValueError) as error:
            reasons[position] = str(error)
    if not found:
        raise DataError(
            f"no crystal has a symmetric description; the first: {next(iter(reasons.values()), 'none given')}"
        )
    batch = from_symmetric(list(found.values()))
    kept = torch.tensor(list(found))
    properties = {name: values[kept] for name, values in crystals.properties.items()}
    return batch.replace(properties={**properties, **batch.properties}), reasons


def from_symmetric(crystals: Sequence[SymmetricCrystal]) -> CrystalBatch:
    """Return a batch of described crystals, with their groups and sites as properties."""
    lattices = np.stack([np.linalg.cholesky(crystal.metric) for crystal in crystals])
    batch = CrystalBatch.from_arrays(
        (crystal.numbers, crystal.frac_coords, lattice) for crystal, lattice in zip(crystals, lattices, strict=True)
    )
    lattices = lattice_from_parameters(*lattice_to_parameters(torch.from_numpy(lattices))).float()
    properties = {
        SPACE_GROUP: torch.tensor([float(crystal.space_group) for crystal in crystals]),
        ORBIT_SITES: pad_sites([torch.from_numpy(crystal.sites) for crystal in crystals]),
    }
    return batch.replace(lattices=lattices, properties=properties)


def pad_sites(sites: Sequence[Tensor]) -> Int[Tensor, "B K"]:
    """Return lists of different lengths as one tensor, -1 beyond each one's end."""
    return torch.nn.utils.rnn.pad_sequence(list(sites), batch_first=True, padding_value=-1)


def _described(given: RawCrystal, ranks: np.ndarray, symprec: float) -> SymmetricCrystal:
    check_lattice(given.lattice)
    check_coordinates(given.frac_coords)
    standard, number = given, 1
    try:
        found = moyo_dataset(given.numbers, given.frac_coords, given.lattice, symprec)
    except ValueError:
        log.debug("no symmetry found")
    else:
        cell = found.prim_std_cell
        standard = RawCrystal(np.array(cell.numbers), np.array(cell.positions), np.array(cell.basis))
        number = found.number
        if not same_composition(standard, given):
            raise CrystalError("atoms in one place")
    return symmetric_crystal(number, standard.numbers, standard.frac_coords, standard.lattice, ranks[standard.numbers])


class SymmetricSource:
    """Another source's crystals in their symmetric description, from the cache where they were made before."""

    def __init__(self, *, source: Source, symprec: float = SYMPREC, cache_dir: str | None = None) -> None:
        self.source, self.symprec = source, symprec
        self.name = source.name
        self.cache = cache_root(cache_dir)

    def load(self, split: Split) -> CrystalDataset:
        """Return a split; the ids are the source's, without those of crystals that have no such description."""
        dataset = self.source.load(split)
        key = crystals_key(dataset.crystals, f"symmetric {self.symprec} {_VERSION} {moyopy.__version__}")

        def build() -> CrystalDataset:
            crystals, reasons = symmetric(dataset.crystals, symprec=self.symprec, progress=True)
            skipped = [SkippedRow(row, dataset.ids[row], reason) for row, reason in reasons.items()]
            report_skipped(skipped, source=f"{self.name}, split {split}", kept=len(crystals))
            ids = [crystal_id for row, crystal_id in enumerate(dataset.ids) if row not in reasons]
            return CrystalDataset(crystals, ids, [*dataset.skipped, *skipped])

        return cached(self.cache / self.name / f"{split}-symmetric-{key}.safetensors", build)
