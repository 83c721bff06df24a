"""Which of the genes that known crystals propose for a formula is right, judged by the structures they would give."""

from __future__ import annotations

import logging
import math

import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.symmetric.space_groups import NUM_SPACE_GROUPS
from crystalvae.data.symmetric.tables import space_group_tables
from crystalvae.prior_module.analogues import Analogues, covalent_radii
from crystalvae.prior_module.element_features import ElementEmbedder
from crystalvae.prior_module.gene_graphs import FACTS, GeneGraphs, proposals
from crystalvae.prior_module.gene_lookup import GeneLookup
from crystalvae.prior_module.gene_steps import Formula
from crystalvae.prior_module.genes import Gene, Genes

log = logging.getLogger(__name__)

BASES = 24
RANKED = 14
"""Genes of one formula that are compared; those with fewer votes stay behind them."""
_TRAINED_ON = 8
_FARTHEST = 8.0
_NOTHING = 40.0
"""e to the minus 40 is nothing; smaller numbers would be denormal, with which matrix products are ten times slower."""


class GeneRanker(nn.Module):
    """A message-passing network over the orbits of a structure, whose score is added to the votes for its gene.

    An orbit is its element, the element that stood there in the known crystal, its site symmetry and multiplicity;
    neighbours speak through filters of their distance in Å and of its ratio to the sum of covalent radii (as in
    SchNet, Schütt et al. 2017). The probability of a gene, among those proposed for its formula, is the softmax of
    scores. Until it was fitted it says what the votes say.
    """

    fitted: Tensor

    def __init__(self, *, d_model: int = 64, num_layers: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.element = ElementEmbedder(d_model=d_model)
        self.former_element = ElementEmbedder(d_model=d_model)
        self.symmetry = nn.Embedding(len(space_group_tables().symmetries), d_model)
        self.space_group = nn.Embedding(NUM_SPACE_GROUPS + 1, d_model)
        for embedder in (self.symmetry, self.space_group):
            nn.init.normal_(embedder.weight, std=0.1)
        self.multiplicity = nn.Linear(1, d_model)
        self.layers = nn.ModuleList(_Layer(d_model, dropout) for _ in range(num_layers))
        self.votes = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.head = nn.Sequential(
            nn.Linear(2 * d_model + len(FACTS) + 2, d_model), nn.SiLU(), nn.Dropout(dropout), nn.Linear(d_model, 1)
        )
        nn.init.zeros_(self.head[-1].weight)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.head[-1].bias)  # pyright: ignore[reportArgumentType]
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("fitted", torch.tensor(0.0))

    def forward(self, graphs: GeneGraphs) -> Float[Tensor, "C"]:
        """Return log p of each gene, in nats."""
        owner = torch.arange(len(graphs.orbits), device=graphs.orbits.device).repeat_interleave(graphs.orbits)
        size = graphs.multiplicity.float()[:, None]
        hidden = self.element(graphs.element) + self.former_element(graphs.former_element)
        hidden = self.dropout(hidden + self.symmetry(graphs.symmetry) + self.multiplicity(size.log()))
        filters = _filters(graphs)
        for layer in self.layers:
            hidden = layer(hidden, graphs.neighbours, filters)
        atoms = size.new_zeros(len(graphs.orbits), 1).index_add(0, owner, size)
        mean = hidden.new_zeros(len(graphs.orbits), hidden.shape[1]).index_add(0, owner, hidden * size) / atoms
        largest = torch.segment_reduce(hidden, "max", lengths=graphs.orbits)
        genes = graphs.formula.bincount()[graphs.formula].float().log()
        facts = torch.cat((graphs.facts[:, :2], graphs.facts[:, 2:3].log1p(), graphs.facts[:, 3:]), dim=1)
        numbers = torch.cat((facts.clamp(-12, 12) / 4, graphs.volume.log()[:, None] - 3, genes[:, None]), dim=1)
        said = torch.cat((mean + self.space_group(graphs.space_group), largest, numbers), dim=1)
        scores = graphs.facts[:, :2].clamp_min(-20) @ self.votes + self.head(said)[:, 0]
        return log_softmax_of(scores, graphs.formula)

    def fit(
        self,
        crystals: CrystalBatch,
        known: Analogues,
        lookup: GeneLookup,
        *,
        epochs: int = 6,
        batch_size: int = 96,
        learning_rate: float = 2e-3,
        seed: int = 0,
    ) -> list[float]:
        """Learn from known crystals, each in turn left out of those that vote; returns -log p of each epoch, in nats.

        Only those count for which others propose the true gene. Weights are averaged at the end of the run.
        """
        truth = Genes.of(crystals).to_list()
        found = proposals(lookup, truth, count=_TRAINED_ON, leave_out=True)
        right = torch.tensor([proposal.gene == truth[proposal.formula] for proposal in found], dtype=torch.bool)
        graphs = GeneGraphs.build(found, known, lattices=crystals.lattices)
        rows = graphs.formula[right]
        rows = rows[graphs.formula.bincount()[rows] > 1]
        generator = torch.Generator().manual_seed(seed)
        parameters = [parameter.requires_grad_() for parameter in self.parameters()]
        averaged = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05)
        total, step, results = epochs * math.ceil(len(rows) / batch_size), 0, []
        self.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for _ in range(epochs):
                losses = 0.0
                batches = rows[torch.randperm(len(rows), generator=generator)].split(batch_size)
                console = Console(stderr=True)
                for batch in track(batches, "learning to rank genes", console=console, transient=True):
                    some, places = graphs.of_formulas(batch)
                    loss = -self(some)[right[places]].mean()
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate * _schedule(step, total)
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(parameters, 1.0)
                    optimizer.step()
                    step += 1
                    with torch.no_grad():
                        torch._foreach_lerp_(averaged, parameters, 1 - min(0.995, (1 + step) / (10 + step)))
                    losses += float(loss.detach()) * len(batch)
                results.append(losses / max(1, len(rows)))
        with torch.no_grad():
            for parameter, average in zip(parameters, averaged, strict=True):
                parameter.copy_(average)
            self.fitted.fill_(1.0)
        self.requires_grad_(requires_grad=False).eval()
        return results


