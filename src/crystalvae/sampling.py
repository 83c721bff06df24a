"""From a request to crystals: what they are asked to be, atom counts and elements, latents, crystals.

`VAEModule.sample` takes atom counts; here they may also follow from a composition or the training set.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from crystalvae.checks import check_count, check_seed
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.cif import MAX_SITES
from crystalvae.data.composition import parse_composition
from crystalvae.errors import ConfigError
from crystalvae.prior_module.latent_diffusion import JointConditions
from crystalvae.vae_module.atom_counts import seen_atom_counts
from crystalvae.vae_module.conditions.embedder import ConditionEmbedder
from crystalvae.vae_module.conditions.values import ELEMENTS
from crystalvae.vae_module.draw_crystals import Spread, one_by_one
from crystalvae.vae_module.latent_source import DrawOptions, GeneSource, LearnedPrior
from crystalvae.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)

FAR = 6.0
"""Standard deviations of the training set beyond which a condition is warned of."""
ABSURD = 1000.0
"""Standard deviations beyond which it is refused: the model's numbers would overflow."""
NEVER_NEGATIVE = ("density", "band_gap")
"""Conditions of which a negative number is refused."""


@dataclass(frozen=True, kw_only=True)
class SampleRequest(DrawOptions):
    """Which crystals to sample, from any model: `number` of them, and what they are asked to be (`DrawOptions`).

    `num_atoms` per cell: one number, a list with one for each crystal, or None: drawn from those of the training set.
    For models that predict structures, `composition` is a formula; cells hold `formula_units` of it, or, where that is
    None, one after the other all numbers of them that fit the sizes seen in training (and the symmetry asked for).
    `batch_size` crystals are drawn at once, with random numbers that follow from `seed`.

    Raises `ConfigError` naming what cannot be, whatever the model.
    """

    number: int
    num_atoms: int | Sequence[int] | None = None
    composition: str | None = None
    formula_units: int | None = None
    batch_size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_samples", self.number)
        check_count("batch_size", self.batch_size)
        check_seed("seed", self.seed)
        counts = self.num_atoms
        if counts is not None and not isinstance(counts, int) and len(counts) != self.number:
            raise ConfigError(
                f"num_atoms: got {len(counts)} numbers for num_samples={self.number}; expected one each, or one number"
            )
        for count in [counts] if isinstance(counts, int) else counts or ():
            _check_size("num_atoms", check_count("num_atoms", count))
        if self.formula_units is not None:
            _check_size("formula_units", check_count("formula_units", self.formula_units))
            if self.composition is None:
                raise ConfigError("formula_units: only has a meaning together with composition=")
        if self.composition is not None and self.num_atoms is not None:
            raise ConfigError(
                "num_atoms and composition exclude each other: say the size of the cell with formula_units="
            )
        if self.composition is not None and self.chemical_system is not None:
            raise ConfigError("chemical_system and composition exclude each other: a composition says all elements")


