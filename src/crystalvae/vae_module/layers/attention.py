"""Where atoms stand when they attend to each other: several crystals to a row, so that few slots are empty."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import DataError

SMALL = 64
"""Rows up to this many slots go through plain matrix products on CPUs; longer ones would fill memory with scores."""


@dataclass(frozen=True, eq=False)
class HeadOrder:
    """Row numbers that take flat (N, heads, D) vectors to (R, heads, M, D) and back, also for (N, 3, heads, D)."""

    to_grid: Int[Tensor, "S"]
    to_tokens: Int[Tensor, "T"]
    qkv_to_grid: Int[Tensor, "S3"]
    qkv_to_tokens: Int[Tensor, "T3"]
    bias: Float[Tensor, "RH M M"] | None


@dataclass(frozen=True, eq=False)
class PaddingPlan:
    """Where each of N tokens stands in an (R, M) grid, M the largest crystal's number of atoms.

    Packed, a row holds as many crystals as fit in, and `attend` keeps each to itself; otherwise a row is a crystal.
    `position` is the slot of each token, `source` a token for each slot (empty ones repeat one of their row). `attend`
    says which slots of a row see which: (R, 1, M, M), empty ones see each other; None where each row is one crystal
    without empty slots.
    """

    position: Int[Tensor, "N"]
    source: Int[Tensor, "S"]
    num_rows: int
    max_atoms: int
    attend: Bool[Tensor, "R 1 M M"] | None
    _orders: dict[int, HeadOrder] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, crystals: CrystalBatch) -> PaddingPlan:
        """Return the packed plan of a batch: one for all batches that share their `num_atoms`.

        So encoder, decoder and all steps of a sampler use the same, and a GPU is waited for once.
        """
        if crystals.num_atoms not in _PLANS:
            with torch.inference_mode(False):  # a plan made in validation may serve a gradient later
                _PLANS[crystals.num_atoms] = cls.laid_out(crystals)
        return _PLANS[crystals.num_atoms]

    @classmethod
    def laid_out(cls, crystals: CrystalBatch, *, packed: bool = True) -> PaddingPlan:
        """Lay out a batch."""
        sizes = crystals.num_atoms.cpu().numpy()
        if not len(sizes):
            raise DataError("no crystals: expected a batch of at least one")
        width, device = int(sizes.max()), crystals.device
        if (sizes == width).all():
            everything = torch.arange(crystals.num_nodes, device=device)
            return cls(everything, everything, crystals.num_graphs, width, None)
        first, rows = pack(sizes, width) if packed else (np.arange(len(sizes)) * width, len(sizes))
        first_slot = torch.from_numpy(first).to(device)
        position = first_slot[crystals.batch] + crystals.token_idx
        tokens = torch.arange(crystals.num_nodes, device=device)
        source = tokens.new_full((rows * width,), -1).index_copy(0, position, tokens).view(rows, width)
        source = torch.where(source < 0, source[:, :1], source).flatten()
        owner = position.new_full((rows * width,), -1).index_copy(0, position, crystals.batch).view(rows, 1, width)
        return cls(position, source, rows, width, owner[..., :, None] == owner[..., None, :])

    def pad(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "R M D"]:
        """Spread flat tokens over the grid; empty slots are 0."""
        if self.attend is None:
            return tokens.view(self.num_rows, self.max_atoms, -1)
        grid = tokens.new_zeros(self.num_rows * self.max_atoms, tokens.shape[-1])
        return grid.index_copy(0, self.position, tokens).view(self.num_rows, self.max_atoms, -1)

    def flatten(self, grid: Float[Tensor, "R M D"]) -> Float[Tensor, "N D"]:
        """Gather the tokens back from the grid."""
        rows = grid.reshape(self.num_rows * self.max_atoms, -1)
        return rows if self.attend is None else rows.index_select(0, self.position)

    def order(self, heads: int) -> HeadOrder:
        """Return the row numbers for this number of heads, computed once."""
        if heads not in self._orders:
            with torch.inference_mode(False):
                self._orders[heads] = self._head_order(heads)
        return self._orders[heads]

    def _head_order(self, heads: int) -> HeadOrder:
        rows, width, device = self.num_rows, self.max_atoms, self.position.device
        head, part = torch.arange(heads, device=device), torch.arange(3, device=device)
        source = self.source.view(rows, 1, width)
        slot = (self.position // width * heads * width + self.position % width)[:, None] + head * width  # (N, heads)
        bias = None
        if self.attend is not None and width <= SMALL:  # longer rows never go through plain products
            bias = torch.zeros(self.attend.shape, device=device).masked_fill(~self.attend, -torch.inf)
            bias = bias.expand(-1, heads, -1, -1).reshape(-1, width, width)
        return HeadOrder(
            to_grid=(source * heads + head[:, None]).flatten(),
            to_tokens=slot.flatten(),
            qkv_to_grid=((source * 3 + part[:, None, None, None]) * heads + head[:, None]).flatten(),
            qkv_to_tokens=(slot[:, None] + (part * rows * heads * width)[:, None]).flatten(),
            bias=bias,
        )


_PLANS = WeakTensorKeyDictionary()
"""Plans by the very tensor of atom counts, which nothing writes into; they are let go with it."""


def pack(sizes: Int[np.ndarray, "B"], width: int) -> tuple[Int[np.ndarray, "B"], int]:
    """Put blocks of these sizes into rows of `width` slots: the first slot of each block, and the number of rows.

    Each row takes, again and again, the largest block left that still fits in. Rows with the same sizes are filled at
    once, so it costs as many steps as there are kinds of rows. Raises `ValueError` where a block is longer than a row.
    """
    if len(sizes) and not 0 < sizes.min() <= sizes.max() <= width:
        raise ValueError(f"pack: expected sizes from 1 to {width}, got {sizes.min()} to {sizes.max()}")
    order = np.argsort(sizes, kind="stable")
    left = np.bincount(sizes, minlength=width + 1)
    taken = np.concatenate(([0], left.cumsum()[:-1]))  # where in `order` the next block of each size is
    left = left.tolist()
    first, rows = np.empty(len(sizes), dtype=np.int64), 0
    largest = width
    while True:
        while largest and not left[largest]:
            largest -= 1
        if not largest:
            return first, rows
        row, free = {}, width
        size = largest
        while size:
            count = min(left[size], free // size)
            if count:
                row[size], free = count, free - count * size
            size = min(size - 1, free)
        repeat = min(left[size] // count for size, count in row.items())
        offset, numbers = 0, np.arange(rows, rows + repeat) * width
        for size, count in row.items():
            for _ in range(count):
                start = taken[size]
                first[order[start : start + repeat]] = numbers + offset
                taken[size], offset = start + repeat, offset + size
            left[size] -= count * repeat
        rows += repeat


class _GatherRows(torch.autograd.Function):
    """x[index], with the gather by `inverse` as its gradient.

    That is the gradient where rows that `index` repeats stand in empty slots, which nothing real depends on.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:  # noqa: ARG004
        return x.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return _GatherRows.apply(grad_outputs[0], inverse, index), None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        index, inverse = ctx.saved_tensors
        return _GatherRows.apply(grad_inputs[0], index, inverse)


