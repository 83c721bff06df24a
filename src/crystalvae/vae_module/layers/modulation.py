"""How conditions reach layers: each token is scaled and shifted by the vector of its crystal, or joined with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Modulation(nn.Module):
    """x · (1 + scale(c)) + shift(c) (FiLM, Perez et al. 2018, eq. 2), both linear in SiLU(c) and 0 to begin with."""

    def __init__(self, *, d_model: int, d_condition: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_condition, 2 * d_model)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Float[Tensor, "N D"], condition: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        """Modulate flat tokens by the conditions of their crystals."""
        scale, shift = self.linear(F.silu(condition)).chunk(2, dim=-1)
        return tokens * (1 + scale) + shift


class Concatenation(nn.Module):
    """x + W₂ SiLU(W₁ [x, c]): the conditions beside the tokens, taken back to their width; W₂ starts at 0."""

    def __init__(self, *, d_model: int, d_condition: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(d_model + d_condition, d_model)
        self.linear2 = nn.Linear(d_model, d_model)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, tokens: Float[Tensor, "N D"], condition: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        """Mix flat tokens with the conditions of their crystals."""
        both = torch.cat((tokens, condition.to(tokens.dtype)), dim=-1)
        return tokens + self.linear2(F.silu(self.linear1(both)))


class AdaptiveLayerNorm(nn.LayerNorm):
    """A layer norm over flat tokens whose gain and bias depend on conditions, where it is built for them.

    LN(x) · (1 + scale(c)) + shift(c) with LN's own gain and bias; `d_condition` None: LN(x) alone. Source: Peebles &
    Xie, "Scalable diffusion models with transformers" (2023), section 3.2, without its gates.
    """

    def __init__(self, d_model: int, *, d_condition: int | None = None) -> None:
        super().__init__(d_model)
        self.modulation = None if d_condition is None else Modulation(d_model=d_model, d_condition=d_condition)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # told more than torch's
        self, tokens: Float[Tensor, "N D"], condition: Float[Tensor, "N C"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Normalise and modulate; `ValueError` where conditions are given that it was not built for, or are missing."""
        if (condition is None) != (self.modulation is None):
            told = "got no conditions" if condition is None else "got conditions, but was built without d_condition"
            raise ValueError(f"AdaptiveLayerNorm: {told}; expected conditions if, and only if, d_condition is given")
        normed = super().forward(tokens)
        if self.modulation is None or condition is None:
            return normed
        return self.modulation(normed, condition)


def per_atom(condition: Float[Tensor, "B C"] | None, batch: Tensor) -> Float[Tensor, "N C"] | None:
    """Give each atom the vector of its crystal; None stays None."""
    return None if condition is None else condition.index_select(0, batch)
