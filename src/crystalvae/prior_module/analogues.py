"""Training crystals that a gene can be modelled on: the same sites of the same group, with similar elements."""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import lattice_from_parameters
from crystalvae.data.prototypes.substitution import element_table
from crystalvae.data.symmetric.projection import AtomSites, atoms_of_orbits, onto_sites, project_lattices
from crystalvae.data.symmetric.source import pad_sites
from crystalvae.data.symmetric.tables import space_group_tables
from crystalvae.errors import CheckpointError
from crystalvae.prior_module.element_similarity import MAX_ELEMENTS, ElementSimilarity
from crystalvae.prior_module.gene_lookup import pattern_of
from crystalvae.prior_module.genes import Gene, Genes, Pattern

_STEPS = np.array([2e-3] * 3 + [1e-2] * 3)
"""In which lengths (Å) and angles (degrees) are kept, in two bytes each; coordinates in 1/65536."""
_TURN = 65536
_SAME_LENGTHS = 5e-3
_LARGEST = 2**30
"""Bytes; a damaged checkpoint is not to fill the memory."""
FARTHEST = 10.0
"""Distances between elements are told up to this one."""


@dataclass(frozen=True, eq=False)
class Models:
    """For each of B crystals one that it can be modelled on, with its elements exchanged and its volume adapted.

    Only those that are `known` have one; the others stand there with any cell. `distance` is between the sets of
    elements, `elements` those before the exchange (0 where there is no model).
    """

    crystals: CrystalBatch
    known: Bool[Tensor, "B"]
    distance: Float[Tensor, "B"]
    elements: Int[Tensor, "N"]


@dataclass(frozen=True, eq=False)
class _Kept:
    """M crystals with O orbits: genes, the first atom of each orbit (0 on sites without freedom), lengths and angles.

    In 16 bits, as they are saved.
    """

    groups: Int[np.ndarray, "M"]
    orbits: Int[np.ndarray, "M"]
    elements: Int[np.ndarray, "O"]
    sites: Int[np.ndarray, "O"]
    points: Int[np.ndarray, "O 3"]
    cells: Int[np.ndarray, "M 6"]

    def pack(self) -> bytes:
        small = (self.groups, self.orbits, self.elements, self.sites)
        parts = [part.astype("<u1").tobytes() for part in small]
        parts += [part.T.astype("<u2").tobytes() for part in (self.points, self.cells)]
        return zlib.compress(struct.pack("<qq", len(self.groups), len(self.elements)) + b"".join(parts), 9)

    @classmethod
    def unpack(cls, packed: bytes) -> _Kept:
        try:
            content = zlib.decompressobj().decompress(packed, _LARGEST)
            crystals, orbits = struct.unpack_from("<qq", content)
            counts = (crystals, crystals, orbits, orbits, 3 * orbits, 6 * crystals)
            parts: list[np.ndarray] = []
            start = struct.calcsize("<qq")
            for count, kind in zip(counts, ("<u1",) * 4 + ("<u2",) * 2, strict=True):
                parts.append(np.frombuffer(content, kind, count, start).astype(np.int64))
                start += parts[-1].size * np.dtype(kind).itemsize
        except (zlib.error, struct.error, ValueError) as error:
            raise CheckpointError(f"damaged checkpoint: the prior's known crystals cannot be read ({error})") from error
        groups, of_each, elements, sites, points, cells = parts
        return cls(groups, of_each, elements, sites, points.reshape(3, -1).T, cells.reshape(6, -1).T)


@dataclass(frozen=True, eq=False)
class _Entries:
    """The crystals with one pattern."""

    rows: Int[Tensor, "M"]
    elements: Int[Tensor, "M K"]


