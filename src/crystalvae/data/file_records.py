"""Crystals as files hold them: settled cells, rounded numbers, and the text of a CIF."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import gemmi
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystalvae.data.formulas import formula_and_mass
from crystalvae.data.lattice import lattice_from_parameters, lattice_to_parameters
from crystalvae.data.symmetric.asymmetric_unit import AsymmetricUnit, asymmetric_unit
from crystalvae.data.symmetric.space_groups import ORBIT_SITES, SPACE_GROUP

DECIMALS = 8
"""Decimals of cell lengths (Å), angles (degrees), fractional and Cartesian coordinates (Å) in every file."""
CELL_DECIMALS = 10
"""Decimals of the components of the cell vectors (Å)."""
MIN_VOLUME = 1e-3
"""Cells smaller than this (Å^3) cannot be read back from lengths and angles."""
LAST_ELEMENT = 118


@dataclass(frozen=True)
class FileRecord:
    """One crystal as every format writes it: already rounded, right-handed, c along z and a in the xz plane.

    `space_group` is that of a standard primitive cell, and else 0.
    """

    id: str
    symbols: list[str]
    numbers: np.ndarray
    frac_coords: np.ndarray
    cart_coords: np.ndarray
    cell: np.ndarray
    parameters: np.ndarray
    space_group: int = 0


def file_records(
    atom_types: Int[Tensor, "N"],
    frac_coords: Float[Tensor, "N 3"],
    lattices: Float[Tensor, "B 3 3"],
    num_atoms: Int[Tensor, "B"],
    ids: Sequence[str],
    *,
    space_groups: Sequence[int] | None = None,
) -> list[FileRecord]:
    """Return the records of those crystals that a file can hold, in order; `space_groups`: see `FileRecord`.

    It cannot hold atoms of no element (0), numbers that are not finite, cells without volume, and no atoms.
    """
    lattices, frac_coords = lattices.double(), frac_coords.double()
    owner = torch.repeat_interleave(torch.arange(len(num_atoms)), num_atoms)
    # -f · -L = f · L: the same atoms in a right-handed cell, so that lengths and angles say everything.
    sign = torch.where(torch.linalg.det(lattices) < 0, -1.0, 1.0).double()
    lengths, angles = lattice_to_parameters(lattices * sign[:, None, None])
    lengths, degrees = lengths.round(decimals=DECIMALS), torch.rad2deg(angles).round(decimals=DECIMALS)
    cells = lattice_from_parameters(lengths, torch.deg2rad(degrees)).round(decimals=CELL_DECIMALS) + 0.0
    # Rounded first, so that 1 - 1e-12 becomes 0 and not 1; adding 0.0 makes -0.0 into 0.0.
    frac_coords = torch.remainder((frac_coords * sign[owner, None]).round(decimals=DECIMALS), 1.0)
    frac_coords = frac_coords.round(decimals=DECIMALS) + 0.0
    cart_coords = torch.einsum("ni,nij->nj", frac_coords, cells[owner]).round(decimals=DECIMALS) + 0.0
    parameters = torch.cat((lengths, degrees), dim=-1)
    usable = torch.isfinite(parameters).all(-1) & (torch.linalg.det(cells) >= MIN_VOLUME) & (num_atoms > 0)
    usable[owner[~torch.isfinite(cart_coords).all(-1) | (atom_types < 1) | (atom_types > LAST_ELEMENT)]] = False
    symbols = [gemmi.Element(number).name for number in range(LAST_ELEMENT + 1)]
    counts = num_atoms.tolist()
    pieces = zip(
        usable.tolist(), ids, atom_types.split(counts), frac_coords.split(counts), cart_coords.split(counts),
        cells.numpy(), parameters.numpy(), [0] * len(counts) if space_groups is None else space_groups, strict=True,
    )  # fmt: skip
    return [
        FileRecord(
            name,
            [symbols[z] for z in numbers.tolist()],
            numbers.numpy(),
            frac.numpy(),
            cart.numpy(),
            cell,
            values,
            group,
        )
        for keep, name, numbers, frac, cart, cell, values, group in pieces
        if keep
    ]


def described_groups(properties: Mapping[str, Tensor]) -> list[int] | None:
    """Return the space groups of crystals in the symmetric description, as their properties name them, else None."""
    if SPACE_GROUP in properties and ORBIT_SITES in properties:
        return properties[SPACE_GROUP].long().tolist()
    return None


def cif_text(record: FileRecord) -> str:
    """Return a CIF, the record's id as the name of its block.

    Of a crystal with a space group: the conventional cell of the standard setting, the operations and the atoms of the
    asymmetric unit. Of all others, and of one whose atoms have not the symmetry of its group (they were relaxed, say):
    all atoms in P 1.
    """
    unit = None
    if record.space_group > 1:
        unit = asymmetric_unit(record.space_group, record.numbers, record.frac_coords, record.cell)
    atoms = _all_atoms(record) if unit is None else _independent_atoms(record, unit)
    counts: dict[str, int] = {}
    for symbol, multiplicity in zip(atoms.symbols, atoms.multiplicities, strict=True):
        counts[symbol] = counts.get(symbol, 0) + multiplicity
    units = math.gcd(*counts.values())
    formula, _ = formula_and_mass(tuple(sorted(record.numbers.tolist())))
    block = gemmi.cif.Block(record.id)
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    for name, value in zip(names, atoms.parameters, strict=True):
        block.set_pair(f"_cell_{name}", f"{value:.{DECIMALS}f}")
    block.set_pair("_cell_volume", f"{atoms.volume:.{DECIMALS}f}")
    block.set_pair("_cell_formula_units_Z", str(units))
    block.set_pair("_symmetry_space_group_name_H-M", gemmi.cif.quote(atoms.group.hm))
    if unit is not None:  # the name that tells one setting from another
        block.set_pair("_symmetry_space_group_name_Hall", gemmi.cif.quote(atoms.group.hall))
    block.set_pair("_symmetry_Int_Tables_number", str(atoms.group.number))
    block.set_pair("_chemical_formula_structural", formula)
    block.set_pair("_chemical_formula_sum", gemmi.cif.quote(_formula_sum(counts, units)))
    symmetry = block.init_loop("_symmetry_equiv_pos_", ["site_id", "as_xyz"])
    for index, operation in enumerate(_operations(atoms.group.hall), start=1):
        symmetry.add_row([str(index), f"'{operation}'"])
    sites = block.init_loop(
        "_atom_site_",
        ["type_symbol", "label", "symmetry_multiplicity", "fract_x", "fract_y", "fract_z", "occupancy"],
    )
    x, y, z = ([f"{value:.{DECIMALS}f}" for value in column] for column in atoms.frac_coords.T.tolist())
    labels = [f"{symbol}{index}" for index, symbol in enumerate(atoms.symbols)]
    multiplicities = [str(value) for value in atoms.multiplicities]
    sites.set_all_values([atoms.symbols, labels, multiplicities, x, y, z, ["1"] * len(labels)])
    return block.as_string()


@dataclass(frozen=True)
class _Listed:
    """What a CIF lists: cell (lengths in Å, angles in degrees; volume in Å^3), space group and atoms."""

    group: gemmi.SpaceGroup
    parameters: list[float]
    volume: float
    symbols: list[str]
    multiplicities: list[int]
    frac_coords: np.ndarray


def _all_atoms(record: FileRecord) -> _Listed:
    return _Listed(
        gemmi.SpaceGroup(1), record.parameters.tolist(), float(np.linalg.det(record.cell)), record.symbols,
        [1] * len(record.symbols), record.frac_coords,
    )  # fmt: skip


def _independent_atoms(record: FileRecord, unit: AsymmetricUnit) -> _Listed:
    lengths, angles = lattice_to_parameters(torch.from_numpy(unit.lattice)[None])
    parameters = torch.cat((lengths, torch.rad2deg(angles)), dim=-1)[0].round(decimals=DECIMALS)
    frac_coords = np.round(unit.frac_coords, DECIMALS) % 1.0
    return _Listed(
        unit.group, parameters.tolist(), float(np.linalg.det(unit.lattice)), [record.symbols[i] for i in unit.atoms],
        unit.multiplicities.tolist(), np.round(frac_coords, DECIMALS) + 0.0,
    )  # fmt: skip


@cache
def _operations(hall: str) -> list[str]:
    return [operation.triplet().replace(",", ", ") for operation in gemmi.symops_from_hall(hall)]


def _formula_sum(counts: Mapping[str, int], units: int) -> str:
    # Hill order, as the CIF dictionary has it: with carbon C and H first, else by the alphabet.
    order = sorted(
        counts, key=lambda symbol: ("C" in counts and symbol != "C", "C" in counts and symbol != "H", symbol)
    )
    return " ".join(f"{symbol}{counts[symbol] // units}" for symbol in order)
