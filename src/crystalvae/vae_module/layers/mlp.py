"""Per-atom networks that know of the other atoms only their mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.checks import check_choice, check_count, check_dropout, feedforward_width
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.layers.modulation import AdaptiveLayerNorm
from crystalvae.vae_module.layers.pooling import mean_over_atoms

Activation = Literal["gelu", "relu", "silu", "tanh"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh,
}  # fmt: skip


class PooledLayer(nn.Module):
    """A feed-forward network on each atom and the mean over its crystal, pre-norm, with a residual connection."""

    def __init__(
        self,
        *,
        d_model: int,
        dim_feedforward: int,
        dropout: float,
        activation: Activation = "gelu",
        d_condition: int | None = None,
    ) -> None:
        super().__init__()
        self.norm = AdaptiveLayerNorm(d_model, d_condition=d_condition)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.context = nn.Linear(d_model, dim_feedforward, bias=False)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.dropout = nn.Dropout(dropout)
        self.activation = ACTIVATIONS[activation]

    def forward(
        self, tokens: Float[Tensor, "N D"], crystals: CrystalBatch, condition: Float[Tensor, "N C"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Apply the layer to flat tokens; `condition` holds, for each atom, the vector of its crystal."""
        normed = self.norm(tokens, condition)
        context = self.context(mean_over_atoms(normed, crystals))
        hidden = self.activation(self.linear1(normed) + context[crystals.batch])
        return tokens + self.dropout(self.linear2(self.dropout(hidden)))


class PooledMLP(nn.Module):
    """A stack of `PooledLayer`: atoms of a crystal are a set that is seen through its mean (Zaheer et al. 2017).

    `num_layers` of them, each with `dim_feedforward` hidden numbers; or one for each of `hidden_dims`, their hidden
    numbers.
    """

    def __init__(
        self,
        *,
        part: str,
        d_model: int,
        num_layers: int | None,
        dim_feedforward: int | None,
        dropout: float,
        hidden_dims: Sequence[int] | None = None,
        activation: Activation = "gelu",
        d_condition: int | None = None,
    ) -> None:
        super().__init__()
        check_dropout(f"{part}.dropout", dropout)
        check_choice(f"{part}.activation", activation, get_args(Activation))
        if hidden_dims is None:
            check_count(f"{part}.num_layers", num_layers)
            width = feedforward_width(f"{part}.dim_feedforward", dim_feedforward, d_model)
            widths = [width] * cast("int", num_layers)
        else:
            widths = _widths(part, hidden_dims, num_layers=num_layers, dim_feedforward=dim_feedforward)
        options: dict[str, Any] = {"dropout": dropout, "activation": activation, "d_condition": d_condition}
        self.layers = nn.ModuleList(PooledLayer(d_model=d_model, dim_feedforward=width, **options) for width in widths)
        self.norm = AdaptiveLayerNorm(d_model, d_condition=d_condition)

    def forward(
        self, tokens: Float[Tensor, "N D"], crystals: CrystalBatch, condition: Float[Tensor, "N C"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Transform flat tokens; `condition` as `PooledLayer`."""
        for layer in self.layers:
            tokens = layer(tokens, crystals, condition)
        return self.norm(tokens, condition)


def _widths(part: str, hidden_dims: Sequence[int], *, num_layers: int | None, dim_feedforward: int | None) -> list[int]:
    if isinstance(hidden_dims, str) or not isinstance(hidden_dims, Sequence) or len(hidden_dims) == 0:
        raise ConfigError(f"{part}.hidden_dims: got {hidden_dims!r}; expected a list such as [512, 256], or null")
    for position, width in enumerate(hidden_dims):
        check_count(f"{part}.hidden_dims[{position}]", width)
    if dim_feedforward is not None or num_layers not in (None, len(hidden_dims)):
        raise ConfigError(
            f"{part}.hidden_dims: says the number of layers and their widths; set {part}.num_layers=null and "
            f"{part}.dim_feedforward=null beside it"
        )
    return list(hidden_dims)
