"""The one batch type of the package: crystals as flat tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crystalvae.data.lattice import lattice_to_parameters, wrap
from crystalvae.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure
    from torch_geometric.data import Batch

MAX_ATOMIC_NUMBER = 99
"""Elements are classes 0..99, the atomic number; class 0 means masked or unknown."""
_PER_CRYSTAL = ("properties", "conditions")
"""Fields that map names to tensors with one row per crystal."""
_OF_COUNTS = ("batch", "ptr", "token_idx")
"""What is derived from `num_atoms` alone."""


@dataclass(frozen=True, eq=False)
class CrystalBatch:
    """B crystals with N atoms altogether; immutable, and everything not listed here is derived where it is read.

    Letters: N atoms, B crystals. Lattice rows are vectors in Å. `frac_coords` are in [0, 1): every reader, `from_…`
    method and augmentation wraps them, while the constructor keeps what it is given, because the published checkpoint
    format distinguishes 1.0 from 0.0. `properties` holds optional values per crystal, NaN where unknown. `conditions`
    holds what conditional models are given for each crystal, (B,) or (B, E) by name, NaN where unknown; see
    `vae_module.conditions.values`.

    Raises `ValueError` naming the field, the expected and the given shape.
    """

    atom_types: Int[Tensor, "N"]
    frac_coords: Float[Tensor, "N 3"]
    lattices: Float[Tensor, "B 3 3"]
    num_atoms: Int[Tensor, "B"]
    properties: Mapping[str, Tensor] = field(default_factory=dict)
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nodes, graphs = self.atom_types.shape[0], self.num_atoms.shape[0]
        expected = {
            "atom_types": (nodes,),
            "frac_coords": (nodes, 3),
            "lattices": (graphs, 3, 3),
            "num_atoms": (graphs,),
        }
        for name, shape in expected.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"CrystalBatch.{name}: expected shape {shape}, got {got}")
        if self.num_atoms.device.type == "cpu" and int(self.num_atoms.sum()) != nodes:  # elsewhere it would wait
            raise ValueError(
                f"CrystalBatch.num_atoms: expected counts that add up to {nodes} atoms, got {self.num_atoms}"
            )
        for kind in _PER_CRYSTAL:
            for name, values in getattr(self, kind).items():
                if values.shape[:1] != (graphs,):
                    raise ValueError(
                        f"CrystalBatch.{kind}[{name!r}]: expected {graphs} rows, got {tuple(values.shape)}"
                    )

    # ---- derived quantities -----------------------------------------------------------------------------------------

    @property
    def num_graphs(self) -> int:
        """Number of crystals B."""
        return self.num_atoms.shape[0]

    @property
    def num_nodes(self) -> int:
        """Number of atoms N."""
        return self.atom_types.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.atom_types.device

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensors take."""
        tensors = (self.atom_types, self.frac_coords, self.lattices, self.num_atoms)
        named = (*self.properties.values(), *self.conditions.values())
        return sum(tensor.nbytes for tensor in (*tensors, *named))

    @cached_property
    def batch(self) -> Int[Tensor, "N"]:
        """Crystal index of each atom."""
        index = torch.arange(self.num_graphs, device=self.device)
        return torch.repeat_interleave(index, self.num_atoms, output_size=self.num_nodes)

    @cached_property
    def ptr(self) -> Int[Tensor, "Bplus1"]:
        """First atom of each crystal, and N at the end."""
        return torch.cat((self.num_atoms.new_zeros(1), self.num_atoms.cumsum(0)))

    @cached_property
    def token_idx(self) -> Int[Tensor, "N"]:
        """Position of each atom within its crystal."""
        return torch.arange(self.num_nodes, device=self.device) - self.ptr[self.batch]

    @cached_property
    def _parameters(self) -> tuple[Tensor, Tensor]:
        return lattice_to_parameters(self.lattices)

    @property
    def lengths(self) -> Float[Tensor, "B 3"]:
        """Cell lengths in Å."""
        return self._parameters[0]

    @property
    def lengths_scaled(self) -> Float[Tensor, "B 3"]:
        """Cell lengths divided by the cube root of the number of atoms, in Å."""
        return self.lengths / self.num_atoms.to(self.lattices.dtype).pow(1 / 3).unsqueeze(-1)

    @property
    def angles_radians(self) -> Float[Tensor, "B 3"]:
        """Cell angles (α, β, γ) in radians."""
        return self._parameters[1]

    @property
    def angles(self) -> Float[Tensor, "B 3"]:
        """Cell angles (α, β, γ) in degrees."""
        return torch.rad2deg(self._parameters[1])

    @property
    def volumes(self) -> Float[Tensor, "B"]:
        """Cell volumes in Å^3."""
        return torch.linalg.det(self.lattices).abs()

    @property
    def cart_coords(self) -> Float[Tensor, "N 3"]:
        """Cartesian coordinates in Å."""
        return torch.einsum("ni,nij->nj", self.frac_coords, self.lattices[self.batch])

    # ---- selection and combination ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.num_graphs

    def __getitem__(
        self, index: int | np.integer | slice | Sequence[int] | np.ndarray | Int[Tensor, "..."] | Bool[Tensor, "B"]
    ) -> CrystalBatch:
        """Select crystals by number, slice, list of numbers, index tensor or mask; the result is always a batch."""
        selected = self._resolve(index)
        num_atoms = self.num_atoms[selected]
        total = int(num_atoms.sum())
        starts = self.ptr[selected] - (num_atoms.cumsum(0) - num_atoms)
        atoms = torch.repeat_interleave(starts, num_atoms, output_size=total) + torch.arange(total, device=self.device)
        return CrystalBatch(
            atom_types=self.atom_types[atoms],
            frac_coords=self.frac_coords[atoms],
            lattices=self.lattices[selected],
            num_atoms=num_atoms,
            properties={name: values[selected] for name, values in self.properties.items()},
            conditions={name: values[selected] for name, values in self.conditions.items()},
        )

    def _resolve(self, index: int | np.integer | slice | Sequence[int] | np.ndarray | Tensor) -> Tensor:
        count = self.num_graphs
        if isinstance(index, (int, np.integer)):
            if not -count <= index < count:
                raise IndexError(f"crystal {index} of a batch of {count}")
            return torch.tensor([int(index) % count], device=self.device)
        if isinstance(index, slice):
            return torch.arange(*index.indices(count), device=self.device)
        chosen = torch.as_tensor(index, device=self.device)
        if chosen.dtype == torch.bool:
            return torch.arange(count, device=self.device)[chosen]
        numbers = chosen.reshape(-1).long() if chosen.numel() == 0 or chosen.ndim == 0 else chosen.long()
        # Beyond either end is an index that no tensor has; work that grows with the data set would slow every batch.
        return torch.where(numbers < 0, numbers + count, numbers).masked_fill(numbers < -count, count)

    @classmethod
    def cat(cls, batches: Iterable[CrystalBatch]) -> CrystalBatch:
        """Concatenate batches in order; properties and conditions are kept where all batches have them."""
        parts = list(batches)
        if not parts:
            raise ValueError("CrystalBatch.cat: expected at least one batch, got none")
        named = {kind: [getattr(part, kind) for part in parts] for kind in _PER_CRYSTAL}
        return cls(
            atom_types=torch.cat([part.atom_types for part in parts]),
            frac_coords=torch.cat([part.frac_coords for part in parts]),
            lattices=torch.cat([part.lattices for part in parts]),
            num_atoms=torch.cat([part.num_atoms for part in parts]),
            **{kind: _concatenated(entries) for kind, entries in named.items()},
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> CrystalBatch:
        """Return the batch on another device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return CrystalBatch(
            atom_types=moved(self.atom_types),
            frac_coords=moved(self.frac_coords),
            lattices=moved(self.lattices),
            num_atoms=moved(self.num_atoms),
            properties={name: moved(values) for name, values in self.properties.items()},
            conditions={name: moved(values) for name, values in self.conditions.items()},
        )

    def detach(self) -> CrystalBatch:
        """Return the batch without gradients."""
        return self.replace(
            frac_coords=self.frac_coords.detach(),
            lattices=self.lattices.detach(),
            properties={name: values.detach() for name, values in self.properties.items()},
            conditions={name: values.detach() for name, values in self.conditions.items()},
        )

    def replace(self, **changes: Tensor | Mapping[str, Tensor]) -> CrystalBatch:
        """Return a copy with some fields exchanged."""
        current = {item.name: getattr(self, item.name) for item in fields(self)}
        unknown = set(changes) - set(current)
        if unknown:
            raise ValueError(
                f"CrystalBatch.replace: unknown fields {sorted(unknown)}; expected some of {sorted(current)}"
            )
        made = CrystalBatch(**{**current, **changes})
        if made.num_atoms is self.num_atoms:  # what was derived from it stays as it is
            vars(made).update({name: vars(self)[name] for name in _OF_COUNTS if name in vars(self)})
        return made

    def right_handed(self) -> CrystalBatch:
        """Return the same crystals in right-handed cells.

        Cell vectors and fractional coordinates both change sign where det L < 0: (-f) (-L) = f L, so every atom stays
        where it is. Lengths and angles alone, which files and the model go by, would give the mirror image.
        """
        left = torch.linalg.det(self.lattices) < 0
        if not bool(left.any()):
            return self
        sign = torch.where(left, -1.0, 1.0).to(self.lattices)
        coords = torch.where(left[self.batch, None], wrap(-self.frac_coords), self.frac_coords)
        return self.replace(frac_coords=coords, lattices=self.lattices * sign[:, None, None])

    # ---- to and from other libraries --------------------------------------------------------------------------------

    @classmethod
    def empty(cls, num_atoms: Int[Tensor, "B"] | Sequence[int], device: torch.device | str = "cpu") -> CrystalBatch:
        """Return crystals of which only the atom counts are known: elements 0, coordinates 0, unit cells.

        This is what `VAEModule.sample` takes.
        """
        counts = torch.as_tensor(num_atoms, dtype=torch.long, device=device)
        if counts.ndim != 1 or bool((counts < 1).any()):
            raise ValueError(f"CrystalBatch.empty: num_atoms must be one positive count per crystal, got {num_atoms}")
        total = int(counts.sum())
        return cls(
            atom_types=torch.zeros(total, dtype=torch.long, device=device),
            frac_coords=torch.zeros(total, 3, device=device),
            lattices=torch.eye(3, device=device).repeat(len(counts), 1, 1),
            num_atoms=counts,
        )

    @classmethod
    def from_arrays(
        cls,
        crystals: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
        properties: Mapping[str, Tensor] | None = None,
    ) -> CrystalBatch:
        """Build from (atomic numbers, fractional coordinates, lattice) triples of arrays, one per crystal.

        A left-handed cell is expressed in the right-handed one of the opposite vectors: see `right_handed`.
        """
        triples = list(crystals)
        numbers = [np.asarray(numbers) for numbers, _, _ in triples]
        coords = [np.asarray(coords, dtype=np.float64).reshape(-1, 3) for _, coords, _ in triples]
        lattices = np.asarray([lattice for _, _, lattice in triples], dtype=np.float64).reshape(-1, 3, 3)
        hands = handedness(lattices)
        lattices *= hands[:, None, None]
        coords = [hand * entry for hand, entry in zip(hands, coords, strict=True)]
        return cls(
            atom_types=torch.from_numpy(np.concatenate([np.empty(0, np.int64), *numbers]).astype(np.int64)),
            frac_coords=wrap(wrap(torch.from_numpy(np.concatenate([np.empty((0, 3)), *coords]))).float()),
            lattices=torch.from_numpy(lattices.astype(np.float32)),
            num_atoms=torch.tensor([len(entry) for entry in numbers], dtype=torch.long),
            properties=properties or {},
        )

    @classmethod
    def from_structures(cls, structures: Iterable[Structure]) -> CrystalBatch:
        """Build from ordered pymatgen structures, cells and coordinates as they are (no reduction).

        Raises `ValueError` for a structure with partial occupancies, naming its position and formula.
        """

        def arrays() -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for position, structure in enumerate(structures):
                if not structure.is_ordered:
                    raise ValueError(
                        f"structure {position} ({structure.formula}) has partial occupancies; expected none"
                    )
                yield np.array(structure.atomic_numbers), structure.frac_coords, structure.lattice.matrix

        return cls.from_arrays(arrays())

    @classmethod
    def from_atoms(cls, atoms: Iterable[Atoms]) -> CrystalBatch:
        """Build from ASE atoms with three cell vectors; coordinates outside the cell are wrapped."""

        def arrays() -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for position, entry in enumerate(atoms):
                if entry.cell.rank < 3:
                    raise ValueError(f"atoms {position} ({entry.get_chemical_formula()}) has no three-dimensional cell")
                yield entry.numbers, entry.get_scaled_positions(wrap=False), np.asarray(entry.cell)

        return cls.from_arrays(arrays())

    @classmethod
    def from_pyg(cls, data: Batch) -> CrystalBatch:
        """Build from a PyG `Batch` with `atom_types`, `frac_coords`, `lattices` and `num_atoms`."""
        missing = [name for name in ("atom_types", "frac_coords", "lattices", "num_atoms") if name not in data]
        if missing:
            raise ValueError(f"PyG batch lacks {missing}; expected atom_types, frac_coords, lattices, num_atoms")
        given = cls(
            atom_types=data["atom_types"],
            frac_coords=wrap(data["frac_coords"]),
            lattices=data["lattices"].reshape(-1, 3, 3),
            num_atoms=data["num_atoms"].reshape(-1),
        )
        return given.right_handed()

    def to_pyg(self) -> Batch:
        """Return a PyG `Batch` of `Data` objects, with `pos` in Å and the derived cell parameters beside the fields."""
        from torch_geometric.data import Batch, Data

        items = []
        cart_coords, lengths, angles = self.cart_coords, self.lengths, self.angles
        for i, (start, stop) in enumerate(zip(self.ptr[:-1].tolist(), self.ptr[1:].tolist(), strict=True)):
            items.append(
                Data(
                    atom_types=self.atom_types[start:stop],
                    frac_coords=self.frac_coords[start:stop],
                    pos=cart_coords[start:stop],
                    lattices=self.lattices[i : i + 1],
                    lengths=lengths[i : i + 1],
                    angles=angles[i : i + 1],
                    num_atoms=self.num_atoms[i : i + 1],
                    num_nodes=stop - start,
                )
            )
        return Batch.from_data_list(items)

    def to_arrays(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return one (atomic numbers, fractional coordinates, lattice) triple of float64 arrays per crystal."""
        host = self.detach().to("cpu")
        counts = host.num_atoms.tolist()
        return [
            (numbers.numpy(), coords.double().numpy(), lattice.double().numpy())
            for numbers, coords, lattice in zip(
                host.atom_types.split(counts), host.frac_coords.split(counts), host.lattices, strict=True
            )
        ]

    def to_structure(self) -> list[Structure]:
        """Return pymatgen structures, one per crystal."""
        from pymatgen.core import DummySpecies, Element, Structure

        def species(number: int) -> Element | DummySpecies:
            return Element.from_Z(number) if number > 0 else DummySpecies("X")

        return [
            Structure(lattice, [species(int(number)) for number in numbers], coords)
            for numbers, coords, lattice in self.to_arrays()
        ]

    def to_cif(self, *, symmetry: bool = True) -> list[str]:
        """Return the text of a CIF per crystal; `DataError` for one that none can hold (unknown element, flat cell).

        Crystals in the symmetric description are written with their space group, its operations and the asymmetric
        unit of the conventional cell, unless `symmetry` is false or they have not that symmetry any more; all others
        with all atoms in P 1.
        """
        from crystalvae.data.file_records import cif_text, described_groups, file_records

        host, names = self.detach().to("cpu"), [f"crystal-{index}" for index in range(len(self))]
        records = file_records(
            host.atom_types, host.frac_coords, host.lattices, host.num_atoms, names,
            space_groups=described_groups(host.properties) if symmetry else None,
        )  # fmt: skip
        if missing := set(names) - {record.id for record in records}:
            raise DataError(
                f"{min(missing, key=names.index)}: cannot be written as CIF: unknown elements, or no finite cell"
            )
        return [cif_text(record) for record in records]

    def to_atoms(self) -> list[Atoms]:
        """Return ASE atoms with periodic boundaries, one per crystal."""
        from ase import Atoms

        return [
            Atoms(numbers=numbers, scaled_positions=coords, cell=lattice, pbc=True)
            for numbers, coords, lattice in self.to_arrays()
        ]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the first crystals in a viewer, and a table of them."""
        from crystalvae.data.view.notebook import MOST_SHOWN, crystals_html

        return crystals_html(self[:MOST_SHOWN].to_arrays(), self.num_graphs, self.num_nodes)


def handedness(lattices: Float[np.ndarray, "B 3 3"]) -> Float[np.ndarray, "B"]:
    """Return -1 for left-handed cells and 1 for all others."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(np.linalg.det(lattices) < 0, -1.0, 1.0)


def _concatenated(entries: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the tensors whose names all entries have; lists of whole numbers are filled up with -1."""
    shared = set.intersection(*(set(entry) for entry in entries))
    return {name: torch.cat(_as_wide([entry[name] for entry in entries])) for name in entries[0] if name in shared}


def _as_wide(parts: list[Tensor]) -> list[Tensor]:
    if any(part.ndim != 2 or part.is_floating_point() for part in parts):
        return parts
    width = max(part.shape[1] for part in parts)
    return [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=-1) for part in parts]
