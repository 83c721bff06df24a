"""A gene model that is told conditions, and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crystalvae.prior_module.gene_model import GeneModel
from crystalvae.prior_module.gene_steps import step_through
from crystalvae.prior_module.genes import Genes
from crystalvae.vae_module.conditions.embedder import ConditionEmbedder
from crystalvae.vae_module.conditions.values import Values, known_classes


class ConditionedGenes(nn.Module):
    """A gene model and the embedder of the conditions that it is told; keywords are those of `GeneModel`."""

    def __init__(
        self,
        *,
        conditions: Sequence[str] = (),
        classes: Mapping[str, int | Sequence[str]] | None = None,
        **model: Any,
    ) -> None:
        super().__init__()
        self.model = GeneModel(**model)
        known = known_classes(classes, key="prior.classes")
        self.conditions = ConditionEmbedder(names=conditions, classes=known, d_model=model["d_model"])

    def negative_log_likelihood(
        self, genes: Genes, values: Values, formula_given: Bool[Tensor, "B"]
    ) -> Float[Tensor, "B"]:
        """Return -log p of each gene in nats, given its formula or only its number of atoms."""
        device = genes.space_groups.device
        steps = step_through(genes.to_list(), formula_given=formula_given.tolist()).to(device)
        return self.model.negative_log_likelihood(steps, self.conditions(values, len(genes)))

    def of_both_tasks(self, genes: Genes, values: Values) -> Float[Tensor, "B"]:
        """Return the mean of -log p given the formula and given the number of atoms."""
        given = torch.ones(len(genes), dtype=torch.bool)
        return torch.stack([self.negative_log_likelihood(genes, values, task) for task in (given, ~given)]).mean(dim=0)
