"""How alike elements are in where they sit: by the periodic table, or learned from which crystals share their sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystalvae.errors import DataError
from crystalvae.prior_module.element_features import periodic_table
from crystalvae.prior_module.genes import KnownGenes

ROW_WEIGHT = 0.7
"""What a difference of one period counts, against one of a group of the periodic table."""
SHARPNESS = 1.5
MAX_ELEMENTS = 12
_LEARNED = 14


class ElementSimilarity(nn.Module):
    """Votes exp(-d) of crystals for each other, d the sum over their elements k of s_k |E(one) - E(other)|_1.

    To begin with, E is the group and 0.7 times the period of an element, times `sharpness`, and all s_k are 1; `fit`
    moves both, and adds more coordinates to E. s_k depends on the number of elements and on the place k among them.
    """

    def __init__(self, *, sharpness: float = SHARPNESS, learned_coordinates: int = _LEARNED) -> None:
        super().__init__()
        groups, periods = periodic_table()
        known = sharpness * torch.stack((groups.float(), ROW_WEIGHT * periods), dim=1)
        self.coordinates = nn.Parameter(torch.cat((known, known.new_zeros(len(known), learned_coordinates)), dim=1))
        self.log_scales = nn.Parameter(torch.zeros(MAX_ELEMENTS + 1, MAX_ELEMENTS))

    def distances(self) -> Float[Tensor, "E E"]:
        """Return |E(one) - E(other)|_1 of all elements, by atomic number."""
        return (self.coordinates[:, None] - self.coordinates).abs().sum(dim=-1)

    def log_votes(
        self,
        elements: Int[Tensor, "Q K"],
        others: Int[Tensor, "N K"],
        apart: Float[Tensor, "E E"] | None = None,
    ) -> Float[Tensor, "Q N"]:
        """Return -d of each pair of crystals with K elements each; `apart` are `distances`, where they are known."""
        apart = self.distances() if apart is None else apart
        count = elements.shape[1]
        if count > MAX_ELEMENTS:
            raise DataError(f"{count} elements in a crystal; expected at most {MAX_ELEMENTS}")
        scales = self.log_scales[count].exp()
        terms = [scales[k] * apart[elements[:, k]][:, others[:, k]] for k in range(count)]
        return -torch.stack(terms).sum(dim=0)

    def fit(
        self, known: Sequence[KnownGenes], *, epochs: int = 6, learning_rate: float = 0.05, seed: int = 0
    ) -> list[float]:
        """Learn from crystals that have each other to vote for them; returns the mean -log p of each epoch, in nats.

        p is what all others with the same numbers of atoms say of a crystal's pattern; those with a pattern of their
        own are left out.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # all zeros would stay so
            learned = self.coordinates[:, 2:]
            learned += 0.05 * torch.randn(learned.shape, generator=generator)
        optimizer = torch.optim.Adam(
            [{"params": [self.coordinates]}, {"params": [self.log_scales], "lr": 0.4 * learning_rate}], lr=learning_rate
        )
        results = []
        for _ in range(epochs):
            jobs = [
                (entry, rows)
                for entry in known
                for rows in torch.randperm(len(entry.elements), generator=generator).split(256)
            ]
            total, seen, waiting = 0.0, 0, 0
            for index in torch.randperm(len(jobs), generator=generator).tolist():
                entry, rows = jobs[index]
                losses = self._losses(entry, rows)
                if not len(losses):
                    continue
                (losses.sum() / 256).backward()
                total, seen, waiting = total + float(losses.detach().sum()), seen + len(losses), waiting + len(losses)
                if waiting >= 256:
                    optimizer.step()
                    optimizer.zero_grad()
                    waiting = 0
            optimizer.step()
            optimizer.zero_grad()
            results.append(total / max(1, seen))
        return results

    def _losses(self, entry: KnownGenes, rows: Int[Tensor, "Q"]) -> Float[Tensor, "T"]:
        same = (entry.pattern_numbers[rows][:, None] == entry.pattern_numbers).scatter(1, rows[:, None], value=False)
        told = same.any(dim=1)
        if not bool(told.any()):
            return self.coordinates.new_zeros(0)
        rows, same = rows[told], same[told]
        votes = self.log_votes(entry.elements[rows], entry.elements).scatter(1, rows[:, None], -1e9)
        return (votes.logsumexp(dim=1) - votes.masked_fill(~same, -1e9).logsumexp(dim=1)).clamp_max(20.0)
