"""Crystal graph encoders: messages between periodic neighbours, after CGCNN.

A graph of distances does not know where the cell's origin is, which the fractional coordinates that a decoder has to
give back depend on. So each atom's own embedding, coordinates included, stands beside its messages: the graph says what
surrounds an atom, the same for every origin and orientation, and the embedding, added after the last message, says what
it is and where it stands.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch_geometric.nn import CGConv

from crystalvae.checks import check_count, check_dropout, feedforward_width
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.neighbour_graph import NeighbourGraph, neighbour_graph
from crystalvae.errors import ConfigError
from crystalvae.vae_module.encoders.embedding import CrystalEmbedding
from crystalvae.vae_module.layers.modulation import AdaptiveLayerNorm, per_atom
from crystalvae.vae_module.layers.precision import full_precision

MAX_CUTOFF = 30.0
"""Å; an atom has some thousands of neighbours within it."""


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, on the normalised input."""

    def __init__(self, *, d_model: int, dim_feedforward: int, dropout: float, d_condition: int | None = None) -> None:
        super().__init__()
        self.norm = AdaptiveLayerNorm(d_model, d_condition=d_condition)
        self.linear1, self.linear2 = nn.Linear(d_model, dim_feedforward), nn.Linear(dim_feedforward, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "N D"], condition: Float[Tensor, "N C"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Return what is to be added to the tokens; `condition` holds, for each atom, the vector of its crystal."""
        hidden = self.dropout(nn.functional.gelu(self.linear1(self.norm(tokens, condition))))
        return self.dropout(self.linear2(hidden))


class NodewiseCGConv(CGConv):
    """CGConv (Xie & Grossman 2018, eq. 5), the same function with fewer multiplications.

    Its linear maps of [atom, neighbour, edge] are split: what they make of an atom is computed once for that atom, not
    for each of its dozen edges. Parameters are CGConv's own.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # one of the kinds of graph that CGConv takes
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor
    ) -> Tensor:
        """Return x and the sum of the messages to each atom."""
        weight = torch.cat((self.lin_f.weight, self.lin_s.weight))
        bias = torch.cat((self.lin_f.bias, self.lin_s.bias))
        atom, neighbour, edge = weight.split((x.shape[-1], x.shape[-1], edge_attr.shape[-1]), dim=-1)
        pair = (nn.functional.linear(x, neighbour), nn.functional.linear(x, atom, bias))
        return x + self.propagate(edge_index, x=pair, edge_attr=nn.functional.linear(edge_attr, edge))

    def message(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x_i: Tensor, x_j: Tensor, edge_attr: Tensor
    ) -> Tensor:
        """Return σ(z W_f + b_f) ⊙ softplus(z W_s + b_s) for each edge."""
        gate, core = (x_i + x_j + edge_attr).chunk(2, dim=-1)
        return gate.sigmoid() * nn.functional.softplus(core)


