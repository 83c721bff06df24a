"""Which elements, and how many atoms of each: an autoregressive model of compositions with hard constraints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from crystalvae.checks import check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.canonical import element_order
from crystalvae.errors import ConfigError, DataError

NEVER = -1e9
"""The logit of what cannot be."""


@dataclass(frozen=True, eq=False)
class Compositions:
    """Elements in the order of `element_order` with their numbers of atoms, padded with zeros to K elements."""

    elements: Int[Tensor, "B K"]
    counts: Int[Tensor, "B K"]

    @classmethod
    def of(cls, crystals: CrystalBatch) -> Compositions:
        """Count the elements of crystals, whatever the order of their atoms."""
        order = element_order().to(crystals.device)
        by_rank = order.argsort()
        table = torch.zeros(crystals.num_graphs, len(order), dtype=torch.long, device=crystals.device)
        table.index_put_(
            (crystals.batch, order[crystals.atom_types]), torch.ones_like(crystals.atom_types), accumulate=True
        )
        present = table > 0
        slots = int(present.sum(dim=1).max())
        # Elements that are present first, each group in order of rank.
        chosen = (~present).to(torch.int8).argsort(dim=1, stable=True)[:, :slots]
        counts = table.gather(1, chosen)
        return cls(elements=torch.where(counts > 0, by_rank[chosen], 0), counts=counts)

    def atom_types(self) -> Int[Tensor, "N"]:
        """Return the element of every atom, crystal by crystal, elements in order."""
        return torch.repeat_interleave(self.elements.flatten(), self.counts.flatten())


class CompositionModel(nn.Module):
    """p(composition | number of atoms, conditions) = Π p(element_k | before) · p(count_k | before, element_k).

    Elements come in the order of `element_order`, so that each composition has one sequence; a causal transformer reads
    the pairs so far. What cannot be (an element out of order, more atoms than are left, a last element that leaves
    atoms over) has probability 0 in training and in sampling.
    """

    def __init__(
        self,
        *,
        d_model: int,
        nhead: int,
        num_layers: int,
        dropout: float = 0.1,
        max_atoms: int = 64,
        max_num_elements: int = 100,
    ) -> None:
        super().__init__()
        if d_model < 1 or nhead < 1 or d_model % nhead:
            raise ConfigError(f"composition.d_model: got {d_model} with nhead {nhead}; expected a multiple of nhead")
        check_count("composition.num_layers", num_layers)
        self.max_atoms = max_atoms
        self.element_embedder = nn.Embedding(max_num_elements, d_model)
        self.count_embedder = nn.Embedding(max_atoms + 1, d_model)
        self.remaining_embedder = nn.Embedding(max_atoms + 1, d_model)
        self.size_embedder = nn.Embedding(max_atoms + 1, d_model)
        self.place_embedder = nn.Embedding(max_num_elements, d_model)
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, 4 * d_model, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(
            layer, num_layers, norm=nn.LayerNorm(d_model), enable_nested_tensor=False
        )
        self.element_head = nn.Linear(d_model, max_num_elements)
        self.count_head = nn.Sequential(
            nn.Linear(2 * d_model, d_model), nn.GELU(), nn.Dropout(dropout), nn.Linear(d_model, max_atoms + 1)
        )
        self.last_rank = int(element_order()[1:max_num_elements].max())

    @property
    def rank(self) -> Int[Tensor, "E"]:
        """Place of each element in `element_order`; no buffer, as averaging weights would average it too."""
        return element_order()[: self.element_head.out_features].to(self.element_head.weight.device)

    def negative_log_likelihood(
        self, compositions: Compositions, conditions: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B"]:
        """Return -log p of each composition in nats, given its number of atoms and its conditions."""
        elements, counts = compositions.elements, compositions.counts
        sizes = counts.sum(dim=1)
        self._check_sizes(sizes)
        before = torch.cat((torch.zeros_like(counts[:, :1]), counts.cumsum(dim=1)[:, :-1]), dim=1)
        remaining = sizes[:, None] - before
        hidden = self._hidden(elements[:, :-1], counts[:, :-1], remaining, sizes, conditions)
        previous = torch.cat((torch.full_like(elements[:, :1], -1), self.rank[elements[:, :-1]]), dim=1)
        element_logits = self._element_logits(hidden, previous)
        count_logits = self._count_logits(hidden, elements, remaining)
        loss = F.cross_entropy(element_logits.flatten(0, 1), elements.flatten(), reduction="none")
        loss = loss + F.cross_entropy(count_logits.flatten(0, 1), counts.flatten(), reduction="none")
        real = (counts > 0).flatten()
        return torch.where(real, loss, torch.zeros_like(loss)).view_as(counts).sum(dim=1)

    @torch.no_grad()
    def sample(
        self,
        num_atoms: Int[Tensor, "B"],
        conditions: Float[Tensor, "B D"],
        *,
        generator: torch.Generator,
        temperature: float = 1.0,
        chemical_system: Sequence[int] | None = None,
        subsystems: bool = False,
    ) -> Compositions:
        """Draw one composition for each number of atoms.

        `chemical_system` lists atomic numbers: no other element appears, and every one of them does unless
        `subsystems`. Lower `temperature` (> 0) draws likelier compositions. Raises `ConfigError` where that is
        impossible, such as more elements than atoms.
        """
        if not temperature > 0:
            raise ConfigError(f"composition_temperature: got {temperature}; expected a number above 0")
        self._check_sizes(num_atoms)
        allowed = self._allowed(chemical_system)
        required = allowed.nonzero().flatten().tolist() if chemical_system is not None and not subsystems else []
        if required and int(num_atoms.min()) < len(required):
            raise ConfigError(
                f"chemical_system: {len(required)} elements do not fit into {int(num_atoms.min())} atoms; ask for "
                "larger num_atoms, or set chemical_system_subsets=true"
            )
        sequence = sorted(required, key=lambda z: int(self.rank[z]))
        elements = torch.zeros(len(num_atoms), 0, dtype=torch.long, device=num_atoms.device)
        counts, remaining = elements.clone(), num_atoms[:, None].clone()
        previous = torch.full_like(num_atoms, -1)
        while bool((remaining[:, -1] > 0).any()):
            place = elements.shape[1]
            hidden = self._hidden(elements, counts, remaining, num_atoms, conditions)[:, -1:]
            logits = self._element_logits(hidden, previous[:, None])[:, 0].masked_fill(~allowed, NEVER)
            forced = torch.full_like(num_atoms, sequence[place]) if sequence else None
            chosen = draw_categories(logits, temperature, generator) if forced is None else forced
            left = remaining[:, -1]
            follows = (allowed & (self.rank > self.rank[chosen][:, None])).any(dim=1)
            spare = torch.full_like(left, len(sequence) - place - 1) if sequence else torch.zeros_like(left)
            last = (spare == 0) if sequence else ~follows
            amounts = self._count_logits(hidden, chosen[:, None], left[:, None])[:, 0]
            numbers = torch.arange(self.max_atoms + 1, device=left.device)
            amounts = amounts.masked_fill(numbers > (left - spare)[:, None], NEVER)
            amounts = amounts.masked_fill(last[:, None] & (numbers != left[:, None]), NEVER)
            drawn = torch.where(left > 0, draw_categories(amounts, temperature, generator), 0)
            previous = torch.where(left > 0, self.rank[chosen], previous)
            elements = torch.cat((elements, torch.where(left > 0, chosen, 0)[:, None]), dim=1)
            counts = torch.cat((counts, drawn[:, None]), dim=1)
            remaining = torch.cat((remaining, (left - drawn)[:, None]), dim=1)
        return Compositions(elements=elements, counts=counts)

    def _allowed(self, chemical_system: Sequence[int] | None) -> Bool[Tensor, "E"]:
        allowed = torch.ones_like(self.rank, dtype=torch.bool)
        allowed[0] = False
        if chemical_system is not None:
            wanted = torch.tensor(sorted(set(chemical_system)), device=allowed.device)
            if len(wanted) == 0 or int(wanted.min()) < 1 or int(wanted.max()) >= len(allowed):
                raise ConfigError(
                    f"chemical_system: got atomic numbers {list(chemical_system)}; "
                    f"expected some of 1 to {len(allowed) - 1}"
                )
            allowed[:] = False
            allowed[wanted] = True
        return allowed

    def _check_sizes(self, sizes: Int[Tensor, "B"]) -> None:
        largest = int(sizes.max())
        if largest > self.max_atoms:
            raise DataError(
                f"{largest} atoms in a crystal; the composition model was built for at most {self.max_atoms} "
                "(prior_module.prior.composition.max_atoms in training)"
            )

    def _hidden(
        self,
        elements: Int[Tensor, "B P"],
        counts: Int[Tensor, "B P"],
        remaining: Int[Tensor, "B K"],
        sizes: Int[Tensor, "B"],
        conditions: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B K D"]:
        """Read the P = K - 1 pairs so far; the output at each of K places sees what is before it."""
        pairs = self.element_embedder(elements) + self.count_embedder(counts)
        tokens = torch.cat(
            (
                torch.zeros_like(pairs[:, :1]) if pairs.shape[1] else pairs.new_zeros(len(sizes), 1, pairs.shape[2]),
                pairs,
            ),
            dim=1,
        )
        places = torch.arange(tokens.shape[1], device=tokens.device)
        context = (self.size_embedder(sizes) + conditions)[:, None]
        tokens = tokens + context + self.remaining_embedder(remaining) + self.place_embedder(places)
        mask = torch.ones(len(places), len(places), dtype=torch.bool, device=tokens.device).triu(1)
        return self.transformer(tokens, mask=mask)

    def _element_logits(self, hidden: Float[Tensor, "B K D"], previous: Int[Tensor, "B K"]) -> Float[Tensor, "B K E"]:
        logits = self.element_head(hidden).float()
        impossible = (self.rank <= previous[..., None]) | (torch.arange(len(self.rank), device=logits.device) == 0)
        return logits.masked_fill(impossible, NEVER)

    def _count_logits(
        self, hidden: Float[Tensor, "B K D"], elements: Int[Tensor, "B K"], remaining: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B K C"]:
        logits = self.count_head(torch.cat((hidden, self.element_embedder(elements)), dim=-1)).float()
        numbers = torch.arange(self.max_atoms + 1, device=logits.device)
        impossible = (numbers > remaining[..., None]) | (numbers == 0)
        last = self.rank[elements] == self.last_rank  # nothing may follow, so it takes what is left
        return logits.masked_fill(impossible | (last[..., None] & (numbers != remaining[..., None])), NEVER)


def draw_categories(logits: Float[Tensor, "B C"], temperature: float, generator: torch.Generator) -> Int[Tensor, "B"]:
    """Draw one category per row, at a temperature; those with the logit `NEVER` are never drawn."""
    scaled = torch.where(logits > NEVER / 2, logits / temperature, NEVER)
    probabilities = torch.softmax(scaled, dim=-1).to(generator.device)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)