class Analogues(nn.Module):
    """Crystals of a training set, kept as genes, cells and free coordinates: some 40 bytes for each of MP-20's.

    They are no weights (nothing averages or quantises them), and are in the checkpoint of the prior that uses them as
    one tensor of bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.similarity = ElementSimilarity().requires_grad_(requires_grad=False)
        nothing = np.zeros(0, dtype=np.int64)
        self._set(_Kept(nothing, nothing, nothing, nothing, nothing.reshape(0, 3), nothing.reshape(0, 6)))

    def _set(self, kept: _Kept) -> None:
        self._kept = kept
        self._patterns: dict[Pattern, _Entries] | None = None
        self._cells = torch.from_numpy(kept.cells * _STEPS).float()
        self._points = torch.from_numpy(kept.points / _TURN).float()
        self._first = torch.from_numpy(kept.orbits.cumsum() - kept.orbits)

    def get_extra_state(self) -> Tensor:
        """Return the crystals as bytes."""
        return torch.frombuffer(bytearray(self._kept.pack()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` returned; `CheckpointError` where it is damaged."""
        self._set(_Kept.unpack(state.cpu().numpy().tobytes()))

    def __len__(self) -> int:
        return len(self._kept.groups)

    def genes(self) -> list[Gene]:
        """Return the genes of the crystals."""
        if not len(self):
            return []
        kept = self._kept
        elements, sites = (torch.from_numpy(part).split(kept.orbits.tolist()) for part in (kept.elements, kept.sites))
        return Genes(torch.from_numpy(kept.groups), pad_sites(elements).clamp_min(0), pad_sites(sites)).to_list()

    def _of_pattern(self) -> dict[Pattern, _Entries]:
        """Return the crystals of each pattern, sorted out on first use."""
        if self._patterns is None:
            found: dict[Pattern, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
            for row, gene in enumerate(self.genes()):
                of_gene, _, pattern = pattern_of(gene)
                found[pattern].append((row, of_gene))
            self._patterns = {
                pattern: _Entries(torch.tensor([row for row, _ in some]), torch.tensor([entry for _, entry in some]))
                for pattern, some in found.items()
            }
        return self._patterns

    def fit(self, crystals: CrystalBatch) -> None:
        """Take over crystals in the symmetric description, but for those with more elements than can be compared."""
        crystals = crystals.detach().to("cpu")
        few = torch.tensor([len({z for z, _ in pairs}) <= MAX_ELEMENTS for _, pairs in Genes.of(crystals).to_list()])
        crystals = crystals[few.nonzero()[:, 0]]
        genes, where = Genes.of(crystals), AtomSites.of(crystals)
        real = genes.sites >= 0
        free = (space_group_tables().freedom[where.site[where.first]] > 0)[:, None]
        cells = torch.cat((crystals.lengths, crystals.angles), dim=1).double().numpy()
        kept = _Kept(
            genes.space_groups.numpy(),
            real.sum(dim=1).numpy(),
            genes.elements[real].numpy(),
            genes.sites[real].numpy(),
            ((crystals.frac_coords[where.first] * free * _TURN).round().long() % _TURN).numpy(),
            np.rint(cells / _STEPS).astype(np.int64),
        )
        self._set(_Kept.unpack(kept.pack()))

    def find(self, crystals: CrystalBatch, genes: Genes, *, noise: Float[Tensor, "B"] | None = None) -> Models:
        """Return the nearest model of each gene, or with uniform `noise` one of all, drawn by similarity exp(-d).

        Where `noise` is NaN there is none. A crystal is no model of itself, as it would be in training: what has the
        same elements and the same lengths is passed over. Nothing but lengths is read of the cells of `crystals`.
        """
        rows, distances = [], []
        lengths = crystals.lengths.cpu()
        draws = [None] * len(genes) if noise is None else noise.tolist()
        apart = self.similarity.distances()
        for place, (gene, draw) in enumerate(zip(genes.to_list(), draws, strict=True)):
            row, distance = self._choose(gene, lengths[place], draw, apart)
            rows.append(row)
            distances.append(min(distance, FARTHEST))
        return self._exchanged(crystals, genes, torch.tensor(rows), torch.tensor(distances))

    def _choose(
        self, gene: Gene, lengths: Float[Tensor, "3"], draw: float | None, apart: Float[Tensor, "E E"]
    ) -> tuple[int, float]:
        elements, _, pattern = pattern_of(gene)
        known = self._of_pattern().get(pattern)
        if known is None or (draw is not None and draw != draw):  # noqa: PLR0124  NaN
            return -1, FARTHEST
        votes = self.similarity.log_votes(torch.tensor([elements]), known.elements, apart)[0]
        same = (known.elements == torch.tensor(elements)).all(dim=1)
        same &= ((self._cells[known.rows, :3] - lengths).abs() < _SAME_LENGTHS).all(dim=1)
        if bool(same.all()):
            return -1, FARTHEST
        votes = votes.masked_fill(same, -torch.inf)
        best = int(votes.argmax())
        if draw is not None:
            best = min(int((votes.softmax(dim=0).cumsum(dim=0) <= draw).sum()), len(votes) - 1)
        return int(known.rows[best]), float(-votes[best])

    def _exchanged(
        self, crystals: CrystalBatch, genes: Genes, rows: Int[Tensor, "B"], distances: Float[Tensor, "B"]
    ) -> Models:
        device = crystals.device
        wanted = crystals.atom_types.cpu()
        known, owner = rows >= 0, crystals.batch.cpu()
        where = AtomSites.from_orbits(genes.space_groups.cpu(), genes.sites.cpu())
        of_orbit = owner[where.first]
        elements = torch.zeros_like(wanted)
        points = torch.zeros(len(where.first), 3)
        cells = torch.tensor([5.0, 5.0, 5.0, 90.0, 90.0, 90.0]).repeat(len(rows), 1)
        if bool(known.any()):
            counts = (genes.sites.cpu() >= 0).sum(dim=1)
            places = torch.arange(len(of_orbit)) - (counts.cumsum(0) - counts)[of_orbit]
            kept = (self._first[rows.clamp_min(0)][of_orbit] + places)[known[of_orbit]]
            points[known[of_orbit]] = self._points[kept]
            sizes = where.multiplicity[where.first][known[of_orbit]]
            elements[known[owner]] = torch.from_numpy(self._kept.elements)[kept].repeat_interleave(sizes)
            cells[known] = self._cells[rows[known]]
        lattices = lattice_from_parameters(cells[:, :3], cells[:, 3:].deg2rad())
        before = torch.where(elements > 0, elements, wanted)
        volumes = [
            torch.zeros(len(rows)).index_add(0, owner, covalent_radii()[numbers] ** 3) for numbers in (wanted, before)
        ]
        scale = (volumes[0] / volumes[1]) ** (1 / 3)
        models = CrystalBatch(
            atom_types=wanted,
            frac_coords=atoms_of_orbits(onto_sites(points, where.site[where.first]), where),
            lattices=project_lattices(lattices, where.space_groups) * scale[:, None, None],
            num_atoms=crystals.num_atoms.cpu(),
        )
        return Models(models.to(device), known.to(device), distances.to(device), elements.to(device))


def covalent_radii() -> Float[Tensor, "E"]:
    """Return covalent radii in Å by atomic number; the heaviest are as large as the last known."""
    radii = element_table().covalent_radius
    radii = np.where(np.isnan(radii), np.nanmax(radii[80:]), radii)
    return torch.from_numpy(np.concatenate((radii, np.full(120 - len(radii), radii[-1])))).float()