class Convolution(nn.Module):
    """CGConv and a layer norm.

    The layer norm stands for the published code's batch norm, which would let the crystals of a batch see each other.
    """

    def __init__(self, *, d_model: int, num_radial: int, dropout: float, d_condition: int | None = None) -> None:
        super().__init__()
        self.conv = NodewiseCGConv(d_model, dim=num_radial)
        self.norm = AdaptiveLayerNorm(d_model, d_condition=d_condition)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "N D"],
        graph: NeighbourGraph,
        edges: Float[Tensor, "M R"],
        condition: Float[Tensor, "N C"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Pass messages along the edges; `condition` as `FeedForward`."""
        return self.norm(self.dropout(self.conv(tokens, graph.edge_index, edges)), condition)


class ResidualConvolution(nn.Module):
    """CGConv and a feed-forward network, each pre-norm, with a residual connection that nothing normalises."""

    def __init__(
        self, *, d_model: int, num_radial: int, dim_feedforward: int, dropout: float, d_condition: int | None = None
    ) -> None:
        super().__init__()
        self.norm = AdaptiveLayerNorm(d_model, d_condition=d_condition)
        self.conv = NodewiseCGConv(d_model, dim=num_radial)
        self.out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(
            d_model=d_model, dim_feedforward=dim_feedforward, dropout=dropout, d_condition=d_condition
        )

    def forward(
        self,
        tokens: Float[Tensor, "N D"],
        graph: NeighbourGraph,
        edges: Float[Tensor, "M R"],
        condition: Float[Tensor, "N C"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Pass messages along the edges; `condition` as `FeedForward`."""
        tokens = tokens + self.dropout(self.out(self.conv(self.norm(tokens, condition), graph.edge_index, edges)))
        return tokens + self.feed_forward(tokens, condition)


class CGCNNEncoder(CrystalEmbedding):
    """The crystal graph convolutional network of Xie & Grossman (2018), with each atom's coordinates beside it.

    `cutoff` (Å) and `max_neighbours` (null: all) choose the neighbours as `data.neighbour_graph.neighbour_graph` says;
    `num_radial` Gaussians between 0 and the cutoff describe a distance. Permuting atoms permutes the output. What the
    graph says (`surroundings`) jumps where a neighbour comes or goes, as with the published one, and is the same for
    mirror images. Further options are those of `CrystalEmbedding`.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_layers: int,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        cutoff: float = 6.0,
        max_neighbours: int | None = 12,
        num_radial: int = 32,
        d_condition: int | None = None,
        **embedding: Any,
    ) -> None:
        super().__init__(d_model=d_model, d_condition=d_condition, **embedding)
        check_count("encoder.num_layers", num_layers)
        check_dropout("encoder.dropout", dropout)
        check_count("encoder.num_radial", num_radial, at_least=2)
        if max_neighbours is not None:
            check_count("encoder.max_neighbours", max_neighbours)
        if not 0.0 < cutoff <= MAX_CUTOFF:
            raise ConfigError(
                f"encoder.cutoff: got {cutoff}; expected a distance in Å, above 0 and at most {MAX_CUTOFF}"
            )
        self.cutoff, self.max_neighbours, self.num_radial, self.dropout = cutoff, max_neighbours, num_radial, dropout
        self.dim_feedforward = feedforward_width("encoder.dim_feedforward", dim_feedforward, d_model)
        self.layers = nn.ModuleList(self._layer() for _ in range(num_layers))
        self.graph_norm = self._graph_norm()
        self.feed_forward = FeedForward(
            d_model=d_model, dim_feedforward=self.dim_feedforward, dropout=dropout, d_condition=d_condition
        )
        self.norm = AdaptiveLayerNorm(d_model, d_condition=d_condition)

    def _layer(self) -> nn.Module:
        return Convolution(
            d_model=self.d_model, num_radial=self.num_radial, dropout=self.dropout, d_condition=self.d_condition
        )

    def _graph_norm(self) -> AdaptiveLayerNorm | None:
        return None  # each layer ends with one

    def forward(self, crystals: CrystalBatch, condition: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "N D"]:
        """Return one hidden vector of `d_model` numbers per atom; `DataError` for cells that have no graph.

        `condition`: the condition vector of each crystal.
        """
        tokens = self.embed(crystals) + self.surroundings(crystals, condition)
        told = per_atom(condition, crystals.batch)
        return self.norm(tokens + self.feed_forward(tokens, told), told)

    def surroundings(
        self, crystals: CrystalBatch, condition: Float[Tensor, "B C"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Return what the graph says of each atom: the same for every origin and every image of an atom.

        It is the same for every orientation, too, unless `lattice_features` is "matrix".
        """
        graph = neighbour_graph(crystals, cutoff=self.cutoff, max_neighbours=self.max_neighbours)
        edges = gaussian_basis(graph.distances, self.cutoff, self.num_radial)
        tokens, told = self.embed_surroundings(crystals), per_atom(condition, crystals.batch)
        for layer in self.layers:
            tokens = layer(tokens, graph, edges, told)
        return tokens if self.graph_norm is None else self.graph_norm(tokens, told)


class ResidualCGCNNEncoder(CGCNNEncoder):
    """A deep variant of `CGCNNEncoder`: pre-norm residual layers, each with a feed-forward network, can be stacked.

    Options and promises are those of `CGCNNEncoder`.
    """

    def _layer(self) -> nn.Module:
        return ResidualConvolution(
            d_model=self.d_model,
            num_radial=self.num_radial,
            dim_feedforward=self.dim_feedforward,
            dropout=self.dropout,
            d_condition=self.d_condition,
        )

    def _graph_norm(self) -> AdaptiveLayerNorm | None:
        return AdaptiveLayerNorm(self.d_model, d_condition=self.d_condition)


def gaussian_basis(distances: Float[Tensor, "M"], cutoff: float, count: int) -> Float[Tensor, "M R"]:
    """Describe distances (Å) by `count` Gaussians evenly spaced from 0 to the cutoff, as wide as their spacing.

    Xie & Grossman (2018) expand distances so. Beyond the cutoff, for an atom with nothing nearer, all fade to 0.
    """
    with full_precision(distances):
        centres = torch.linspace(0.0, cutoff, count, device=distances.device, dtype=distances.dtype)
        return torch.exp(-(((distances[:, None] - centres) * (count - 1) / cutoff) ** 2))