def sample(
    module: VAEModule,
    request: SampleRequest,
    *,
    template: CrystalBatch | None = None,
    generator: torch.Generator | None = None,
    spread: Spread = one_by_one,
) -> CrystalBatch:
    """Sample the crystals of a request, on the model's device, in the order of the template.

    `template` are crystals of which only the request is known (None: `request_template`); `generator` the random
    numbers (None: those of the request's seed, on the CPU). `spread` does the batches, here or in several processes.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(request.seed)
    if template is None:
        template = request_template(module, request, generator=generator)
    return module.draw(template, request, generator=generator, batch_size=request.batch_size, spread=spread)


def request_template(module: VAEModule, request: SampleRequest, *, generator: torch.Generator) -> CrystalBatch:
    """Return crystals of which only what is asked for is known: atom counts, elements, conditions.

    Raises `ConfigError` for a request that this model cannot meet.
    """
    module.source.check(request)
    template = module.asked(_atoms(module, request, generator), request.conditions)
    _check_near(module, template)
    return template


def proposes_elements(module: VAEModule) -> bool:
    """Say whether the model draws elements itself, so that none have to be given."""
    learned = module.prior is not None and cast("LearnedPrior", module.prior).proposes_elements
    return module.atom_type_predict or learned


def _atoms(module: VAEModule, request: SampleRequest, generator: torch.Generator) -> CrystalBatch:
    if request.composition is not None:
        return _composition_template(module, request, request.composition)
    if not proposes_elements(module):
        raise ConfigError("this checkpoint predicts structures for given elements: say which, composition=LiFePO4")
    if request.num_atoms is None:
        return CrystalBatch.empty(module.draw_sizes(request.number, request, generator))
    given = request.num_atoms
    sizes = [given] * request.number if isinstance(given, int) else list(given)
    _warn_unseen(set(sizes), seen_atom_counts(module.statistics))
    return CrystalBatch.empty(sizes)


def _composition_template(module: VAEModule, request: SampleRequest, formula: str) -> CrystalBatch:
    if module.atom_type_predict:
        raise ConfigError(
            f"composition={formula}: this checkpoint predicts the elements itself and cannot take them; train one "
            "for structure prediction (experiment=mp_20/vae_csp) and use that"
        )
    unit, seen = parse_composition(formula), seen_atom_counts(module.statistics)
    if request.formula_units is not None:
        sizes = [request.formula_units]
        _check_size(f"formula_units={sizes[0]} of {formula}", sizes[0] * len(unit))
        _warn_unseen({sizes[0] * len(unit)}, seen)
    else:
        sizes = list(range(1, max(seen, default=0) // len(unit) + 1)) or [1]
        if request.needs_genes and isinstance(module.source, GeneSource):
            sizes = [size for size in sizes if module.source.possible(unit * size, request)]
            if not sizes:
                asked = ", ".join(f"{name}={getattr(request, name)}" for name in request.needs_genes)
                raise ConfigError(f"composition={formula}: no crystal of the sizes seen in training can have {asked}")
        _warn_unseen({size * len(unit) for size in sizes} if sizes == [1] else set(), seen)
    chosen = [sizes[index % len(sizes)] for index in range(request.number)]
    atoms = [number for size in chosen for number in sorted(unit * size)]
    return CrystalBatch.empty([size * len(unit) for size in chosen]).replace(atom_types=torch.tensor(atoms))


def _check_size(key: str, atoms: int) -> None:
    if atoms > MAX_SITES:
        raise ConfigError(f"{key}: got {atoms} atoms per crystal or more; expected at most {MAX_SITES}")


def _check_near(module: VAEModule, template: CrystalBatch) -> None:
    """Warn of conditions that are far from all that the model saw in training; `ConfigError` for absurd ones."""
    told: set[str] = set()  # an encoder and a decoder may be told the same
    for embedder in (part for part in module.modules() if isinstance(part, (ConditionEmbedder, JointConditions))):
        for index, name in enumerate(embedder.names):
            values = template.conditions.get(name)
            if values is None or name in embedder.classes or name in ELEMENTS or name in told:
                continue
            told.add(name)
            mean, std = float(embedder.mean[index]), float(embedder.std[index])
            seen = seen_range(module.statistics, name)
            training = f"mean {mean:.3g}, standard deviation {std:.3g}"
            training += f", range {seen[0]:.3g} to {seen[1]:.3g}" if seen else ""
            far = ((values - mean).abs() / std).nan_to_num(0.0)
            if name in NEVER_NEGATIVE and bool((values < 0).any()):
                negative = float(values[values < 0][0])
                raise ConfigError(f"conditions.{name}: got {negative:g}, which is negative; in training: {training}")
            if float(far.max()) > ABSURD:
                raise ConfigError(
                    f"conditions.{name}: got {float(values[far.argmax()]):g}, which is too far from all that the model "
                    f"knows; in training: {training}"
                )
            odd = (values < seen[0]) | (values > seen[1]) if seen else far > FAR
            if bool(odd.any()):
                far = far.masked_fill(~odd, 0.0)
                log.warning(
                    "conditions.%s: %g is %.0f standard deviations from the mean of the training set: the model saw "
                    "nothing like it, and what it makes of it means nothing (in training: %s)",
                    name, float(values[far.argmax()]), float(far.max()), training,
                )  # fmt: skip


def seen_range(statistics: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """Return the least and the largest value of a condition in training; None where a checkpoint does not say."""
    ranges = statistics.get("conditions")
    match ranges.get(name) if isinstance(ranges, Mapping) else None:
        case [int() | float() as lowest, int() | float() as highest]:
            return float(lowest), float(highest)
    return None


def _warn_unseen(sizes: set[int], seen: dict[int, int]) -> None:
    unknown = sorted(sizes - set(seen)) if seen else []
    if unknown:
        log.warning(
            "no training crystal has %s atoms (they have %d to %d): crystals of these sizes will be less reliable",
            ", ".join(map(str, unknown[:10])), min(seen), max(seen),
        )  # fmt: skip
