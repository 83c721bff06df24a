"""A tree of motifs, from what follows what and how often each is used, and its cuts into communities."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from crystalvae.checks import check_count
from crystalvae.errors import ConfigError
from crystalvae.sequence_module.motifs.statistics import row_shares


@dataclass(frozen=True)
class Merge:
    """Nodes `first` and `second` become one, of the usage `usage`; `cost` is None where they never meet."""

    first: int
    second: int
    cost: float | None
    usage: float


@dataclass(frozen=True, eq=False)
class MotifTree:
    """The merges of K motifs of the given `usage` (K,): nodes 0 to K - 1 are motifs, merge i makes node K + i."""

    usage: Float[np.ndarray, "K"]
    merges: tuple[Merge, ...]

    def communities(self, number: int | None = None) -> Int[np.ndarray, "K"]:
        """Return the community of each motif where the tree is cut into a number of them, the most used 0.

        None undoes all merges of nodes that never meet; where there are none, the tree is cut where the cost rises the
        most from one merge to the next, as a ratio. Raises `ConfigError` for more communities than motifs.
        """
        count = len(self.usage)
        chosen = self._natural_number() if number is None else number
        check_count("communities", chosen)
        if chosen > count:
            raise ConfigError(f"communities: got {chosen}; there are only {count} motifs")
        members = {motif: [motif] for motif in range(count)}
        for position, merge in enumerate(self.merges[: count - chosen]):
            members[count + position] = members.pop(merge.first) + members.pop(merge.second)
        order = sorted(members.values(), key=lambda part: (-self.usage[part].sum(), min(part)))
        communities = np.zeros(count, dtype=np.int64)
        for community, part in enumerate(order):
            communities[part] = community
        return communities

    def _natural_number(self) -> int:
        count = len(self.usage)
        met = [merge.cost for merge in self.merges if merge.cost is not None]
        if len(met) < len(self.merges):
            return count - len(met)
        if count <= 2:
            return count
        highest = np.maximum.accumulate(np.array(met))
        rises = highest[1:] / np.maximum(highest[:-1], np.finfo(float).tiny)
        return count - 1 - int(rises.argmax())

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"usage": self.usage.tolist(), "merges": [asdict(merge) for merge in self.merges]}


def motif_tree(usage: Float[np.ndarray, "K"], counts: Int[np.ndarray, "K K"]) -> MotifTree:
    """Merge motifs, two nodes at a time, until one is left.

    Merged are the two nodes i, j with the least (u_i + u_j) / (p_ij + p_ji): u is usage, p the probability of a switch
    from one to the other (Luxem et al., Commun. Biol. 5, 1267, 2022). Nodes that lead to each other and are little used
    come first. A merged node has the sum of both usages and of both nodes' transition counts. Nodes that never meet are
    merged last, the least used first. Of equal costs that of the lowest numbers is taken.
    """
    nodes = list(range(len(usage)))
    shares = [float(value) for value in usage]
    table = np.asarray(counts, dtype=np.float64).copy()
    merges: list[Merge] = []
    while len(nodes) > 1:
        chances = row_shares(table - np.diag(np.diag(table)))
        pairs = [(i, j) for i in range(len(nodes)) for j in range(i + 1, len(nodes))]
        ranked = [(_cost(shares, chances, i, j), shares[i] + shares[j], i, j) for i, j in pairs]
        cost, joined, a, b = min(ranked)
        merges.append(Merge(nodes[a], nodes[b], cost if math.isfinite(cost) else None, joined))
        table[a] += table[b]
        table[:, a] += table[:, b]
        table = np.delete(np.delete(table, b, axis=0), b, axis=1)
        nodes[a], shares[a] = len(usage) + len(merges) - 1, joined
        del nodes[b], shares[b]
    return MotifTree(np.asarray(usage, dtype=np.float64), tuple(merges))


def _cost(shares: list[float], chances: np.ndarray, i: int, j: int) -> float:
    meeting = float(chances[i, j] + chances[j, i])
    return (shares[i] + shares[j]) / meeting if meeting > 0 else math.inf
