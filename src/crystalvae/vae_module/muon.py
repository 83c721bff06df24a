"""Optimisers beside those of `torch.optim`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the weight matrices of hidden layers, AdamW for all other parameters.

    Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest orthogonal matrix, so that every
    direction is learned at the same rate. It is scaled to the size of AdamW's steps (Liu et al., "Muon is scalable for
    LLM training", 2025, section 2.2), so that both share one learning rate. A matrix is taken for hidden where both
    its sides have at least `min_side` entries; inputs, heads, embeddings of few entries, biases and vectors are not.

    `state_dict` and `param_groups` are those of both, Muon's first: schedules and checkpoints treat it as one.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float = 2.0e-3,
        weight_decay: float = 0.05,
        betas: Sequence[float] = (0.9, 0.99),
        momentum: float = 0.95,
        ns_steps: int = 5,
        min_side: int = 128,
    ) -> None:
        parameters = list(params)
        first, second = betas
        hidden = [p for p in parameters if p.ndim == 2 and min(p.shape) >= min_side]
        others = [p for p in parameters if not (p.ndim == 2 and min(p.shape) >= min_side)]
        self._parts: list[torch.optim.Optimizer] = []
        super().__init__(parameters, {"lr": lr})
        if hidden:
            options: dict[str, Any] = {"momentum": momentum, "ns_steps": ns_steps, "adjust_lr_fn": "match_rms_adamw"}
            self._parts.append(torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, **options))
        if others:
            fused = all(p.is_floating_point() for p in others)
            self._parts.append(
                torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, betas=(first, second), fused=fused)
            )
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor | float] | None = None) -> Any:
        """Take one step of both; returns the closure's loss where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return {"parts": the state of each}."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]
