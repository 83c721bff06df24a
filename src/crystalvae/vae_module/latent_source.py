"""What draws new latents: the protocol that bottlenecks and learned priors share, and its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystalvae.checks import check_choice, check_number
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.composition import parse_chemical_system
from crystalvae.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """What crystals that are drawn are asked to be, beside their atom counts and, in structure prediction, elements.

    `temperature` widens a bottleneck's own prior (1) or narrows it to its mode (0). `conditions`, such as
    {"crystal_system": "cubic", "band_gap": 1.5}, are the same for all crystals, or a list with one entry for each.
    `chemical_system`, "Li-Mn-O" or a list of symbols or atomic numbers, names the only elements that may appear, all of
    which do unless `chemical_system_subsets` (where the VAE decodes elements itself, they need not). `sampler`: changes
    to the default options of a learned prior.

    `space_group` (1 to 230), `crystal_system` and `wyckoff`, the letters of all orbits of a `space_group`, are met by
    construction, by priors that say space groups first.

    Raises `ConfigError` naming what cannot be.
    """

    temperature: float = 1.0
    conditions: Mapping[str, object] | None = None
    chemical_system: str | int | Sequence[str | int] | None = None
    chemical_system_subsets: bool = False
    sampler: Mapping[str, Any] | None = None
    space_group: int | None = None
    crystal_system: str | None = None
    wyckoff: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature)
        check_choice("chemical_system_subsets", self.chemical_system_subsets, (True, False))
        _ = self.elements  # says what is no element

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> DrawOptions:
        """Build from keywords; `ConfigError` lists those that are unknown."""
        known = [entry.name for entry in fields(cls)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise ConfigError(f"sample: unknown {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
        return cls(**options)

    @cached_property
    def elements(self) -> tuple[int, ...] | None:
        """The atomic numbers of the chemical system, each once; None where any element may appear."""
        return None if self.chemical_system is None else tuple(parse_chemical_system(self.chemical_system))

    @property
    def needs_prior(self) -> list[str]:
        """Names of the options given that only a learned prior has an answer to."""
        given = {
            "chemical_system": self.chemical_system is not None,
            "chemical_system_subsets": self.chemical_system_subsets,
            "sampler": bool(self.sampler),
        }
        return [name for name, asked in given.items() if asked] + self.needs_genes

    @property
    def needs_genes(self) -> list[str]:
        """Names of the options given that only a prior that says space groups has an answer to."""
        return [name for name in ("space_group", "crystal_system", "wyckoff") if getattr(self, name) is not None]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Latents, and the crystals that they are for: atom counts, elements where they are given or proposed, conditions.

    The atoms of each crystal may stand in another order than they were asked for in: `order` takes them back, None
    where they do not. `symmetric`: the crystals are to be moved onto the space groups and sites that they carry.
    `redraws`: how often crystals with atoms too close are to be drawn again.
    """

    latents: Float[Tensor, "N L"]
    crystals: CrystalBatch
    order: Int[Tensor, "N"] | None = None
    symmetric: bool = False
    redraws: int = 0


@runtime_checkable
class Autoencoder(Protocol):
    """The VAE as a latent source sees it: `CrystalVAE`."""

    def encode(self, crystals: CrystalBatch) -> Any:
        """Return q(z | crystal), a `Posterior`."""
        ...

    def decode(self, latents: Float[Tensor, "N L"], crystals: CrystalBatch) -> Any:
        """Decode latents for the atom counts and elements of crystals, to `DecodedCrystals`."""
        ...

    def to_crystals(self, decoded: Any, crystals: CrystalBatch) -> CrystalBatch:
        """Build crystals of what was decoded."""
        ...


@runtime_checkable
class LatentSource(Protocol):
    """What draws latents; `own_prior` says in words what from."""

    own_prior: str

    def check(self, options: DrawOptions) -> None:
        """Raise `ConfigError` for options that it has no answer to."""
        ...

    def draw(self, crystals: CrystalBatch, *, options: DrawOptions, generator: torch.Generator) -> Drawn:
        """Draw latents for the atom counts, elements (0: not known) and conditions that `crystals` carry.

        The generator may live on another device.
        """
        ...


@runtime_checkable
class LearnedPrior(LatentSource, Protocol):
    """A latent source that was trained: `names` are the conditions it accepts, `classes` those that are classes.

    `proposes_elements`: whether it draws the elements that a VAE for structure prediction has to be given.
    """

    names: list[str]
    classes: Mapping[str, Sequence[str]]
    proposes_elements: bool


@runtime_checkable
class GeneSource(LatentSource, Protocol):
    """A latent source that says space groups and sites first, and draws through the VAE."""

    def propose(self, crystals: CrystalBatch, *, options: DrawOptions, generator: torch.Generator) -> CrystalBatch:
        """Return crystals with space groups, sites and elements, the atoms orbit by orbit."""
        ...

    def draw_through(
        self, vae: Autoencoder, crystals: CrystalBatch, *, options: DrawOptions, generator: torch.Generator
    ) -> Drawn:
        """Draw latents for crystals with space groups and sites."""
        ...

    def possible(self, atomic_numbers: Sequence[int], options: DrawOptions) -> bool:
        """Say whether atoms of these elements can be a crystal of the symmetry asked for."""
        ...

    def size_weights(self, sizes: Sequence[int], options: DrawOptions) -> Float[Tensor, "S"]:
        """Return how likely the space groups asked for are for each number of atoms."""
        ...
