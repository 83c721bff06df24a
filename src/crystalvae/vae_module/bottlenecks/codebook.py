"""Codebooks: vectors that continuous ones are replaced with, learnt as moving averages or by gradients."""

from __future__ import annotations

import torch
import torch.distributed
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystalvae.checks import check_number
from crystalvae.data.training_batch import TrainingBatch


class Codebooks(nn.Module):
    """G codebooks of K codes, each for its share W = L / G of a vector of L numbers (product quantisation).

    `codes` (G, K, W) are a buffer that `update` moves where `ema`, and a parameter that gradients move otherwise.
    `usage` (G, K) is the moving average of how many atoms of a (global) batch took each code, with `decay` per step;
    its shares are the frequencies that `draw` draws from. Source: van den Oord et al., "Neural Discrete Representation
    Learning" (2017), section 3 and appendix A.1; Jégou et al., "Product Quantization for Nearest Neighbor Search"
    (2011).
    """

    codes: Tensor
    usage: Tensor

    def __init__(self, *, count: int, size: int, width: int, ema: bool, decay: float) -> None:
        super().__init__()
        self.count, self.size, self.width, self.ema, self.decay = count, size, width, ema, decay
        codes = torch.empty(count, size, width).uniform_(-1 / size, 1 / size)
        if ema:
            self.register_buffer("codes", codes)
        else:
            self.codes = nn.Parameter(codes)
        self.register_buffer("usage", torch.zeros(count, size))

    def nearest(self, vectors: Float[Tensor, "N L"]) -> Int[Tensor, "N G"]:
        """Return the number of the nearest code in each codebook."""
        parts = self._parts(vectors.detach()).transpose(0, 1)
        codes = self.codes.detach()
        # |z - e|² without |z|², which is the same for all codes
        distances = codes.square().sum(dim=-1)[:, None, :] - 2 * parts @ codes.transpose(1, 2)
        return distances.argmin(dim=-1).T

    def lookup(self, indices: Int[Tensor, "N G"]) -> Float[Tensor, "N L"]:
        """Return the codes of these numbers, side by side."""
        books = torch.arange(self.count, device=indices.device)
        return self.codes[books, indices].flatten(1)

    def frequencies(self) -> Float[Tensor, "G K"]:
        """Return the share of atoms that took each code, lately; all the same before any training."""
        total = self.usage.sum(dim=-1, keepdim=True)
        return torch.where(total > 0, self.usage / total.clamp_min(1e-12), torch.full_like(self.usage, 1 / self.size))

    def draw(self, atoms: int, *, temperature: float, generator: torch.Generator | None) -> Int[Tensor, "N G"]:
        """Draw codes from their frequencies p, each codebook and atom on its own, with p^(1 / temperature).

        At temperature 0 it is the most frequent code each time.
        """
        check_number("temperature", temperature)
        shares = self.frequencies()
        if temperature == 0:
            return shares.argmax(dim=-1).expand(atoms, -1)
        logs = shares.clamp_min(1e-30).log() / temperature
        weights = torch.where(shares > 0, (logs - logs.amax(dim=-1, keepdim=True)).exp(), torch.zeros_like(logs))
        source = weights if generator is None else weights.to(generator.device)
        return torch.multinomial(source, atoms, replacement=True, generator=generator).T.to(weights.device)

    # ---- learning ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update(
        self, vectors: Float[Tensor, "N L"], indices: Int[Tensor, "N G"], batch: TrainingBatch, *, revive: float | None
    ) -> None:
        """Count who took which code; where `ema`, move each code towards the mean of those who took it.

        With n atoms that took a code, their sum s and its usage u: u ← γu + (1 - γ)n, e ← e + (1 - γ)(s - n e) / u, the
        same as the ratio of moving averages of s and n. Afterwards a code that is used less than `revive` times as much
        as the average code is put where a random atom of the batch is. All ranks do the same: sums are over the
        global batch, and the atoms are drawn by the batch's own generator.
        """
        counts, sums = self._sums(vectors, indices)
        share = 1.0 - self.decay
        usage = self.decay * self.usage + share * counts
        if self.ema:
            moves = sums - counts[..., None] * self.codes
            self.codes += share * moves / usage.clamp_min(1e-12)[..., None]
        if revive is not None:
            mean = usage.mean(dim=-1, keepdim=True)
            dead = usage < revive * mean
            self.codes.copy_(torch.where(dead[..., None], self._random_parts(vectors, batch), self.codes))
            usage = torch.where(dead, mean, usage)
        self.usage.copy_(usage)

    def _parts(self, vectors: Float[Tensor, "N L"]) -> Float[Tensor, "N G W"]:
        return vectors.view(-1, self.count, self.width)

    def _sums(
        self, vectors: Float[Tensor, "N L"], indices: Int[Tensor, "N G"]
    ) -> tuple[Float[Tensor, "G K"], Float[Tensor, "G K W"]]:
        rows = (indices + self.size * torch.arange(self.count, device=indices.device)).flatten()
        parts = torch.cat((self._parts(vectors), vectors.new_ones(len(vectors), self.count, 1)), dim=-1)
        sums = vectors.new_zeros(self.count * self.size, self.width + 1).index_add(0, rows, parts.flatten(0, 1))
        sums = _over_ranks(sums).view(self.count, self.size, -1)
        return sums[..., -1], sums[..., :-1]

    def _random_parts(self, vectors: Float[Tensor, "N L"], batch: TrainingBatch) -> Float[Tensor, "G K W"]:
        """Return what random atoms of the global batch are, another atom for each code."""
        shape, generator = (self.count, self.size), batch.generator()
        atoms = torch.randint(batch.total_atoms, shape, generator=generator, device=vectors.device) - batch.atom_offset
        here = (atoms >= 0) & (atoms < len(vectors))
        books = torch.arange(self.count, device=vectors.device)[:, None]
        chosen = self._parts(vectors)[atoms.clamp(0, len(vectors) - 1), books]
        return _over_ranks(torch.where(here[..., None], chosen, torch.zeros_like(chosen)))


def _over_ranks(values: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
