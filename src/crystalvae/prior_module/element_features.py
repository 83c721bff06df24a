"""Elements as vectors that neighbours in the periodic table share parts of."""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystalvae.data.batch import MAX_ATOMIC_NUMBER


@cache
def periodic_table() -> tuple[Int[Tensor, "E"], Int[Tensor, "E"]]:
    """Return the group (1 to 18; 3 for the f block) and the period of each atomic number, 0 for atomic number 0."""
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elements = [Element.from_Z(number) for number in range(1, MAX_ATOMIC_NUMBER + 1)]
    with torch.device("cpu"):  # kept, and maybe asked for first where models are built without memory
        groups = torch.tensor([0, *(element.group for element in elements)])
        return groups, torch.tensor([0, *(element.row for element in elements)])


class ElementEmbedder(nn.Module):
    """The sum of one learned vector for the element, one for its group, one for its period and one for its block."""

    def __init__(self, *, d_model: int) -> None:
        super().__init__()
        groups, periods = periodic_table()
        self.num_elements = len(groups)
        self.element_embedder = nn.Embedding(self.num_elements, d_model)
        self.group_embedder = nn.Embedding(20, d_model)
        self.period_embedder = nn.Embedding(int(periods.max()) + 1, d_model)
        nn.init.normal_(self.element_embedder.weight, std=0.3)

    def vectors(self) -> Float[Tensor, "E D"]:
        """Return the vectors of all elements, by atomic number."""
        groups, periods = (part.to(self.element_embedder.weight.device) for part in periodic_table())
        numbers = torch.arange(self.num_elements, device=groups.device)
        rare_earth = (numbers >= 57) & (numbers <= 71) | (numbers >= 89)
        groups = torch.where(rare_earth, 19, groups)
        return self.element_embedder.weight + self.group_embedder(groups) + self.period_embedder(periods)

    def forward(self, elements: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        """Embed atomic numbers."""
        return F.embedding(elements, self.vectors())
