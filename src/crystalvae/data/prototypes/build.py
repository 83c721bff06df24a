"""The embedded dataset: AFLOW's crystal prototypes inside pymatgen, grown by chemically sensible substitution."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import wrap
from crystalvae.data.prototypes.library import Prototype, load_prototypes
from crystalvae.data.prototypes.substitution import are_valid, densities, fit_cells, substitutes
from crystalvae.errors import ConfigError

log = logging.getLogger(__name__)

PROTOTYPES_VERSION = 1
"""Part of every cache key: raise it whenever the same options would build other crystals."""
SPLIT_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
MAX_TRIALS = 20_000
"""Substitutions looked at for each prototype; those with more possible ones are sampled."""


@dataclass(frozen=True, eq=False)
class Substitutions:
    """Valid, mutually distinct crystals of one prototype: atomic numbers (K, S) and length factors (K,)."""

    numbers: Int[np.ndarray, "K S"]
    scale: Float[np.ndarray, "K"]

    def __len__(self) -> int:
        return len(self.scale)


def build_prototypes(
    seed: int = 0, num_crystals: int = 6000, max_atoms: int = 20
) -> dict[str, tuple[list[str], CrystalBatch]]:
    """Build the dataset: ids and crystals for `train`, `val` and `test`, `num_crystals` altogether.

    Crystals are in Niggli cells of at most `max_atoms` atoms, with properties `density` (g/cm^3), `volume_per_atom`
    (Å^3) and `spacegroup_number`. Prototypes contribute as evenly as they can. About 80/10/10 % of the crystals, by
    whole families of prototypes, so that nothing held out has the structure of a training crystal. The same arguments
    give the same crystals. Raises `ConfigError` where this many, or three splits of them, cannot be made.
    """
    if num_crystals < len(SPLIT_FRACTIONS) or max_atoms < 1:
        raise ConfigError(f"prototypes: num_crystals={num_crystals}, max_atoms={max_atoms}; expected at least 3 and 1")
    rng = np.random.default_rng(seed)
    prototypes = load_prototypes(max_atoms)
    candidates = _all_substitutions(prototypes, rng)
    available = sum(map(len, candidates))
    if available < num_crystals:
        raise ConfigError(
            f"prototypes: num_crystals={num_crystals}, but prototypes of at most {max_atoms} atoms give {available}; "
            "ask for fewer crystals or allow more atoms"
        )
    quotas = _quotas([len(entry) for entry in candidates], num_crystals, rng)
    split_of = _split_families([prototype.family for prototype in prototypes], quotas, rng)
    splits = {}
    for name in SPLIT_FRACTIONS:
        chosen = [
            (prototype, entry, quota)
            for prototype, entry, quota in zip(prototypes, candidates, quotas, strict=True)
            if quota and split_of[prototype.family] == name
        ]
        if not chosen:
            raise ConfigError(
                f"prototypes: num_crystals={num_crystals}, max_atoms={max_atoms} leave no crystals for {name}; "
                "ask for more crystals or allow more atoms"
            )
        splits[name] = _to_batch(chosen)
    sizes = {name: len(ids) for name, (ids, _) in splits.items()}
    log.info("prototypes: %s crystals of %d prototypes", sizes, sum(quota > 0 for quota in quotas))
    return splits


# ---- growing it -----------------------------------------------------------------------------------------------------


def _all_substitutions(prototypes: Sequence[Prototype], rng: np.random.Generator) -> list[Substitutions]:
    """Return the valid crystals of each prototype; of twins only one keeps a formula, that of the library first."""
    owners: dict[tuple[int, bytes], int] = {}
    for i, prototype in enumerate(prototypes):
        (own,) = _formula_keys(prototype.elements[None], prototype.counts)
        owners.setdefault((prototype.twins, own), i)
    results = []
    for i, prototype in enumerate(prototypes):
        numbers, scale = _substitute(prototype, rng)
        keys = _formula_keys(numbers, prototype.counts)
        first: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            if owners.setdefault((prototype.twins, key), i) == i:
                first.setdefault(key, position)
        kept = list(first.values())
        results.append(Substitutions(numbers[kept], scale[kept]))
    return results


def _substitute(
    prototype: Prototype, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "K S"], Float[np.ndarray, "K"]]:
    """Return elements and length factors of valid crystals of a prototype in random order, its own elements first."""
    charges, counts = prototype.charges, prototype.counts
    options = [
        substitutes(int(number), None if charges is None else charges[i]) for i, number in enumerate(prototype.elements)
    ]
    possible = math.prod(map(len, options))
    drawn = rng.permutation(possible) if possible <= MAX_TRIALS else rng.choice(possible, MAX_TRIALS, replace=False)
    positions = np.unravel_index(drawn, tuple(map(len, options)))
    numbers = np.stack([np.asarray(option)[index] for option, index in zip(options, positions, strict=True)], axis=1)
    if all(number in option for number, option in zip(prototype.elements.tolist(), options, strict=True)):
        numbers = np.concatenate((prototype.elements[None], numbers))
    scale, fits = fit_cells(prototype.contacts, prototype.elements, numbers, charges)
    fits &= are_valid(prototype.contacts, numbers, counts, prototype.volume * scale**3, scale, charges)
    return numbers[fits], scale[fits]


def _formula_keys(numbers: Int[np.ndarray, "K S"], counts: Int[np.ndarray, "S"]) -> list[bytes]:
    """Return keys that are equal where reduced formulas are."""
    reduced = counts // np.gcd.reduce(counts)
    return [row.tobytes() for row in np.sort(numbers.astype(np.int64) * 1000 + reduced, axis=1)]


def _formula(numbers: Sequence[int], counts: Sequence[int]) -> str:
    from pymatgen.core import Composition, Element

    symbols = [Element.from_Z(number).symbol for number in numbers]
    return Composition(dict(zip(symbols, counts, strict=True))).reduced_formula


def _quotas(sizes: Sequence[int], total: int, rng: np.random.Generator) -> list[int]:
    """Return how many crystals each prototype gives, as evenly as their numbers allow, `total` in the sum."""
    limit = next(n for n in range(1, max(sizes) + 1) if sum(min(size, n) for size in sizes) >= total)
    quotas = [min(size, limit) for size in sizes]
    full = [i for i, quota in enumerate(quotas) if quota == limit]
    for i in rng.permutation(full)[: sum(quotas) - total].tolist():
        quotas[i] -= 1
    return quotas


def _split_families(families: Sequence[int], quotas: Sequence[int], rng: np.random.Generator) -> dict[int, str]:
    """Give whole families, in random order, to splits that still have room, with odds proportional to the room."""
    sizes = dict.fromkeys(sorted(set(families)), 0)
    for family, quota in zip(families, quotas, strict=True):
        sizes[family] += quota
    names = list(SPLIT_FRACTIONS)
    room = np.array([SPLIT_FRACTIONS[name] for name in names]) * sum(quotas)
    split_of = {}
    for family in rng.permutation(list(sizes)).tolist():
        odds = np.where(room >= sizes[family], room, 0.0)
        split = int(rng.choice(len(names), p=odds / odds.sum())) if odds.any() else int(np.argmax(room))
        room[split] -= sizes[family]
        split_of[family] = names[split]
    return split_of


def _to_batch(chosen: Sequence[tuple[Prototype, Substitutions, int]]) -> tuple[list[str], CrystalBatch]:
    ids: list[str] = []
    atom_types, frac_coords, lattices, num_atoms, density, volumes, spacegroups = [], [], [], [], [], [], []
    for prototype, entry, quota in chosen:
        numbers, scale, sites = entry.numbers[:quota], entry.scale[:quota], len(prototype.species)
        cell_volumes = prototype.volume * scale**3
        counts = prototype.counts.tolist()
        ids += [f"aflow-{prototype.name}-{_formula(row, counts)}" for row in numbers.tolist()]
        atom_types.append(numbers[:, prototype.species].reshape(-1))
        frac_coords.append(np.tile(prototype.frac_coords, (quota, 1)))
        lattices.append(scale[:, None, None] * prototype.lattice)
        num_atoms.append(np.full(quota, sites))
        density.append(densities(numbers, prototype.counts, cell_volumes))
        volumes.append(cell_volumes / sites)
        spacegroups.append(np.full(quota, prototype.spacegroup_number))

    def floats(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts)).float()

    properties = {
        "density": floats(density),
        "volume_per_atom": floats(volumes),
        "spacegroup_number": floats(spacegroups),
    }
    crystals = CrystalBatch(
        atom_types=torch.from_numpy(np.concatenate(atom_types)).long(),
        frac_coords=wrap(floats(frac_coords)),  # again in single precision, where 0.99999999 is 1
        lattices=floats(lattices),
        num_atoms=torch.from_numpy(np.concatenate(num_atoms)).long(),
        properties=properties,
    )
    return ids, crystals
