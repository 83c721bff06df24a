"""A tree of motifs, from what follows what and how often each is used, and its cuts into communities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from crystalvae.checks import check_count
from crystalvae.errors import ConfigError


@dataclass(frozen=True)
class Merge:
    """Two nodes become one: motifs are 0 to K - 1, the i-th merge makes node K + i. `cost` is None where they never meet."""

    first: int
    second: int
    cost: float | None
    usage: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def motif_tree(usage: Float[np.ndarray, "K"], counts: Int[np.ndarray, "K K"]) -> list[Merge]:
    """Merge motifs, two at a time, until one node is left: K - 1 merges.

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
        switches = table - np.diag(np.diag(table))
        totals = switches.sum(axis=1, keepdims=True)
        chances = np.where(totals > 0, switches / np.maximum(totals, 1.0), 0.0)
        a, b = min(
            ((i, j) for i in range(len(nodes)) for j in range(i + 1, len(nodes))),
            key=lambda pair: (_cost(shares, chances, *pair), shares[pair[0]] + shares[pair[1]], pair),
        )
        cost = _cost(shares, chances, a, b)
        joined = shares[a] + shares[b]
        merges.append(Merge(nodes[a], nodes[b], cost if math.isfinite(cost) else None, joined))
        table[a] += table[b]
        table[:, a] += table[:, b]
        table = np.delete(np.delete(table, b, axis=0), b, axis=1)
        nodes[a], shares[a] = len(usage) + len(merges) - 1, joined
        del nodes[b], shares[b]
    return merges


def _cost(shares: list[float], chances: np.ndarray, i: int, j: int) -> float:
    meeting = float(chances[i, j] + chances[j, i])
    return (shares[i] + shares[j]) / meeting if meeting > 0 else math.inf


def cut_tree(merges: Sequence[Merge], number: int | None = None) -> Int[np.ndarray, "K"]:
    """Return the community of each motif where the tree is cut into a number of them, the most used 0.

    None cuts where the costs rise the most from one merge to the next, as a ratio: merges of nodes that never meet are
    always undone. Raises `ConfigError` for more communities than motifs.
    """
    count = len(merges) + 1
    chosen = _natural_number(merges) if number is None else number
    check_count("communities", chosen)
    if chosen > count:
        raise ConfigError(f"communities: got {chosen}; there are only {count} motifs")
    parents = list(range(count + len(merges)))
    for position, merge in enumerate(merges[: count - chosen]):
        parents[merge.first] = parents[merge.second] = count + position
    roots = []
    for motif in range(count):
        node = motif
        while parents[node] != node:
            node = parents[node]
        roots.append(node)
    usage = _usages(merges, count)
    order = sorted(set(roots), key=lambda node: (-usage[node], node))
    return np.array([order.index(node) for node in roots])


def _usages(merges: Sequence[Merge], count: int) -> list[float]:
    """Return the usage of every node; a motif's is what its merge has over the other's."""
    usage = [0.0] * (count + len(merges))
    for position in reversed(range(len(merges))):
        usage[count + position] = merges[position].usage
    return usage


def _natural_number(merges: Sequence[Merge]) -> int:
    count = len(merges) + 1
    costs = [merge.cost for merge in merges]
    met = [cost for cost in costs if cost is not None]
    if len(met) < len(costs):  # what never meets stays apart
        return count - len(met)
    if count <= 2:
        return count
    highest = np.maximum.accumulate(np.array(met))
    rises = highest[1:] / np.maximum(highest[:-1], np.finfo(float).tiny)
    return count - 1 - int(rises.argmax())
