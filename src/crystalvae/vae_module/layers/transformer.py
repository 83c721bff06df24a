"""A transformer over crystals of different sizes: linear layers see flat tokens, only attention sees a grid."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystalvae.checks import check_choice, feedforward_width
from crystalvae.errors import ConfigError
from crystalvae.vae_module.layers.attention import PaddingPlan, attend
from crystalvae.vae_module.layers.modulation import AdaptiveLayerNorm

Activation = Literal["gelu", "gelu_tanh"]


class SelfAttention(nn.Module):
    """Multi-head self-attention within each crystal (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, *, d_model: int, nhead: int, dropout: float) -> None:
        super().__init__()
        self.nhead, self.dropout = nhead, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Float[Tensor, "N D"], plan: PaddingPlan) -> Float[Tensor, "N D"]:
        """Attend among the atoms of each crystal."""
        qkv = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(qkv, plan, heads=self.nhead, dropout=dropout))


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a residual connection and a layer norm before or after.

    With `d_condition` both norms are adaptive, and told vectors of that width.
    """

    def __init__(
        self,
        *,
        d_model: int,
        nhead: int,
        dim_feedforward: int,
        dropout: float,
        norm_first: bool,
        activation: Activation,
        d_condition: int | None = None,
    ) -> None:
        super().__init__()
        self.norm_first, self.approximate = norm_first, "tanh" if activation == "gelu_tanh" else "none"
        self.self_attn = SelfAttention(d_model=d_model, nhead=nhead, dropout=dropout)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1 = AdaptiveLayerNorm(d_model, d_condition=d_condition)
        self.norm2 = AdaptiveLayerNorm(d_model, d_condition=d_condition)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "N D"], plan: PaddingPlan, condition: Float[Tensor, "N C"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Apply the layer to flat tokens; `condition` holds, for each atom, the vector of its crystal."""
        if self.norm_first:
            tokens = tokens + self.dropout(self.self_attn(self.norm1(tokens, condition), plan))
            return tokens + self.dropout(self._feed_forward(self.norm2(tokens, condition)))
        tokens = self.norm1(tokens + self.dropout(self.self_attn(tokens, plan)), condition)
        return self.norm2(tokens + self.dropout(self._feed_forward(tokens)), condition)

    def _feed_forward(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return self.linear2(self.dropout(F.gelu(self.linear1(tokens), approximate=self.approximate)))


class Transformer(nn.Module):
    """A stack of `TransformerLayer`, with a final layer norm where the layers are pre-norm; `d_condition` as there.

    Parameter names are those of `torch.nn.TransformerEncoder`, as in the published checkpoints.
    """

    def __init__(
        self,
        *,
        d_model: int,
        nhead: int,
        num_layers: int,
        dim_feedforward: int | None,
        dropout: float,
        norm_first: bool,
        activation: Activation,
        d_condition: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, get_args(Activation))
        if d_model < 1 or nhead < 1 or d_model % nhead:
            raise ConfigError(f"d_model: got {d_model} with nhead {nhead}; expected a positive multiple of nhead")
        if num_layers < 1:
            raise ConfigError(f"num_layers: got {num_layers}; expected at least 1")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout: got {dropout}; expected a value in [0, 1)")
        self.layers = nn.ModuleList(
            TransformerLayer(
                d_model=d_model,
                nhead=nhead,
                dim_feedforward=feedforward_width("dim_feedforward", dim_feedforward, d_model),
                dropout=dropout,
                norm_first=norm_first,
                activation=activation,
                d_condition=d_condition,
            )
            for _ in range(num_layers)
        )
        self.norm = AdaptiveLayerNorm(d_model, d_condition=d_condition) if norm_first else None

    def forward(
        self, tokens: Float[Tensor, "N D"], plan: PaddingPlan, condition: Float[Tensor, "N C"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Transform flat tokens; atoms only see atoms of their own crystal."""
        for layer in self.layers:
            tokens = layer(tokens, plan, condition)
        return tokens if self.norm is None else self.norm(tokens, condition)


def sinusoidal_positions(token_idx: Int[Tensor, "N"], d_model: int) -> Float[Tensor, "N D"]:
    """Return the published format's positional table: sin and cos of i·π / 2048^(2k/d), k = 0..d/2-1, sines first."""
    k = torch.arange(d_model // 2, device=token_idx.device, dtype=torch.float32)
    phase = token_idx[:, None] * torch.pi / 2048 ** (2 * k / d_model)
    return torch.cat((phase.sin(), phase.cos()), dim=-1)