def attend(qkv: Float[Tensor, "N D3"], plan: PaddingPlan, *, heads: int, dropout: float = 0.0) -> Float[Tensor, "N D"]:
    """Mix the atoms of each crystal: softmax(q kᵀ / √d) v for each head (Vaswani et al. 2017, eq. 1).

    `qkv` holds query, key and value of all heads. Computed in float32 on CPUs, where bfloat16 attention is slower.
    """
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    order = plan.order(heads)
    shape = (plan.num_rows, heads, plan.max_atoms, width // heads)
    plain = qkv.device.type == "cpu" and plan.max_atoms <= SMALL and dropout == 0.0
    if plain:
        qkv = qkv.float()
    grid = _GatherRows.apply(qkv.reshape(-1, shape[-1]), order.qkv_to_grid, order.qkv_to_tokens)
    query, key, value = grid.view(3, *shape).unbind()
    if plain:
        with torch.autocast("cpu", enabled=False):
            mixed = _plain_attention(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), order.bias)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=plan.attend, dropout_p=dropout)
    rows = _GatherRows.apply(mixed.reshape(-1, shape[-1]), order.to_tokens, order.to_grid)
    return rows.view(tokens, width)


def _plain_attention(
    query: Float[Tensor, "RH M K"],
    key: Float[Tensor, "RH M K"],
    value: Float[Tensor, "RH M K"],
    bias: Float[Tensor, "RH M M"] | None,
) -> Float[Tensor, "RH M K"]:
    # Twice as quick as scaled_dot_product_attention forwards and three times backwards on CPUs for twenty atoms.
    query = query * query.shape[-1] ** -0.5
    scores = query @ key.transpose(1, 2) if bias is None else torch.baddbmm(bias, query, key.transpose(1, 2))
    return scores.softmax(dim=-1) @ value
