"""Neighbours of atoms over all periodic images, for a whole batch of crystals at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import DataError

COLLAPSED_VOLUME = 1e-6
"""Cells smaller than this (Å^3) have no neighbours worth the name."""
MAX_IMAGES = 200_000
"""A cell so thin that more of its images lie within reach is refused; no real crystal comes near."""
TIE = 1e-3
"""Neighbours up to this share farther than the last one counted belong to the same shell."""
_CANDIDATES_AT_ONCE = 2**21


@dataclass(frozen=True, eq=False)
class NeighbourGraph:
    """M directed edges, each from an image of a neighbour to an atom of the cell, sorted by that atom.

    `edge_index` holds the neighbour (row 0) and the atom that sees it (row 1), as torch-geometric's `edge_index`.
    `shifts` is the neighbour's image in cells: it stands at frac_coords + shift. `distances` are in Å, and carry
    gradients to coordinates and lattices.
    """

    edge_index: Int[Tensor, "2 M"]
    shifts: Int[Tensor, "M 3"]
    distances: Float[Tensor, "M"]


def neighbour_graph(crystals: CrystalBatch, *, cutoff: float, max_neighbours: int | None = None) -> NeighbourGraph:
    """Find the neighbours of every atom: all images of all atoms of its crystal within `cutoff` Å, its own included.

    With `max_neighbours` only the nearest that many count, and those as far as the last of them (within `TIE`), so that
    a shell is never split: the graph depends neither on the atoms' order nor on rounding. An atom with nothing within
    the cutoff gets its nearest shell, however far: every atom has a neighbour. Skewed cells are reduced first, for
    speed; the result is that of the cell as given. All on the batch's device (on Apple's, which
    lack double precision, the search is the CPU's), without a loop over crystals.

    Raises `DataError` for a cell that is not finite, has no volume, or is too thin to be searched.
    """
    with torch.no_grad(), torch.autocast(crystals.device.type, enabled=False):
        has_double = crystals.device.type != "mps"
        edges = _search(crystals if has_double else crystals.to("cpu"), cutoff, max_neighbours)
        edges = edges if has_double else edges.to(crystals.device)
    with torch.autocast(crystals.device.type, enabled=False):
        neighbour, atom = edges.neighbour, edges.atom
        displacement = crystals.frac_coords[neighbour] - crystals.frac_coords[atom] + edges.shift
        vectors = torch.einsum("mi,mij->mj", displacement, crystals.lattices[crystals.batch[atom]])
        distances = torch.linalg.vector_norm(vectors, dim=-1)
    return NeighbourGraph(torch.stack((neighbour, atom)), edges.shift.long(), distances)


@dataclass(frozen=True, eq=False)
class _Cells:
    """Reduced cells of some crystals, the atoms in them, and what turns shifts back: shift @ `transforms`."""

    cells: Float[Tensor, "B 3 3"]
    transforms: Float[Tensor, "B 3 3"]
    frac_coords: Float[Tensor, "N 3"]
    starts: Int[Tensor, "B"]
    counts: Int[Tensor, "B"]

    def some(self, chosen: Tensor) -> _Cells:
        """Return only the chosen crystals; `frac_coords` stay those of all."""
        return _Cells(
            self.cells[chosen], self.transforms[chosen], self.frac_coords, self.starts[chosen], self.counts[chosen]
        )


@dataclass(frozen=True, eq=False)
class _Edges:
    """Edges sorted by atom, and by distance among those of one atom."""

    neighbour: Int[Tensor, "M"]
    atom: Int[Tensor, "M"]
    shift: Float[Tensor, "M 3"]
    distance: Float[Tensor, "M"]

    def sorted(self) -> _Edges:
        farthest = self.distance.max() if self.distance.numel() else 1.0
        return self.some(torch.argsort(self.atom + 0.5 * self.distance.double() / farthest))

    def to(self, device: torch.device) -> _Edges:
        """Return the edges on another device, in single precision."""
        return _Edges(
            self.neighbour.to(device),
            self.atom.to(device),
            self.shift.float().to(device),
            self.distance.float().to(device),
        )

    def some(self, chosen: Tensor) -> _Edges:
        return _Edges(self.neighbour[chosen], self.atom[chosen], self.shift[chosen], self.distance[chosen])

    def nearest(self, count: int, num_nodes: int) -> _Edges:
        """Keep the nearest `count` of each atom and their ties; edges are sorted."""
        degree = torch.bincount(self.atom, minlength=num_nodes)
        last = degree.cumsum(0) - degree + degree.clamp_max(count) - 1
        horizon = self.distance[last.clamp_min(0)] * (1 + TIE)
        return self.some(self.distance <= horizon[self.atom])


def _search(crystals: CrystalBatch, cutoff: float, max_neighbours: int | None) -> _Edges:
    reduced = _reduce(crystals)
    edges = _within(reduced, torch.full_like(reduced.cells[:, 0, 0], cutoff)).sorted()
    if max_neighbours is not None:
        edges = edges.nearest(max_neighbours, crystals.num_nodes)
    lonely = torch.bincount(edges.atom, minlength=crystals.num_nodes) == 0
    if not bool(lonely.any()):
        return edges
    # An atom's own image stands one cell edge away: its nearest neighbour is no farther than the shortest edge.
    chosen = torch.unique(crystals.batch[lonely])
    those = reduced.some(chosen)
    found = _within(those, those.cells.norm(dim=-1).amin(dim=-1) * (1 + TIE))
    found = found.some(lonely[found.atom]).sorted().nearest(1, crystals.num_nodes)
    merged = (torch.cat(pair) for pair in zip(vars(edges).values(), vars(found).values(), strict=True))
    return _Edges(*merged).sorted()


def _reduce(crystals: CrystalBatch) -> _Cells:
    """Shorten cell vectors by multiples of each other until no pair can be shortened, for all crystals at once."""
    lattices = crystals.lattices.double()
    volumes = torch.linalg.det(lattices).abs()
    bad = ~(torch.isfinite(lattices).flatten(1).all(dim=-1) & (volumes > COLLAPSED_VOLUME))
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise DataError(
            f"crystal {first} of the batch: its cell has a volume of {float(volumes[first]):.3g} Å^3; expected finite "
            f"cells of more than {COLLAPSED_VOLUME:g} Å^3, which the neighbour graph of this encoder needs"
        )
    if not bool(torch.isfinite(crystals.frac_coords).all()):
        first = int(crystals.batch[~torch.isfinite(crystals.frac_coords).all(dim=-1)][0])
        raise DataError(f"crystal {first} of the batch: coordinates that are not finite; it has no neighbour graph")
    transforms = torch.eye(3, dtype=torch.float64, device=lattices.device).repeat(len(lattices), 1, 1)
    for _ in range(100):
        before = transforms
        for i, j in ((0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)):
            cells = transforms @ lattices
            ratio = (cells[:, i] * cells[:, j]).sum(-1) / cells[:, j].square().sum(-1)
            multiple = torch.where(ratio.abs() > 0.5 + 1e-6, ratio.round(), 0.0)
            change = torch.zeros_like(transforms)
            change[:, i] = multiple[:, None] * transforms[:, j]
            transforms = transforms - change
        if torch.equal(before, transforms):
            break
    frac_coords = crystals.frac_coords.double()
    inverse = torch.linalg.inv(transforms).round()
    return _Cells(
        cells=transforms @ lattices,
        transforms=transforms,
        frac_coords=torch.einsum("ni,nij->nj", frac_coords, inverse[crystals.batch]),
        starts=crystals.ptr[:-1],
        counts=crystals.num_atoms,
    )


def _within(cells: _Cells, radius: Float[Tensor, "B"]) -> _Edges:
    """Return all pairs of atoms and images that are no farther apart than the crystal's radius.

    A displacement of length r has fractional components of at most r·|b_i|, b_i the reciprocal vectors without 2π, and
    the nearest of a pair's images along each axis at most 1/2: shifts of up to r·|b_i| + 1/2 cells are looked at.
    """
    images, image_starts, image_counts = _images(cells.cells, radius)
    owner, first, second = _pairs(cells.counts)
    atom, neighbour = cells.starts[owner] + first, cells.starts[owner] + second
    difference = cells.frac_coords[neighbour] - cells.frac_coords[atom]
    nearest = -difference.round()
    base = torch.einsum("pi,pij->pj", difference + nearest, cells.cells[owner]).float()
    image_owner = torch.repeat_interleave(torch.arange(len(radius), device=radius.device), image_counts)
    image_vectors = torch.einsum("ki,kij->kj", images, cells.cells[image_owner]).float()
    limit = radius.float().square()
    pairs, shifts, squares = [], [], []
    for chunk in _chunks(image_counts[owner]):
        repeats = image_counts[owner[chunk]]
        pair = torch.repeat_interleave(torch.arange(chunk.start, chunk.stop, device=radius.device), repeats)
        offsets = image_starts[owner[chunk]] - (repeats.cumsum(0) - repeats)
        image = torch.arange(len(pair), device=radius.device) + offsets[pair - chunk.start]
        squared = (base[pair] + image_vectors[image]).square().sum(dim=-1)
        near = (squared <= limit[owner[pair]]).nonzero().squeeze(-1)
        pair, image = pair[near], image[near]
        itself = (first[pair] == second[pair]) & (images[image] == 0).all(dim=-1)
        pairs.append(pair[~itself])
        shifts.append(images[image[~itself]])
        squares.append(squared[near][~itself])
    pair = torch.cat(pairs)
    shift = torch.einsum("mi,mij->mj", nearest[pair] + torch.cat(shifts), cells.transforms[owner[pair]])
    # From the reduced to the given cell. What the wrapping of the coordinates took away is in `nearest`.
    return _Edges(neighbour[pair], atom[pair], shift.round().float(), torch.cat(squares).sqrt())


def _images(cells: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the shifts (K, 3) that can bring a pair within the radius, crystal by crystal, their starts and counts."""
    reach = (radius[:, None] * torch.linalg.inv(cells).norm(dim=-2) + 0.5 + 1e-6).floor().long()
    widths = 2 * reach + 1
    boxes = widths.double().prod(dim=-1)
    if bool((boxes > MAX_IMAGES).any()):
        worst = int(boxes.argmax())
        raise DataError(
            f"a cell of {float(torch.linalg.det(cells[worst]).abs()):.3g} Å^3 is so thin that {int(boxes[worst])} "
            f"of its images lie within {float(radius[worst]):.3g} Å; expected at most {MAX_IMAGES}"
        )
    owner, place = _enumerate(boxes.long())
    third, rest = place % widths[owner, 2], place // widths[owner, 2]
    second, first = rest % widths[owner, 1], rest // widths[owner, 1]
    shifts = (torch.stack((first, second, third), dim=-1) - reach[owner]).double()
    signs = torch.tensor([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]], dtype=torch.float64, device=cells.device)
    farthest = radius + 0.5 * (signs @ cells).norm(dim=-1).amax(dim=-1)
    near = torch.einsum("ki,kij->kj", shifts, cells[owner]).norm(dim=-1) <= farthest[owner] + 1e-6
    counts = torch.bincount(owner[near], minlength=len(cells))
    return shifts[near], counts.cumsum(0) - counts, counts


def _pairs(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return crystal, first and second atom within it of all ordered pairs, an atom with itself included."""
    owner, place = _enumerate(counts.square())
    return owner, place // counts[owner], place % counts[owner]


def _enumerate(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return (0, 0), (0, 1), … (0, counts[0] - 1), (1, 0), … as two columns."""
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return owner, torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts)[owner]


def _chunks(sizes: Tensor) -> Iterator[slice]:
    """Cut a list of tasks of given sizes into slices of bounded total size (memory), in order."""
    total = sizes.cumsum(0)
    edges = torch.unique(total // _CANDIDATES_AT_ONCE, return_counts=True)[1].cumsum(0).tolist()
    yield from (slice(start, stop) for start, stop in zip([0, *edges[:-1]], edges, strict=True))
