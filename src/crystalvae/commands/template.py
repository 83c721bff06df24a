"""What samples are asked to have: atom counts, and elements in structure prediction."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from crystalvae import checks
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.composition import parse_composition
from crystalvae.errors import ConfigError
from crystalvae.vae_module.sampling import draw_atom_counts
from crystalvae.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)


def sample_template(
    module: VAEModule,
    count: int,
    *,
    num_atoms: int | Sequence[int] | None,
    composition: str | None,
    formula_units: int | None,
    generator: torch.Generator,
    elements: int = 0,
) -> CrystalBatch:
    """Return crystals of which only what is asked for is known: atom counts, and elements in structure prediction.

    Atom counts are drawn from those of the training set that have room for `elements` different elements.

    Raises `ConfigError` for what cannot be asked of this model.
    """
    seen = {int(size): int(crystals) for size, crystals in module.statistics.get("num_atoms", {}).items()}
    if composition is not None:
        return _composition_template(module, count, composition, formula_units, num_atoms, seen)
    if not module.atom_type_predict and not proposes_elements(module):
        raise ConfigError("this checkpoint predicts structures for given elements: say which, composition=LiFePO4")
    if formula_units is not None:
        raise ConfigError("formula_units: only has a meaning together with composition=")
    if num_atoms is None:
        return CrystalBatch.empty(draw_atom_counts(module.statistics, count, generator=generator, elements=elements))
    counts = [num_atoms] * count if isinstance(num_atoms, int) else list(num_atoms)
    if len(counts) != count:
        raise ConfigError(
            f"num_atoms: got {len(counts)} numbers for num_samples={count}; expected one each, or one number"
        )
    for size in counts:
        checks.check_count("num_atoms", size)
    _warn_unseen(set(counts), seen)
    return CrystalBatch.empty(counts)


def proposes_elements(module: VAEModule) -> bool:
    """Say whether the module's prior has a model of compositions."""
    return getattr(module.prior, "composition", None) is not None


def _composition_template(
    module: VAEModule,
    count: int,
    formula: str,
    formula_units: int | None,
    num_atoms: int | Sequence[int] | None,
    seen: dict[int, int],
) -> CrystalBatch:
    if module.atom_type_predict:
        raise ConfigError(
            f"composition={formula}: this checkpoint predicts the elements itself and cannot be told them; train one "
            "for structure prediction (experiment=mp_20/vae_csp) and use that"
        )
    if num_atoms is not None:
        raise ConfigError("num_atoms and composition exclude each other: say the size of the cell with formula_units=")
    unit = parse_composition(formula)
    if formula_units is not None:
        sizes = [checks.check_count("formula_units", formula_units)]
        _warn_unseen({sizes[0] * len(unit)}, seen)
    else:
        sizes = list(range(1, max(seen, default=0) // len(unit) + 1)) or [1]
        _warn_unseen({size * len(unit) for size in sizes} if sizes == [1] else set(), seen)
    chosen = [sizes[index % len(sizes)] for index in range(count)]
    atoms = [number for size in chosen for number in sorted(unit * size)]
    return CrystalBatch.empty([size * len(unit) for size in chosen]).replace(atom_types=torch.tensor(atoms))


def _warn_unseen(sizes: set[int], seen: dict[int, int]) -> None:
    unknown = sorted(sizes - set(seen)) if seen else []
    if unknown:
        log.warning(
            "the model never saw crystals of %s atoms in training (it saw %d to %d): expect less of these",
            ", ".join(map(str, unknown[:10])), min(seen), max(seen),
        )  # fmt: skip
