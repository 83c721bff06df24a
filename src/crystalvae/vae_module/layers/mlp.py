"""Per-atom networks that know of the other atoms only their mean."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.checks import check_count, check_dropout, feedforward_width
from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.layers.modulation import AdaptiveLayerNorm
from crystalvae.vae_module.layers.pooling import mean_over_atoms


class PooledLayer(nn.Module):
    """A feed-forward network on each atom and the mean over its crystal, pre-norm, with a residual connection."""

    def __init__(self, *, d_model: int, dim_feedforward: int, dropout: float, d_condition: int | None = None) -> None:
        super().__init__()
        self.norm = AdaptiveLayerNorm(d_model, d_condition=d_condition)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.context = nn.Linear(d_model, dim_feedforward, bias=False)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "N D"], crystals: CrystalBatch, condition: Float[Tensor, "N C"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Apply the layer to flat tokens; `condition` holds, for each atom, the vector of its crystal."""
        normed = self.norm(tokens, condition)
        context = self.context(mean_over_atoms(normed, crystals))
        hidden = F.gelu(self.linear1(normed) + context[crystals.batch])
        return tokens + self.dropout(self.linear2(self.dropout(hidden)))


class PooledMLP(nn.Module):
    """A stack of `PooledLayer`: atoms of a crystal are a set that is seen through its mean (Zaheer et al. 2017)."""

    def __init__(
        self,
        *,
        part: str,
        d_model: int,
        num_layers: int,
        dim_feedforward: int | None,
        dropout: float,
        d_condition: int | None = None,
    ) -> None:
        super().__init__()
        check_count(f"{part}.num_layers", num_layers)
        check_dropout(f"{part}.dropout", dropout)
        width = feedforward_width(f"{part}.dim_feedforward", dim_feedforward, d_model)
        self.layers = nn.ModuleList(
            PooledLayer(d_model=d_model, dim_feedforward=width, dropout=dropout, d_condition=d_condition)
            for _ in range(num_layers)
        )
        self.norm = AdaptiveLayerNorm(d_model, d_condition=d_condition)

    def forward(
        self, tokens: Float[Tensor, "N D"], crystals: CrystalBatch, condition: Float[Tensor, "N C"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Transform flat tokens; `condition` as `PooledLayer`."""
        for layer in self.layers:
            tokens = layer(tokens, crystals, condition)
        return self.norm(tokens, condition)
