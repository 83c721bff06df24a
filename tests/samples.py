"""What the tests of several topics share: random crystals, real prototypes and a model small enough to be instant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import (
    image_range,
    lattice_from_parameters,
    minimum_image_distances,
    random_rotations,
)
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.vae_module import VAEModule

SIZES = (4, 1, 7, 2)
"""Atom counts of the default batch: all different, so that padding, pooling and offsets matter."""


def random_crystals(sizes: tuple[int, ...] = SIZES, *, seed: int = 0, rotated: bool = True) -> CrystalBatch:
    """Crystals with random elements, coordinates and triclinic cells of sensible angles, in random orientations."""
    generator = torch.Generator().manual_seed(seed)
    graphs, atoms = len(sizes), sum(sizes)
    counts = torch.tensor(sizes)
    lengths = (2.0 + 2.0 * torch.rand(graphs, 3, generator=generator)) * counts[:, None].float().pow(1 / 3)
    angles = torch.deg2rad(70.0 + 40.0 * torch.rand(graphs, 3, generator=generator))
    lattices = lattice_from_parameters(lengths, angles)
    if rotated:
        lattices = lattices @ random_rotations(graphs, generator).transpose(-1, -2)
    return CrystalBatch(
        atom_types=torch.randint(1, 100, (atoms,), generator=generator),
        frac_coords=torch.rand(atoms, 3, generator=generator),
        lattices=lattices,
        num_atoms=counts,
        properties={"energy": torch.randn(graphs, generator=generator)},
    )


def shortest_distance(lattice: Tensor, frac_coords: Tensor) -> float:
    """The shortest distance in Å between any two atoms of one crystal, images of an atom included: slow and simple."""
    if abs(float(torch.linalg.det(lattice.double()))) < 1e-9:
        return 0.0
    counts = image_range(lattice, float(torch.linalg.vector_norm(lattice, dim=-1).min()))
    images = torch.cartesian_prod(*[torch.arange(-count, count + 1, dtype=torch.float64) for count in counts])
    own = float((images[(images != 0).any(dim=-1)] @ lattice.double()).norm(dim=-1).min())
    if len(frac_coords) < 2:
        return own
    distances = minimum_image_distances(lattice, frac_coords, frac_coords)
    return min(own, float(distances[~torch.eye(len(distances), dtype=torch.bool)].min()))


def rock_salt_and_friends() -> list[Any]:
    """Four textbook crystals as pymatgen structures: NaCl, diamond, wurtzite ZnS (hexagonal) and a triclinic one."""
    from pymatgen.core import Lattice, Structure

    return [
        Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Structure.from_spacegroup("Fd-3m", Lattice.cubic(3.567), ["C"], [[0, 0, 0]]),
        Structure.from_spacegroup(
            "P6_3mc", Lattice.hexagonal(3.82, 6.26), ["Zn", "S"], [[1 / 3, 2 / 3, 0.0], [1 / 3, 2 / 3, 0.375]]
        ),
        Structure(
            Lattice.from_parameters(4.1, 5.2, 6.3, 81.0, 95.0, 103.0),
            ["Li", "O", "O"],
            [[0.1, 0.2, 0.3], [0.9, -0.2, 1.4], [0.5, 0.5, 0.05]],
        ),
    ]


def tiny_config(
    *, encoder: dict[str, Any] | None = None, decoder: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """Config of a VAE of 16 hidden and 4 latent dimensions; `encoder`, `decoder` and `options` override its keys."""
    size = {"d_model": 16, "nhead": 2, "num_layers": 2, "dim_feedforward": 32}
    return {
        "encoder": {
            "_target_": "crystalvae.vae_module.encoders.transformer.TransformerEncoder",
            **size,
            **(encoder or {}),
        },
        "decoder": {
            "_target_": "crystalvae.vae_module.decoders.transformer.TransformerDecoder",
            **size,
            **(decoder or {}),
        },
        "latent_dim": 4,
        **options,
    }


def tiny_module(*, seed: int = 0, **options: Any) -> VAEModule:
    """A tiny VAE in evaluation mode, with weights large enough that every part of its input shows in its output."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = VAEModule(**tiny_config(**options)).eval()
        for name, parameter in module.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return module


def assert_same_crystals(got: CrystalBatch, expected: CrystalBatch, *, atol: float = 1e-5) -> None:
    """Compare two batches field by field, coordinates across the cell's edge."""
    assert got.num_atoms.tolist() == expected.num_atoms.tolist()
    assert got.atom_types.tolist() == expected.atom_types.tolist()
    torch.testing.assert_close(got.lattices, expected.lattices, atol=atol, rtol=1e-5)
    difference = got.frac_coords - expected.frac_coords
    torch.testing.assert_close(difference, difference.round(), atol=atol, rtol=0.0)


def tiny_prior_config(*, atom_type_predict: bool = False, **prior: Any) -> dict[str, Any]:
    """Config of a prior of 16 hidden dimensions over a tiny VAE, elements given or not; `prior` overrides its keys."""
    composition = {"d_model": 16, "nhead": 2, "num_layers": 1, "dropout": 0.0, "max_atoms": 12}
    size = {"d_model": 16, "nhead": 2, "num_layers": 2, "prediction": "x1", "sampler": {"steps": 4}}
    return {
        "vae": tiny_config(atom_type_predict=atom_type_predict),
        "prior": {
            "_target_": "crystalvae.prior_module.latent_flow.LatentFlow",
            **size,
            "composition": None if atom_type_predict else composition,
            **prior,
        },
    }


def tiny_prior(*, seed: int = 0, atom_type_predict: bool = False, trained: bool = True, **prior: Any) -> LatentPrior:
    """A tiny prior and its VAE in evaluation mode; unless `trained` is false, with weights that show in the output."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = LatentPrior(**tiny_prior_config(atom_type_predict=atom_type_predict, **prior)).eval()
        for name, parameter in module.named_parameters():
            if trained and "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return module
