"""Distinct genes for a formula, the likeliest first: from the gene model, from lookup, or from a mixture of both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.errors import ConfigError
from crystalvae.prior_module.gene_lookup import GeneLookup
from crystalvae.prior_module.gene_model import GeneModel
from crystalvae.prior_module.gene_steps import Wanted, step_through
from crystalvae.prior_module.genes import Gene


class GeneProposals:
    """p(gene | formula) = (1 - w) p_model + w p_lookup, with w = `lookup_weight`, and no gene twice.

    Where lookup knows no crystal that could be asked for, the model alone decides. Demands on the space group leave out
    all other genes, and the rest adds up to 1 again.
    """

    def __init__(self, model: GeneModel, lookup: GeneLookup | None = None, *, lookup_weight: float = 0.5) -> None:
        if not 0.0 <= lookup_weight <= 1.0:
            raise ConfigError(f"gene.lookup_weight: got {lookup_weight}; expected a share in [0, 1]")
        self.model, self.lookup, self.lookup_weight = model, lookup, lookup_weight

    @torch.no_grad()
    def likeliest(self, wanted: Wanted, conditions: Float[Tensor, "1 D"], *, count: int) -> list[tuple[Gene, float]]:
        """Return up to `count` different genes with log p in nats, the likeliest first.

        Those that model and lookup each find likeliest are compared, twice as many as are asked for; where sites are
        asked for, those of the model.
        """
        if not wanted.formula:
            raise ConfigError("gene proposals are for a formula; draw from GeneModel.sample for a number of atoms")
        of_model = dict(self.model.likeliest(wanted, conditions, count=count))
        of_lookup = self._of_lookup(wanted)
        if not of_lookup:
            return sorted(of_model.items(), key=lambda entry: -entry[1])
        missing = [gene for gene in list(of_lookup)[: 2 * count] if gene not in of_model and not wanted.sites]
        of_model |= dict(zip(missing, self.log_likelihoods(missing, wanted, conditions), strict=True))
        mixed = {gene: self._mixed(p, of_lookup.get(gene, -math.inf)) for gene, p in of_model.items()}
        return sorted(mixed.items(), key=lambda entry: -entry[1])[:count]

    def log_likelihoods(self, genes: Sequence[Gene], wanted: Wanted, conditions: Float[Tensor, "1 D"]) -> list[float]:
        """Return the model's log p of genes of one formula, among those of the space groups asked for."""
        if not genes:
            return []
        steps = step_through(genes, formula_given=[True] * len(genes))
        of_all = -self.model.negative_log_likelihood(steps.to(conditions.device), conditions.expand(len(genes), -1))
        if not wanted.space_groups:
            return of_all.tolist()
        free = Wanted(wanted.num_atoms, wanted.formula)
        groups = self.model.group_log_probabilities([free], conditions)[0]
        asked = groups[torch.tensor(sorted(wanted.space_groups), device=groups.device) - 1].logsumexp(dim=0)
        return (of_all - asked).tolist()

    def _of_lookup(self, wanted: Wanted) -> dict[Gene, float]:
        if self.lookup is None or self.lookup_weight == 0:
            return {}
        found = self.lookup.likeliest(wanted.formula)
        if wanted.sites:
            found = [(gene, p) for gene, p in found if tuple(sorted(site for _, site in gene[1])) == wanted.sites]
        if wanted.space_groups:
            found = [(gene, p) for gene, p in found if gene[0] in wanted.space_groups]
        total = sum(math.exp(p) for _, p in found)
        return {gene: p - math.log(total) for gene, p in found} if total > 0 else {}

    def _mixed(self, of_model: float, of_lookup: float) -> float:
        share = (1 - self.lookup_weight) * math.exp(of_model) + self.lookup_weight * math.exp(of_lookup)
        return math.log(share) if share > 0 else -math.inf
