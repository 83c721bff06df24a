"""Genes for crystals that are asked for: of a formula the likeliest ones, else drawn from the gene model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.symmetric.source import ORBIT_SITES, SPACE_GROUP
from crystalvae.data.symmetric.space_groups import NUM_SPACE_GROUPS
from crystalvae.errors import ConfigError
from crystalvae.prior_module.analogues import Analogues
from crystalvae.prior_module.asked_symmetry import asked_sites, asked_space_groups, letters
from crystalvae.prior_module.conditioned_genes import ConditionedGenes
from crystalvae.prior_module.gene_lookup import GeneLookup
from crystalvae.prior_module.gene_proposals import GeneProposals
from crystalvae.prior_module.gene_ranker import GeneRanker, RankedLookup
from crystalvae.prior_module.gene_steps import Wanted, formula_of, ranks
from crystalvae.prior_module.genes import Gene, Genes
from crystalvae.vae_module.conditions.values import Values
from crystalvae.vae_module.latent_source import DrawOptions

log = logging.getLogger(__name__)

LOOKUP_WEIGHT = 0.7
"""The share of known crystals in the probability of a gene; measured in docs/results.md."""


class GeneDrawer:
    """Genes from a model, and for formulas from a mixture with what known crystals say (`GeneProposals`)."""

    def __init__(self, genes: ConditionedGenes, known: Analogues, ranker: GeneRanker | None = None) -> None:
        self.genes = genes
        lookup = None
        if len(known):
            lookup = GeneLookup(known.genes(), known.similarity)
            if ranker is not None and bool(ranker.fitted):
                lookup = RankedLookup(known, ranker)
        self.proposals = GeneProposals(genes.model, lookup, lookup_weight=LOOKUP_WEIGHT)

    def with_genes(
        self,
        crystals: CrystalBatch,
        values: Values,
        options: DrawOptions,
        *,
        temperature: float,
        generator: torch.Generator,
    ) -> CrystalBatch:
        """Return crystals with genes as properties and atoms orbit by orbit; unchanged where they have genes.

        Where there are no elements, genes are drawn for the numbers of atoms. Crystals with the same elements get
        different genes, the likeliest first; where there are not enough, they begin again.
        """
        if SPACE_GROUP in crystals.properties:
            return crystals
        wanted = self._wanted(crystals, options)
        conditions = self.genes.conditions(values, len(crystals))
        if wanted[0].formula:
            found = self._of_formulas(wanted, conditions)
        else:
            found = self.genes.model.sample(wanted, conditions, generator=generator, temperature=temperature)
        genes = Genes.from_list(found)
        return crystals.replace(
            atom_types=genes.atom_types().to(crystals.device),
            properties={
                SPACE_GROUP: genes.space_groups.float().to(crystals.device),
                ORBIT_SITES: genes.sites.to(crystals.device),
            },
        )

    def possible(self, atomic_numbers: Sequence[int], options: DrawOptions) -> bool:
        """Say whether atoms of these elements can be in the space groups and on the sites asked for."""
        return bool(self._of_formula(atomic_numbers, options).groups())

    def size_weights(self, sizes: Sequence[int], options: DrawOptions) -> Float[Tensor, "S"]:
        """Return p(space groups asked for | number of atoms) for each size, 0 where there is no such crystal."""
        groups = asked_space_groups(space_group=options.space_group, crystal_system=options.crystal_system)
        weights = torch.zeros(len(sizes), dtype=torch.double)
        for place, size in enumerate(sizes):
            wanted = self._of_size(size, options)
            if not wanted.groups():
                continue
            free = Wanted(size, elements=wanted.elements, subsystems=wanted.subsystems)
            device = next(self.genes.parameters()).device
            unknown = {name: torch.full((1,), torch.nan, device=device) for name in self.genes.conditions.names}
            log_p = self.genes.model.group_log_probabilities([free], self.genes.conditions(unknown, 1))[0].double()
            asked = torch.tensor(sorted(groups or range(1, NUM_SPACE_GROUPS + 1)), device=device)
            weights[place] = float(log_p[asked - 1].exp().sum())
        return weights

    def _wanted(self, crystals: CrystalBatch, options: DrawOptions) -> list[Wanted]:
        unknown = crystals.atom_types == 0
        if bool(unknown.all()):
            return [self._of_size(size, options) for size in crystals.num_atoms.tolist()]
        if bool(unknown.any()):
            raise ConfigError("composition: some atoms have element 0; expected elements for all atoms, or for none")
        parts = crystals.atom_types.cpu().split(crystals.num_atoms.tolist())
        allowed = None if options.elements is None else set(options.elements)
        if allowed is not None and not set(crystals.atom_types.tolist()) <= allowed:
            raise ConfigError(
                "composition and chemical_system exclude each other: the composition has elements outside the system"
            )
        return [self._of_formula(part.tolist(), options) for part in parts]

    def _of_formula(self, atomic_numbers: Sequence[int], options: DrawOptions) -> Wanted:
        groups = asked_space_groups(space_group=options.space_group, crystal_system=options.crystal_system)
        sites = asked_sites(options.space_group, options.wyckoff)
        return Wanted(len(atomic_numbers), formula_of(atomic_numbers), groups, sites=sites)

    def _of_size(self, size: int, options: DrawOptions) -> Wanted:
        groups = asked_space_groups(space_group=options.space_group, crystal_system=options.crystal_system)
        order = ranks()
        elements = tuple(sorted(options.elements or (), key=order.__getitem__))
        sites = asked_sites(options.space_group, options.wyckoff)
        return Wanted(size, (), groups, elements, options.chemical_system_subsets, sites)

    def _of_formulas(self, wanted: Sequence[Wanted], conditions: Float[Tensor, "B D"]) -> list[Gene]:
        rows: dict[Wanted, list[int]] = {}
        for row, entry in enumerate(wanted):
            rows.setdefault(entry, []).append(row)
        found: dict[int, Gene] = {}
        short: Mapping[str, int] = {}
        for entry, places in rows.items():
            likeliest = self.proposals.likeliest(entry, conditions[places[:1]], count=len(places))
            if not likeliest:
                raise ConfigError(
                    f"no gene fits {entry.formula} in space groups {sorted(entry.space_groups) or 'any'} on Wyckoff "
                    f"sites {letters(entry.sites) or 'any'}"
                )
            if len(likeliest) < len(places):
                short = {**short, str(entry.formula): len(likeliest)}
            for number, place in enumerate(places):
                found[place] = likeliest[number % len(likeliest)][0]
        if short:
            log.warning("fewer genes than crystals are possible, and some are used again: %s", short)
        return [found[row] for row in range(len(wanted))]