class _Layer(nn.Module):
    """What neighbours say, added to each orbit; then a feed-forward layer."""

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.message = nn.Linear(d_model, d_model)
        self.filter = nn.Linear(2 * BASES, d_model)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(d_model), nn.Linear(d_model, 2 * d_model), nn.SiLU(), nn.Dropout(dropout),
            nn.Linear(2 * d_model, d_model),
        )  # fmt: skip

    def forward(
        self,
        hidden: Float[Tensor, "O D"],
        neighbours: Int[Tensor, "O K"],
        filters: tuple[Float[Tensor, "O K F"], Float[Tensor, "O K"]],
    ) -> Float[Tensor, "O D"]:
        bases, weight = filters
        heard = self.message(self.norm(hidden)).index_select(0, neighbours.flatten()).view(*neighbours.shape, -1)
        hidden = hidden + (self.filter(bases) * weight[..., None] * heard).sum(dim=1)
        return hidden + self.feed_forward(hidden)


class RankedLookup(GeneLookup):
    """Genes of a formula as known crystals vote for them, the first ones put in order by a `GeneRanker`."""

    def __init__(self, known: Analogues, ranker: GeneRanker) -> None:
        super().__init__(known.genes(), known.similarity)
        self.analogues, self.ranker = known, ranker

    @torch.no_grad()
    def likeliest(self, formula: Formula, *, count: int | None = None) -> list[tuple[Gene, float]]:
        """Return different genes with log p, the likeliest first; none where no crystal votes."""
        voted = super().likeliest(formula)
        first = [gene for gene, _ in voted[:RANKED]]
        if len(first) < 2 or len(formula) > 12:
            return voted[:count]
        found = proposals(self, first[:1], count=RANKED)
        log_p = self.ranker(GeneGraphs.build(found, self.analogues)).tolist()
        share = math.log(sum(math.exp(p) for _, p in voted[: len(found)]))
        order = sorted(zip(found, log_p, strict=True), key=lambda entry: -entry[1])
        ranked = [(proposal.gene, p + share) for proposal, p in order]
        return [*ranked, *voted[len(found) :]][:count]


def log_softmax_of(scores: Float[Tensor, "C"], owner: Int[Tensor, "C"]) -> Float[Tensor, "C"]:
    """Return log softmax over the entries of each owner (counted from 0)."""
    size = int(owner.max()) + 1
    largest = scores.detach().new_full((size,), -torch.inf).scatter_reduce(0, owner, scores.detach(), "amax")
    sums = scores.new_zeros(size).index_add(0, owner, (scores - largest[owner]).exp())
    return scores - (sums.log() + largest)[owner]


def _filters(graphs: GeneGraphs) -> tuple[Float[Tensor, "O K F"], Float[Tensor, "O K"]]:
    """Return Gaussians of distances and of their ratios to sums of radii, and how much a neighbour counts."""
    distances = graphs.distances.clamp_max(100.0)
    radii = covalent_radii().to(distances.device)[graphs.element]
    ratios = distances / (radii[:, None] + radii[graphs.neighbours])
    near = torch.linspace(0.0, _FARTHEST, BASES, device=distances.device)
    touching = torch.linspace(0.6, 2.5, BASES, device=distances.device)
    parts = ((distances[..., None] - near) / 0.35, (ratios[..., None] - touching) / 0.085)
    bases = [torch.exp(-part.square().clamp_max(_NOTHING)) for part in parts]
    return torch.cat(bases, dim=-1), torch.exp(-(distances / 4).square().clamp_max(_NOTHING))


def _schedule(step: int, total: int, warmup: int = 200) -> float:
    return min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / total)))
