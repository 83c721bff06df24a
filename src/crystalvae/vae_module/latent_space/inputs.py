"""Crystals in any of the forms in which research code has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from jaxtyping import Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure
    from torch_geometric.data import Batch

_EXPECTED = "a CrystalBatch, a CrystalDataset, a PyG Batch, or pymatgen structures or ASE atoms, one or a list of them"


def as_crystals(batch: CrystalBatch | Batch | TrainingBatch) -> CrystalBatch:
    """Return crystals from any of the batch types that research code passes around."""
    if isinstance(batch, CrystalBatch):
        return batch
    return batch.crystals if isinstance(batch, TrainingBatch) else CrystalBatch.from_pyg(batch)


def given_crystals(
    name: str,
    given: CrystalBatch
    | Batch
    | TrainingBatch
    | CrystalDataset
    | Structure
    | Atoms
    | Sequence[Structure]
    | Sequence[Atoms],
) -> CrystalBatch:
    """Return crystals from batches as they are, elements that are not known included, or as `to_crystals` does."""
    from torch_geometric.data.data import BaseData

    if isinstance(given, (CrystalBatch, TrainingBatch, BaseData)):
        return as_crystals(cast("CrystalBatch", given))
    return to_crystals(name, given)


def to_crystals(
    name: str,
    structures: CrystalBatch | CrystalDataset | Batch | Structure | Atoms | Sequence[Structure] | Sequence[Atoms],
) -> CrystalBatch:
    """Return a batch of structures, cells and coordinates as they are; `name` is what an error calls them.

    Raises `ConfigError` for what is none, for nothing at all, and for atoms without an element.
    """
    from ase import Atoms
    from pymatgen.core import Structure
    from torch_geometric.data import Batch

    crystals: CrystalBatch | None = None
    if isinstance(structures, (CrystalBatch, CrystalDataset)):
        crystals = structures.crystals if isinstance(structures, CrystalDataset) else structures
    elif isinstance(structures, (Batch, TrainingBatch)):
        crystals = as_crystals(structures)
    else:
        # A structure is itself a sequence, of sites.
        several = [structures] if isinstance(structures, (Structure, Atoms)) else structures
        entries = list(several) if isinstance(several, Sequence) else []
        pymatgen = [entry for entry in entries if isinstance(entry, Structure)]
        ase = [entry for entry in entries if isinstance(entry, Atoms)]
        if entries and len(pymatgen) == len(entries):
            crystals = CrystalBatch.from_structures(pymatgen)
        elif entries and len(ase) == len(entries):
            crystals = CrystalBatch.from_atoms(ase)
    if crystals is None:
        kind = "an empty list" if structures == [] else f"a {type(structures).__name__}"
        raise ConfigError(f"{name}: got {kind}; expected {_EXPECTED}")
    if len(crystals) == 0:
        raise ConfigError(f"{name}: got no crystal; expected at least one")
    if bool((crystals.atom_types < 1).any()):
        raise ConfigError(f"{name}: got an atom with element 0; expected crystals whose elements are known")
    return crystals


def to_crystal(name: str, structure: CrystalBatch | Batch | Structure | Atoms) -> CrystalBatch:
    """Return a batch of one crystal; `ConfigError` for any other number."""
    crystals = to_crystals(name, structure)
    if len(crystals) != 1:
        raise ConfigError(f"{name}: got {len(crystals)} crystals; expected one")
    return crystals


def property_values(crystals: CrystalBatch, name: str, *, key: str) -> Float[Tensor, "B"]:
    """Return a property of crystals; `ConfigError` naming the config `key` and what there is, where it is unknown."""
    if name not in crystals.properties:
        known = ", ".join(sorted(crystals.properties)) or "none"
        raise ConfigError(f"{key}: these crystals have no property {name!r}; they have {known}")
    return crystals.properties[name].float().to("cpu")
