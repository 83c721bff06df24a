"""Which symmetry, which elements and which sites: an autoregressive model of genes with exact constraints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from crystalvae.checks import check_count
from crystalvae.data.symmetric.space_groups import NUM_SPACE_GROUPS
from crystalvae.data.symmetric.tables import MAX_SITES, space_group_tables
from crystalvae.data.symmetry import CRYSTAL_SYSTEMS, crystal_system_indices
from crystalvae.errors import ConfigError, DataError
from crystalvae.prior_module.composition_model import NEVER, draw_categories
from crystalvae.prior_module.element_features import ElementEmbedder
from crystalvae.prior_module.gene_steps import Sequences, State, Steps, Wanted, bits, choice_masks, group_mask
from crystalvae.prior_module.genes import Gene


class GeneModel(nn.Module):
    """p(gene | number of atoms, conditions, and maybe formula), step by step.

    p(space group) · Π p(element_k | before) · p(site_k | before, element_k) over the orbits k of a crystal, elements in
    the order of `element_order`, the sites of one element in the order of letters. A causal transformer reads the
    formula (where it is given), the group and the orbits so far. What cannot be (see `gene_steps`) has probability 0,
    in training and in sampling, and everything else adds up to 1. Sites are known by their group and letter and by
    multiplicity, freedom and site symmetry, which are shared between groups.
    """

    def __init__(
        self,
        *,
        d_model: int,
        nhead: int,
        num_layers: int,
        dropout: float = 0.1,
        max_atoms: int = 64,
    ) -> None:
        super().__init__()
        if d_model < 1 or nhead < 1 or d_model % nhead:
            raise ConfigError(f"gene.d_model: got {d_model} with nhead {nhead}; expected a multiple of nhead")
        check_count("gene.num_layers", num_layers)
        tables = space_group_tables()
        self.max_atoms, self.nhead = max_atoms, nhead
        self.element_embedder = ElementEmbedder(d_model=d_model)
        self.count_embedder = nn.Embedding(max_atoms + 1, d_model)
        self.need_embedder = nn.Embedding(max_atoms + 1, d_model)
        self.left_embedder = nn.Embedding(max_atoms + 1, d_model)
        self.size_embedder = nn.Embedding(max_atoms + 1, d_model)
        self.place_embedder = nn.Embedding(max_atoms + 1, d_model)
        self.role_embedder = nn.Embedding(4, d_model)
        self.group_embedder = nn.Embedding(NUM_SPACE_GROUPS + 1, d_model)
        self.system_embedder = nn.Embedding(len(CRYSTAL_SYSTEMS), d_model)
        self.site_embedder = nn.Embedding(len(tables.multiplicity), d_model)
        self.multiplicity_embedder = nn.Embedding(int(tables.multiplicity.max()) + 1, d_model)
        self.freedom_embedder = nn.Embedding(4, d_model)
        self.symmetry_embedder = nn.Embedding(len(tables.symmetries), d_model)
        for embedder in (self.site_embedder, self.group_embedder):  # most of them are seen rarely
            nn.init.normal_(embedder.weight, std=0.1)
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, 4 * d_model, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(
            layer, num_layers, norm=nn.LayerNorm(d_model), enable_nested_tensor=False
        )
        self.group_head = nn.Sequential(nn.Linear(d_model, d_model), nn.GELU(), nn.Dropout(dropout))
        self.group_scores = nn.Linear(d_model, NUM_SPACE_GROUPS)
        self.element_head = nn.Linear(d_model, d_model)
        self.element_bias = nn.Parameter(torch.zeros(self.element_embedder.num_elements))
        self.site_head = nn.Sequential(
            nn.Linear(3 * d_model, d_model), nn.GELU(), nn.Dropout(dropout), nn.Linear(d_model, d_model)
        )
        self.site_bias = nn.Parameter(torch.zeros(len(tables.multiplicity)))

    # ---- likelihood --------------------------------------------------------------------------------------------------

    def negative_log_likelihood(self, steps: Steps, conditions: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
        """Return -log p of each gene in nats, given what `steps` says is given (see `step_through`) and conditions."""
        self._check_sizes(steps.num_atoms)
        real = steps.sites >= 0
        memory, hidden = self._hidden(steps, conditions)
        group_logits = self._group_logits(memory, steps.group_mask)
        loss = F.cross_entropy(group_logits, steps.space_groups - 1, reduction="none")
        # Where nothing is left to come, some class must be allowed, and is not counted.
        elements = self.element_logits(hidden, steps.element_mask | ~real[..., None])
        sites = self._site_logits(hidden, steps, steps.site_mask | ~real[..., None])
        of_elements = F.cross_entropy(elements.flatten(0, 1), steps.elements.flatten(), reduction="none")
        of_sites = F.cross_entropy(sites.flatten(0, 1), steps.sites.clamp_min(0).flatten(), reduction="none")
        return loss + ((of_elements + of_sites).view_as(real) * real).sum(dim=1)

    def _hidden(
        self, steps: Sequences, conditions: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B P D"]]:
        """Return what the space group is read from, and what the orbit at each of P places is read from."""
        formula, present = steps.formula_elements, steps.formula_elements > 0
        width = formula.shape[1]
        context = (self.size_embedder(steps.num_atoms) + conditions)[:, None]
        role = self.role_embedder.weight
        prefix = self.element_embedder(formula) + self.count_embedder(steps.formula_counts) + role[0]
        start = role[1] + role[2] * present.any(dim=1)[:, None, None]
        group = self.group_embedder(steps.space_groups) + self.system_embedder(
            crystal_system_indices(steps.space_groups).clamp_min(0)
        )
        rows = space_group_tables(formula.device).first_site[steps.space_groups - 1, None] + steps.sites.clamp_min(0)
        orbits = self.element_embedder(steps.elements[:, :-1]) + F.embedding(rows[:, :-1], self.site_vectors())
        places = torch.arange(steps.elements.shape[1], device=formula.device)
        body = torch.cat((group[:, None] + role[3], orbits + group[:, None]), dim=1)
        body = body + self.left_embedder(steps.left) + self.place_embedder(places)
        tokens = torch.cat((prefix, start, body), dim=1) + context
        ahead = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).triu(1)
        ahead[:width, :width] = False  # the elements of the formula see each other
        padding = torch.cat((~present, present.new_zeros(len(present), tokens.shape[1] - width)), dim=1)
        # Padding sees itself, as a row that sees nothing would be NaN.
        hidden_from = ahead | padding[:, None] & ~torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        output = self.transformer(tokens, mask=hidden_from.repeat_interleave(self.nhead, dim=0))
        return output[:, width], output[:, width + 1 :]

    def site_vectors(self) -> Float[Tensor, "S D"]:
        """Return the vectors of all sites of all groups."""
        tables = space_group_tables(self.site_bias.device)
        return (
            self.site_embedder.weight
            + self.multiplicity_embedder(tables.multiplicity)
            + self.freedom_embedder(tables.freedom)
            + self.symmetry_embedder(tables.symmetry)
        )

    def _group_logits(self, hidden: Float[Tensor, "B D"], mask: Bool[Tensor, "B 230"]) -> Float[Tensor, "B 230"]:
        return self.group_scores(self.group_head(hidden)).float().masked_fill(~mask, NEVER)

    def element_logits(self, hidden: Float[Tensor, "B P D"], mask: Bool[Tensor, "B P E"]) -> Float[Tensor, "B P E"]:
        """Score the elements that may come next."""
        scale = hidden.shape[-1] ** -0.5
        scores = self.element_head(hidden) @ self.element_embedder.vectors().T * scale + self.element_bias
        return scores.float().masked_fill(~mask, NEVER)

    def _site_logits(
        self, hidden: Float[Tensor, "B P D"], steps: Steps, mask: Bool[Tensor, "B P 27"]
    ) -> Float[Tensor, "B P 27"]:
        return self.site_scores(hidden, steps.space_groups, steps.elements, steps.needs).masked_fill(~mask, NEVER)

    def site_scores(
        self,
        hidden: Float[Tensor, "B P D"],
        groups: Int[Tensor, "B"],
        elements: Int[Tensor, "B P"],
        needs: Int[Tensor, "B P"],
    ) -> Float[Tensor, "B P 27"]:
        """Score all sites of the groups for the elements that come next."""
        tables = space_group_tables(hidden.device)
        numbers = torch.arange(MAX_SITES, device=hidden.device)
        rows = (tables.first_site[groups - 1, None] + numbers).clamp_max(len(self.site_bias) - 1)
        keys = F.embedding(rows, self.site_vectors())
        query = self.site_head(torch.cat((hidden, self.element_embedder(elements), self.need_embedder(needs)), dim=-1))
        return (query @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5 + self.site_bias[rows][:, None]).float()

    def _check_sizes(self, sizes: Int[Tensor, "B"]) -> None:
        largest = int(sizes.max())
        if largest > self.max_atoms:
            raise DataError(
                f"{largest} atoms in a primitive cell; the gene model was built for at most {self.max_atoms} "
                "(gene.max_atoms in training)"
            )

    # ---- sampling ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        wanted: Sequence[Wanted],
        conditions: Float[Tensor, "B D"],
        *,
        generator: torch.Generator,
        temperature: float = 1.0,
    ) -> list[Gene]:
        """Draw one gene for each entry of `wanted`, all of whose demands are met.

        Lower `temperature` (> 0) draws likelier genes. Raises `ConfigError` where an entry asks for what cannot be.
        """
        if not temperature > 0:
            raise ConfigError(f"gene_temperature: got {temperature}; expected a number above 0")
        groups = draw_categories(self.group_log_probabilities(wanted, conditions), temperature, generator) + 1
        states = [State.start(entry, group) for entry, group in zip(wanted, groups.tolist(), strict=True)]
        active = torch.arange(len(states))
        while len(active):
            current = [states[row] for row in active.tolist()]
            hidden = self._last_hidden(current, conditions[active.to(conditions.device)])
            choices = [state.choices() for state in current]
            mask, sets = choice_masks(choices)
            mask, sets = mask.to(hidden.device), sets.to(hidden.device)
            elements = draw_categories(self.element_logits(hidden, mask[:, None])[:, 0], temperature, generator)
            logits = self._next_site_logits(hidden, current, elements, sets)
            sites = draw_categories(logits, temperature, generator)
            for row, element, site in zip(active.tolist(), elements.tolist(), sites.tolist(), strict=True):
                states[row] = states[row].then(element, site)
            active = torch.tensor([row for row in active.tolist() if states[row].left], dtype=torch.long)
        return [state.gene for state in states]

    @torch.no_grad()
    def likeliest(
        self, wanted: Wanted, conditions: Float[Tensor, "1 D"], *, count: int, width: int | None = None
    ) -> list[tuple[Gene, float]]:
        """Return up to `count` different genes with log p in nats, the likeliest first.

        Found by beam search over `width` beginnings (null: three times `count`), the likeliest ones at each step.
        """
        width = 3 * count if width is None else max(count, width)
        log_p = self.group_log_probabilities([wanted], conditions)[0]
        best, groups = log_p.topk(min(width, int((log_p > NEVER / 2).sum())))
        beams = [(float(p), State.start(wanted, g)) for p, g in zip(best, (groups + 1).tolist(), strict=True)]
        finished: list[tuple[float, State]] = []
        while beams:
            states = [state for _, state in beams]
            totals = torch.tensor([p for p, _ in beams])
            grown = self._grown(states, totals, conditions.expand(len(states), -1), width)
            finished += [entry for entry in grown if not entry[1].left]
            finished = sorted(finished, key=lambda entry: -entry[0])[:width]
            bound = finished[count - 1][0] if len(finished) >= count else -float("inf")
            beams = [entry for entry in grown if entry[1].left and entry[0] > bound]
        return [(state.gene, p) for p, state in finished[:count]]

    def _grown(
        self, states: list[State], totals: Float[Tensor, "B"], conditions: Float[Tensor, "B D"], width: int
    ) -> list[tuple[float, State]]:
        """Return the likeliest `width` ways to go on by one orbit, with their log p."""
        hidden = self._last_hidden(states, conditions)
        choices = [state.choices() for state in states]
        mask, sets = (part.to(hidden.device) for part in choice_masks(choices))
        of_elements = self.element_logits(hidden, mask[:, None])[:, 0].log_softmax(dim=-1)
        rows, elements = mask.nonzero(as_tuple=True)
        logits = self._next_site_logits(hidden[rows], [states[row] for row in rows.tolist()], elements, sets[rows])
        scores = totals.to(logits.device)[rows, None] + of_elements[rows, elements, None] + logits.log_softmax(dim=-1)
        scores = scores.masked_fill(logits <= NEVER / 2, -torch.inf)
        best, places = scores.flatten().topk(min(width, int((scores > -torch.inf).sum())))
        return [
            (p, states[int(rows[place // MAX_SITES])].then(int(elements[place // MAX_SITES]), place % MAX_SITES))
            for p, place in zip(best.tolist(), places.tolist(), strict=True)
        ]

    @torch.no_grad()
    def group_log_probabilities(
        self, wanted: Sequence[Wanted], conditions: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B 230"]:
        """Return log p of each space group; far below any real one for groups that cannot be."""
        device = conditions.device
        mask = group_mask(wanted).to(device)
        steps = _steps_so_far([State.start(entry, 1) for entry in wanted], device)
        self._check_sizes(steps.num_atoms)
        return self._group_logits(self._hidden(steps, conditions)[0], mask).log_softmax(dim=-1)

    def _last_hidden(self, states: Sequence[State], conditions: Float[Tensor, "B D"]) -> Float[Tensor, "B 1 D"]:
        return self._hidden(_steps_so_far(states, conditions.device), conditions)[1][:, -1:]

    def _next_site_logits(
        self,
        hidden: Float[Tensor, "B 1 D"],
        states: Sequence[State],
        elements: Int[Tensor, "B"],
        sets: Int[Tensor, "B E"],
    ) -> Float[Tensor, "B 27"]:
        device = hidden.device
        groups = torch.tensor([state.group for state in states], device=device)
        needs = torch.tensor([s.need_of(e) for s, e in zip(states, elements.tolist(), strict=True)], device=device)
        scores = self.site_scores(hidden, groups, elements[:, None], needs[:, None])[:, 0]
        allowed = bits(sets.gather(1, elements[:, None])[:, 0], MAX_SITES)
        return scores.masked_fill(~allowed, NEVER)


def _steps_so_far(states: Sequence[State], device: torch.device) -> Sequences:
    """Write states down for the model, one place more than there are orbits; all have the same number of orbits."""
    length = len(states[0].pairs)
    count = len(states)
    pairs = torch.tensor([state.pairs for state in states], dtype=torch.long).view(count, length, 2)
    lefts = [[*accumulate((-size for size in state.sizes), initial=state.wanted.num_atoms)] for state in states]
    formulas = [torch.tensor(state.wanted.formula, dtype=torch.long).view(-1, 2) for state in states]
    formula = torch.nn.utils.rnn.pad_sequence(formulas, batch_first=True)
    zeros = torch.zeros(count, 1, dtype=torch.long)
    parts = {
        "num_atoms": torch.tensor([state.wanted.num_atoms for state in states]),
        "formula_elements": formula[..., 0],
        "formula_counts": formula[..., 1],
        "space_groups": torch.tensor([state.group for state in states]),
        "elements": torch.cat((pairs[..., 0], zeros), dim=1),
        "sites": torch.cat((pairs[..., 1], zeros - 1), dim=1),
        "left": torch.tensor(lefts),
    }
    return Sequences(**{name: value.to(device) for name, value in parts.items()})
