"""From the atoms of a crystal to one vector per crystal."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch


def mean_over_atoms(tokens: Float[Tensor, "N D"], crystals: CrystalBatch) -> Float[Tensor, "B D"]:
    """Average the tokens of each crystal."""
    total = tokens.new_zeros(crystals.num_graphs, tokens.shape[-1]).index_add(0, crystals.batch, tokens)
    return total / crystals.num_atoms[:, None].to(tokens.dtype)
