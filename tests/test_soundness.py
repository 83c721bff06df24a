"""A crystal that is no crystal is refused by name, and never changes what becomes of its neighbours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import DataError
from tests.samples import random_crystals, tiny_module


def _stretched(lattice: Tensor, factor: float) -> Tensor:
    return torch.cat((lattice[:1], lattice[1:2], lattice[2:] * factor))


CELLS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN": (lambda lattice: lattice * torch.nan, "not finite"),
    "infinite": (lambda lattice: lattice * torch.inf, "not finite"),
    "1e30 Å": (lambda lattice: lattice * 1e30, "absurd cell lengths"),
    "zero": (lambda lattice: lattice * 0, "absurd cell lengths"),
    "flat": (lambda lattice: torch.stack((lattice[0], lattice[1], lattice[0] + lattice[1])), "no volume"),
    "long": (lambda lattice: _stretched(lattice, 1e4), "absurd cell lengths"),
}
SIZES = (2, 3, 5, 1, 4)


def damaged(change: Callable[[Tensor], Tensor], row: int) -> CrystalBatch:
    crystals = random_crystals(SIZES, seed=3)
    lattices = crystals.lattices.clone()
    lattices[row] = change(lattices[row])
    return crystals.replace(lattices=lattices)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("row", [0, 3])
def test_a_cell_that_is_none_is_refused_by_name(name: str, row: int) -> None:
    change, reason = CELLS[name]
    crystals, module = damaged(change, row), tiny_module().eval()
    for call in (module.encode, module.embed, module.reconstruct_crystals, module.reconstruct_structures):
        with pytest.raises(DataError, match=rf"crystal {row} of 5 .*{reason}"):
            call(crystals)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_coordinates_that_are_none_are_refused_by_name(value: float) -> None:
    crystals = random_crystals(SIZES, seed=3)
    coords = crystals.frac_coords.clone()
    coords[6, 1] = value
    with pytest.raises(DataError, match=r"crystal 2 of 5 .*coordinates"):
        tiny_module().embed(crystals.replace(frac_coords=coords))


def test_structures_and_atoms_are_refused_too() -> None:
    crystals = damaged(CELLS["1e30 Å"][0], 1)
    for given in (crystals.to_structure(), crystals.to_atoms(), crystals.to_pyg()):
        with pytest.raises(DataError, match=r"structures: crystal 1 of 5 .*absurd cell lengths"):
            tiny_module().embed(given)


def test_sound_crystals_pass_as_they_are() -> None:
    crystals = random_crystals(SIZES, seed=3)
    alone = tiny_module().eval()
    torch.testing.assert_close(alone.embed(crystals)[2:3], alone.embed(crystals[2]), rtol=1e-4, atol=1e-5)
