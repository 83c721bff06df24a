"""A recurrent network along the list of atoms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from crystalvae.checks import check_count, check_dropout
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.layers.attention import PaddingPlan
from crystalvae.vae_module.layers.modulation import AdaptiveLayerNorm
from crystalvae.vae_module.layers.precision import full_precision


class AtomGRU(nn.Module):
    """A bidirectional GRU (Cho et al. 2014) over the atoms of each crystal in the order in which they are listed.

    Each direction has `d_model` / 2 numbers. Crystals are packed by size, so that no padding is read and each direction
    starts at the crystal's own end. Its input is added to its output, and the sum normalised. Dropout acts on the input
    and between layers. Computed in float32 also under bf16-mixed. The order of the atoms matters: permuting them does
    not permute the output.
    """

    def __init__(
        self, *, part: str, d_model: int, num_layers: int, dropout: float, d_condition: int | None = None
    ) -> None:
        super().__init__()
        check_count(f"{part}.num_layers", num_layers)
        check_dropout(f"{part}.dropout", dropout)
        if d_model % 2:
            raise ConfigError(f"{part}.d_model: got {d_model}; expected an even number, half for each direction")
        self.dropout = nn.Dropout(dropout)
        between = dropout if num_layers > 1 else 0.0
        self.gru = nn.GRU(d_model, d_model // 2, num_layers, batch_first=True, bidirectional=True, dropout=between)
        self.norm = AdaptiveLayerNorm(d_model, d_condition=d_condition)

    def forward(
        self, tokens: Float[Tensor, "N D"], crystals: CrystalBatch, condition: Float[Tensor, "N C"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Transform flat tokens; `condition` holds, for each atom, the vector of its crystal."""
        plan = PaddingPlan.laid_out(crystals, packed=False)
        with full_precision(tokens), self._differentiable():
            tokens = tokens.float()
            sizes = crystals.num_atoms.cpu()
            packed = pack_padded_sequence(plan.pad(self.dropout(tokens)), sizes, batch_first=True, enforce_sorted=False)
            hidden, _ = self.gru(packed)
            grid, _ = pad_packed_sequence(hidden, batch_first=True, total_length=plan.max_atoms)
        return self.norm(tokens + plan.flatten(grid), condition)

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        # cuDNN's GRU has no backward pass in evaluation mode, where research code may well ask for gradients.
        before = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = before and (self.training or not torch.is_grad_enabled())
        try:
            yield
        finally:
            torch.backends.cudnn.enabled = before
