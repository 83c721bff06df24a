"""Latent-space operations: what is true of them for any model, and of the bundled one on real crystals."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import read
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystalvae.data.augmentation import translate
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.lattice import minimum_image_distances
from crystalvae.data.sources import MP20
from crystalvae.errors import ConfigError, DataError, OutputError
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.latent_space.alignment import align
from crystalvae.vae_module.latent_space.embedding import rarest_origins
from crystalvae.vae_module.latent_space.index import EmbeddingIndex
from crystalvae.vae_module.latent_space.inputs import to_crystals
from crystalvae.vae_module.latent_space.interpolation import lerp, slerp
from crystalvae.vae_module.latent_space.maps import project
from crystalvae.vae_module.latent_space.write_series import write_series
from tests.samples import (
    SIZES,
    assert_same_crystals,
    random_crystals,
    rock_salt_and_friends,
    tiny_config,
    tiny_module,
    tiny_prior,
)

TRANSLATED = {"translate": True, "rotate": False}


def pair(size: int = 6, *, like: bool = True) -> tuple[CrystalBatch, CrystalBatch]:
    """Two random crystals of one size, of the same elements or not."""
    a, b = random_crystals((size,), seed=1), random_crystals((size,), seed=2)
    return a, b.replace(atom_types=a.atom_types) if like else b


def salt(cation: str, anion: str, a: float) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


# ---- interpolation formulas -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_slerp_is_the_formula_for_each_row(fraction: float):
    a, b = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    got = slerp(a, b, fraction)
    for row in range(5):
        angle = math.acos(float(a[row] @ b[row] / (a[row].norm() * b[row].norm())))
        weights = math.sin((1 - fraction) * angle) / math.sin(angle), math.sin(fraction * angle) / math.sin(angle)
        torch.testing.assert_close(got[row], weights[0] * a[row] + weights[1] * b[row])


def test_slerp_of_unit_vectors_stays_on_the_sphere_at_even_angles():
    a, b = torch.nn.functional.normalize(torch.randn(2, 1, 3, dtype=torch.float64), dim=-1)
    path = torch.cat([slerp(a, b, step / 8) for step in range(9)])
    torch.testing.assert_close(path.norm(dim=-1), torch.ones(9, dtype=torch.float64))
    cosines = (path[1:] * path[:-1]).sum(-1)
    torch.testing.assert_close(cosines, cosines[:1].expand(8))


def test_slerp_takes_the_line_where_there_is_no_one_great_circle():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(slerp(a, b, 0.25), lerp(a, b, 0.25))
    torch.testing.assert_close(lerp(a, b, 0.25), torch.tensor([[1.25, 0.0], [0.5, 0.0], [0.25, 0.25]]))


# ---- reparameterize -------------------------------------------------------------------------------------------------


def test_reparameterize_draws_from_the_gaussian_and_passes_gradients():
    mean, logvar = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, -1.0]])
    module, generator = tiny_module(), torch.Generator().manual_seed(0)
    drawn = module.reparameterize(mean.expand(20_000, 2), logvar.expand(20_000, 2), generator=generator)
    expected = torch.distributions.Normal(mean[0], torch.exp(0.5 * logvar[0]))
    torch.testing.assert_close(drawn.mean(0), expected.mean, atol=0.03, rtol=0.0)
    torch.testing.assert_close(drawn.std(0), expected.stddev, atol=0.03, rtol=0.0)
    mean, logvar = mean.requires_grad_(), logvar.requires_grad_()
    latents = module.reparameterize(mean, logvar, generator=torch.Generator().manual_seed(1))
    latents.sum().backward()
    assert mean.grad is not None
    assert logvar.grad is not None
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(logvar.grad, (0.5 * (latents - mean)).detach())  # d z / d log σ² = ½ σ ε


@pytest.mark.usefixtures("without_type_checks")
def test_reparameterize_refuses_shapes_that_differ():
    with pytest.raises(ConfigError, match=r"logvar: got shape \(2, 3\); expected that of mean, \(2, 4\)"):
        tiny_module().reparameterize(torch.zeros(2, 4), torch.zeros(2, 3))


# ---- alignment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [1, 2, 7, 12])
def test_alignment_finds_a_hidden_order_and_shift(size: int, seed: int):
    crystal = random_crystals((size,), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    elements = torch.tensor([11, 17, 8])[torch.randint(3, (size,), generator=generator)]
    crystal = crystal.replace(atom_types=elements)
    order = torch.randperm(size, generator=generator)
    moved = translate(crystal, torch.rand(1, 3, generator=generator))
    hidden = moved.replace(atom_types=moved.atom_types[order], frac_coords=moved.frac_coords[order])
    found = align(crystal, hidden)
    assert found.rms_distance < 1e-4
    assert found.substitutions == 0
    assert_same_crystals(found.apply(hidden), crystal, atol=1e-4)


def test_alignment_is_the_best_of_all_orders():
    for seed in range(5):
        a, b = random_crystals((4,), seed=seed), random_crystals((4,), seed=seed + 100)
        a, b = a.replace(atom_types=torch.tensor([3, 3, 8, 8])), b.replace(atom_types=torch.tensor([8, 3, 8, 3]))
        b = b.replace(lattices=a.lattices)
        squared = minimum_image_distances(a.lattices[0], a.frac_coords, b.frac_coords).square().double()
        allowed = [
            order for order in itertools.permutations(range(4)) if (b.atom_types[[*order]] == a.atom_types).all()
        ]
        best = min(float(sum(squared[i, j] for i, j in enumerate(order))) for order in allowed)
        found = align(a, b, shift_origin=False)
        assert found.rms_distance == pytest.approx(math.sqrt(best / 4), rel=1e-4)
        assert found.shift.tolist() == [0.0, 0.0, 0.0]
        assert align(a, b).rms_distance <= found.rms_distance + 1e-9


def test_alignment_does_not_depend_on_how_skewed_the_cell_is():
    a, b = pair(5)
    skew = torch.tensor([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [-3.0, 1.0, 1.0]])
    inverse = torch.linalg.inv(skew)

    def skewed(crystal: CrystalBatch) -> CrystalBatch:
        return crystal.replace(lattices=skew @ crystal.lattices, frac_coords=(crystal.frac_coords @ inverse) % 1.0)

    assert align(skewed(a), skewed(b)).rms_distance == pytest.approx(align(a, b).rms_distance, rel=1e-3)


def test_cations_become_cations():
    crystals = CrystalBatch.from_structures([salt("Na", "Cl", 5.64), salt("K", "Br", 6.6)])
    # All atoms of KBr are moved by half a cell: its anions stand where the other's cations are.
    moved = translate(crystals[1], torch.tensor([[0.5, 0.5, 0.5]]))
    found = align(crystals[0], moved)
    became = found.apply(moved).atom_types.tolist()
    assert dict(zip(crystals[0].atom_types.tolist(), became, strict=True)) == {11: 19, 17: 35}
    assert found.substitutions == 8
    assert found.rms_distance < 1e-4


def test_like_elements_come_before_short_distances():
    a = CrystalBatch.from_structures([Structure(Lattice.cubic(4.0), ["Li", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])])
    b = a.replace(atom_types=a.atom_types.flip(0))
    assert align(a, b, shift_origin=False).order.tolist() == [1, 0]


def test_alignment_refuses_other_sizes_and_flat_cells():
    with pytest.raises(ConfigError, match=r"a, b: got crystals of \[4\] and \[7\] atoms; expected the same number"):
        align(random_crystals((4,)), random_crystals((7,)))
    flat = random_crystals((4,)).replace(lattices=torch.ones(1, 3, 3))
    with pytest.raises(ConfigError, match="without a volume"):
        align(flat, flat)


# ---- interpolation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["linear", "slerp"])
@pytest.mark.parametrize("given", [False, True])
def test_the_ends_of_an_interpolation_are_the_reconstructions(mode: Any, given: bool):
    module = tiny_module(atom_type_predict=not given, augmentation=TRANSLATED)
    a, b = pair(like=False)
    path = module.interpolate(a, b, 5, mode)
    assert len(path) == 5
    assert path.properties["fraction"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert bool(torch.isfinite(path.lattices).all())
    assert bool((path.volumes > 0).all())
    assert_same_crystals(path[0], module.reconstruct_crystals(a), atol=1e-4)
    other = align(a, b).apply(b)
    assert_same_crystals(path[4], module.reconstruct_crystals(other), atol=1e-4)
    if given:
        assert path[1].atom_types.tolist() == a.atom_types.tolist()
        assert path[2].atom_types.tolist() == path[4].atom_types.tolist() == other.atom_types.tolist()


def test_an_interpolation_passes_through_the_mean_latent():
    module = tiny_module(augmentation=TRANSLATED)
    a, b = pair()
    other = align(a, b).apply(b)
    middle = (module.vae.encode(a).mode() + module.vae.encode(other).mode()) / 2
    expected = module.vae.to_crystals(module.vae.decode(middle, a), a)
    assert_same_crystals(module.interpolate(a, b, 3)[1], expected.detach(), atol=1e-4)


def test_origins_stay_where_a_model_was_trained_with_fixed_ones():
    a, b = pair()
    path = tiny_module().interpolate(a, b, 2)
    unmoved = align(a, b, shift_origin=False).apply(b)
    assert_same_crystals(path[1], tiny_module().reconstruct_crystals(unmoved), atol=1e-4)


def test_interpolation_keeps_the_properties_that_both_ends_share():
    a, b = pair()
    a = a.replace(properties={"same": torch.tensor([2.0]), "other": torch.tensor([1.0]), "own": torch.tensor([1.0])})
    b = b.replace(properties={"same": torch.tensor([2.0]), "other": torch.tensor([3.0])})
    path = tiny_module().interpolate(a, b, 3)
    assert set(path.properties) == {"same", "fraction"}
    assert path.properties["same"].tolist() == [2.0] * 3


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "cubic"}, "mode: got 'cubic'; expected one of 'linear', 'slerp'"),
        ({"steps": 1}, "steps: got 1; expected a whole number of at least 2"),
        ({"b": random_crystals((7,))}, r"a, b: got crystals of \[6\] and \[7\] atoms; expected the same number"),
        ({"b": random_crystals((6, 6))}, "b: got 2 crystals; expected one"),
        ({"b": "NaCl.cif"}, "b: got a str; expected a CrystalBatch, .* pymatgen structures or ASE atoms"),
        ({"b": CrystalBatch.empty([6])}, "b: got an atom with element 0"),
    ],
)
def test_interpolation_says_what_is_wrong(options: dict[str, Any], message: str):
    a, b = pair()
    with pytest.raises(ConfigError, match=message):
        tiny_module().interpolate(**{"a": a, "b": b, "steps": 3, **options})


VQ = {"_target_": "crystalvae.vae_module.bottlenecks.vq.VQBottleneck", "num_codebooks": 2, "codebook_size": 8}
LEVELS = {
    "_target_": "crystalvae.vae_module.bottlenecks.hierarchical.HierarchicalBottleneck",
    "crystal_dim": 3,
    "width": 8,
}


@pytest.mark.parametrize("operation", ["interpolate", "latent_traversal"])
def test_codes_cannot_be_walked(operation: str):
    module = tiny_module(bottleneck=VQ)
    a, b = pair()
    with pytest.raises(ConfigError, match=rf"{operation}: needs a Gaussian latent .* gives a QuantizedPosterior"):
        module.interpolate(a, b, 3) if operation == "interpolate" else module.latent_traversal(a, 0)
    assert len(module.reconstruct_structures(a)) == 1
    assert module.embed(a).shape == (1, 8)


def test_hierarchical_latents_are_walked_level_by_level():
    module = tiny_module(bottleneck=LEVELS)
    a, b = pair()
    path = module.interpolate(a, b, 3)
    assert_same_crystals(path[0], module.reconstruct_crystals(a), atol=1e-4)
    assert module.latent_dim == 7
    moved = module.latent_traversal(a, 6, (0.0, 2.0), 2)  # a number of the crystal's latent
    assert_same_crystals(moved[0], module.reconstruct_crystals(a), atol=1e-4)
    assert float((moved[1].lattices - moved[0].lattices).abs().max()) > 1e-4


FAMILIES = {
    "cgcnn": {"_target_": "crystalvae.vae_module.encoders.cgcnn.CGCNNEncoder", "d_model": 16, "num_layers": 1},
    "mlp": {"_target_": "crystalvae.vae_module.encoders.mlp.MLPEncoder", "d_model": 16, "num_layers": 1},
    "gru": {"_target_": "crystalvae.vae_module.encoders.gru.GRUEncoder", "d_model": 16, "num_layers": 1},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_encoders_walks_and_embeds(family: str):
    decoder = tiny_config()["decoder"]
    module = VAEModule(encoder=FAMILIES[family], decoder=decoder, latent_dim=4, augmentation=TRANSLATED).eval()
    a, b = pair(5)
    path = module.interpolate(a, b, 3)
    assert_same_crystals(path[0], module.reconstruct_crystals(a), atol=1e-4)
    moved = translate(a, torch.rand(1, 3))
    torch.testing.assert_close(module.embed(moved), module.embed(a), atol=1e-4, rtol=1e-4)


def test_a_conditional_model_walks_knowing_what_crystals_are_and_embeds_without():
    condition = {"names": ["energy", "crystal_system"], "d_model": 8}
    module = tiny_module(condition=condition)
    module.vae.fit_conditions(
        random_crystals((3, 4, 5)).replace(
            properties={"energy": torch.tensor([0.0, 1.0, 3.0]), "space_group": torch.tensor([1.0, 225.0, 166.0])}
        ),
    )
    a, b = pair()
    a, b = (crystal.replace(properties={"energy": torch.tensor([2.0])}) for crystal in (a, b))
    path = module.interpolate(a, b, 3)
    assert_same_crystals(path[0], module.reconstruct_crystals(a), atol=1e-4)
    assert set(path.properties) == {"energy", "fraction"}
    plain = a.replace(properties={})
    assert float((path[0].lattices - module.interpolate(plain, b, 3)[0].lattices).abs().max()) > 1e-4
    torch.testing.assert_close(module.embed(a), module.embed(plain))
    assert module.latent_traversal(a, 1, steps=2).properties["energy"].tolist() == [2.0, 2.0]


def check_walks(module: VAEModule, crystals: CrystalBatch, pairs: int) -> None:
    """Interpolations between random pairs of one size: ends that match what was given, finite cells in between."""
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    generator = torch.Generator().manual_seed(0)
    for step in range(pairs):
        first = int(torch.randint(len(crystals), (), generator=generator))
        same = (crystals.num_atoms == crystals.num_atoms[first]).nonzero().squeeze(-1)
        second = int(same[int(torch.randint(len(same), (), generator=generator))])
        ends = crystals[[first, second]].to_structure()
        path = module.interpolate(ends[0], ends[1], 5, "linear" if step % 2 else "slerp")
        assert bool(torch.isfinite(path.lattices).all())
        assert bool((path.volumes > 1.0).all())
        assert bool(torch.isfinite(path.frac_coords).all())
        walked = path.to_structure()
        assert matcher.fit(walked[0], ends[0]), ends[0].formula
        assert matcher.fit(walked[-1], ends[1]), ends[1].formula


@pytest.mark.mp20
def test_interpolation_between_mp_20_crystals_ends_at_them(mp20_dir: Path, tmp_path: Path):
    module = VAEModule.load_from_checkpoint("mp20-vae-small")
    source = MP20(data_dir=str(mp20_dir), cache_dir=str(tmp_path))
    check_walks(module, source.load("val").crystals, pairs=8)


def test_interpolation_between_textbook_crystals_ends_at_them():
    def perovskite(large: str, small: str, anion: str, a: float) -> Structure:
        return Structure.from_spacegroup(
            "Pm-3m", Lattice.cubic(a), [large, small, anion], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
        )

    salts = [salt("Na", "Cl", 5.64), salt("K", "Br", 6.6), salt("Mg", "O", 4.21), salt("Ti", "N", 4.24)]
    cubes = [perovskite("Sr", "Ti", "O", 3.91), perovskite("K", "Mg", "F", 3.99), perovskite("La", "Al", "O", 3.79)]
    crystals = CrystalBatch.from_structures([structure.get_primitive_structure() for structure in (*salts, *cubes)])
    check_walks(VAEModule.load_from_checkpoint("mp20-vae-small"), crystals, pairs=6)


def test_a_bundled_model_that_is_given_the_elements_walks_too():
    module = VAEModule.load_from_checkpoint("mp20-small")
    path = module.interpolate(salt("Na", "Cl", 5.64), salt("K", "Br", 6.6), 4)
    formulas = [structure.composition.reduced_formula for structure in path.to_structure()]
    assert formulas == ["NaCl", "NaCl", "KBr", "KBr"]
    volumes = path.volumes.tolist()
    assert volumes == sorted(volumes), "the cell grows from one salt to the other"
    assert [volumes[0], volumes[-1]] == pytest.approx([5.64**3, 6.6**3], rel=0.05)


# ---- traversal ------------------------------------------------------------------------------------------------------


def test_a_traversal_moves_one_latent_number():
    module, crystal = tiny_module(), random_crystals((5,))

    def moved(atoms: slice) -> CrystalBatch:
        latents = module.vae.encode(crystal).mode().detach()
        latents[atoms, 2] += 2.0
        return module.vae.to_crystals(module.vae.decode(latents, crystal), crystal).detach()

    path = module.latent_traversal(crystal, 2, (-1.0, 2.0), 4)
    assert path.properties["offset"].tolist() == [-1.0, 0.0, 1.0, 2.0]
    assert_same_crystals(path[1], module.reconstruct_crystals(crystal), atol=1e-4)
    assert_same_crystals(path[3], moved(slice(None)), atol=1e-4)
    alone = module.latent_traversal(crystal, 2, range=(-1.0, 2.0), steps=4, atom=3)
    assert_same_crystals(alone[3], moved(slice(3, 4)), atol=1e-4)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 4}, "dim: got 4; this model's latents are numbered 0 to 3"),
        ({"dim": -1}, "dim: got -1; this model's latents are numbered 0 to 3"),
        ({"dim": 1.0}, "dim: got 1.0"),
        ({"atom": 5}, "atom: got 5; this crystal's atoms are numbered 0 to 4"),
        ({"steps": 0}, "steps: got 0; expected a whole number of at least 1"),
        ({"range": (0.0, math.nan)}, r"range: got \(0.0, nan\); expected two finite numbers"),
    ],
)
def test_traversal_says_what_is_wrong(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        tiny_module().latent_traversal(random_crystals((5,)), **{"dim": 0, **options})


# ---- reconstruction and samples -------------------------------------------------------------------------------------


def test_structures_are_reconstructed_with_the_mean_or_a_draw():
    module, crystals = tiny_module(), random_crystals()
    structures = module.reconstruct_structures(crystals.to_structure(), batch_size=3)
    assert_same_crystals(CrystalBatch.from_structures(structures), module.reconstruct_crystals(crystals), atol=1e-3)
    atoms = module.reconstruct_structures(crystals.to_atoms())
    assert [structure.formula for structure in atoms] == [structure.formula for structure in structures]

    def drawn(seed: int) -> list[Structure]:
        return module.reconstruct_structures(crystals, False, generator=torch.Generator().manual_seed(seed))

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_a_number_of_samples_takes_its_sizes_from_the_training_set():
    module = tiny_module()
    module.statistics = {"num_atoms": {3: 1, 8: 3}}
    counts = module.sample(400, generator=torch.Generator().manual_seed(0)).num_atoms
    assert set(counts.tolist()) == {3, 8}
    assert float((counts == 8).float().mean()) == pytest.approx(0.75, abs=0.06)
    first, again = (module.generate(5, generator=torch.Generator().manual_seed(1), temperature=0.5) for _ in range(2))
    assert_same_crystals(first, again, atol=0.0)
    assert all(isinstance(structure, Structure) for structure in module.sample(2, return_structures=True))


def test_numbers_of_samples_may_be_numpys_and_batches_may_not_be_empty(without_type_checks: None):
    module = tiny_module()
    module.statistics = {"num_atoms": {3: 1}}
    count: Any = np.int64(2)
    assert len(module.sample(count)) == 2
    with pytest.raises(DataError, match="no crystals: expected a batch of at least one"):
        module.encode(CrystalBatch.empty([]))


def test_a_number_of_samples_from_a_prior_leaves_room_for_a_chemical_system():
    module = tiny_prior().vae_module
    module.statistics = {"num_atoms": {1: 50, 2: 50, 3: 1}}
    drawn = module.sample(4, generator=torch.Generator().manual_seed(0), chemical_system="Li-Na-O")
    assert drawn.num_atoms.tolist() == [3] * 4


@pytest.mark.usefixtures("without_type_checks")
def test_a_number_of_samples_that_cannot_be_had():
    module = tiny_module()
    with pytest.raises(ConfigError, match=r"holds no distribution of atom counts.* CrystalBatch.empty"):
        module.sample(3)
    module.statistics = {"num_atoms": {3: 1}}
    for count in (0, -1, True):
        with pytest.raises(ConfigError, match="the number of crystals: got"):
            module.sample(count)
    given = tiny_module(atom_type_predict=False)
    given.statistics = {"num_atoms": {3: 1}}
    with pytest.raises(ConfigError, match="predicts structures for given elements"):
        given.sample(3)


# ---- embeddings -----------------------------------------------------------------------------------------------------


def test_embeddings_depend_on_neither_origin_nor_order_nor_batch():
    module, crystals = tiny_module(augmentation=TRANSLATED), random_crystals()
    vectors = module.embed(crystals)
    assert vectors.shape == (len(SIZES), 2 * module.latent_dim)
    assert not vectors.requires_grad
    moved = translate(crystals, torch.rand(len(crystals), 3))
    order = torch.cat([ptr + torch.randperm(size) for ptr, size in zip(crystals.ptr[:-1], SIZES, strict=True)])
    moved = moved.replace(atom_types=moved.atom_types[order], frac_coords=moved.frac_coords[order])
    torch.testing.assert_close(module.embed(moved), vectors, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(module.embed(crystals, batch_size=1), vectors, atol=1e-5, rtol=1e-5)
    assert float(torch.cdist(vectors, vectors).fill_diagonal_(9.0).min()) > 1e-3
    fixed = tiny_module()  # trained at fixed origins: crystals are embedded as they are
    assert float((fixed.embed(moved) - fixed.embed(crystals)).abs().max()) > 1e-3


def test_embeddings_are_mean_and_spread_over_atoms():
    module, crystals = tiny_module(), random_crystals()
    latents = module.vae.encode(crystals).mode().detach()
    for vector, own in zip(module.embed(crystals), latents.split(list(SIZES)), strict=True):
        torch.testing.assert_close(vector, torch.cat((own.mean(0), own.std(0, correction=0))), atol=1e-5, rtol=1e-5)


def test_origins_are_the_atoms_of_the_rarest_element():
    crystals = random_crystals((5, 3)).replace(atom_types=torch.tensor([8, 8, 3, 3, 3, 9, 7, 8]))
    views, owner = rarest_origins(crystals)
    assert owner.tolist() == [0, 0, 1]  # two O; of N, O, F with one atom each the lightest
    assert views.num_atoms.tolist() == [5, 5, 3]
    for view, atom in enumerate((0, 1, 1)):
        assert views[view].frac_coords[atom].tolist() == [0.0, 0.0, 0.0]


# ---- nearest --------------------------------------------------------------------------------------------------------


def dataset(seed: int = 3) -> CrystalDataset:
    crystals = random_crystals((4, 3, 4, 2, 6, 1), seed=seed)
    return CrystalDataset(crystals, [f"c{row}" for row in range(6)])


def test_the_nearest_of_a_training_crystal_is_itself_at_any_origin():
    module, data = tiny_module(augmentation=TRANSLATED), dataset()
    index = module.build_index(data, batch_size=4)
    assert len(index) == 6
    for row in range(6):
        moved = translate(data.crystals[row], torch.rand(1, 3))
        found = module.nearest(moved, 3)
        assert (found.ids[0], found.rows[0]) == (f"c{row}", row)
        assert found.distances[0] < 1e-3 < found.distances[1] <= found.distances[2]
        assert_same_crystals(found.crystals[0], data.crystals[row])
    vectors = module.embed(data.crystals)
    scaled = vectors / vectors.std(0, correction=0)
    expected = torch.cdist(scaled[2:3], scaled)[0].sort()
    assert module.nearest(data.crystals[2], 6).rows == expected.indices.tolist()
    assert module.nearest(data.crystals[2], 6).distances[1:] == pytest.approx(expected.values[1:].tolist(), rel=1e-3)


def test_nearest_needs_an_index_of_this_model():
    module, data = tiny_module(), dataset()
    with pytest.raises(ConfigError, match=r"no index to search; .*build_index"):
        module.nearest(data.crystals[0])
    index = module.build_index(data)
    with pytest.raises(ConfigError, match="k: got 7; the index holds 6 crystals"):
        module.nearest(data.crystals[0], 7)
    with pytest.raises(ConfigError, match="made with other weights"):
        tiny_module(seed=1).nearest(data.crystals[0], index=index)


def test_an_index_is_kept_on_disk_for_the_same_weights_and_crystals(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    module, data = tiny_module(), dataset()
    built: list[int] = []
    first = EmbeddingIndex.build(module.vae, data, cache_dir=tmp_path, advance=built.append)
    assert built == [6]
    again = EmbeddingIndex.build(module.vae, data, cache_dir=tmp_path, advance=built.append)
    assert built == [6], "read, not made again"
    assert torch.equal(first.embeddings, again.embeddings)
    EmbeddingIndex.build(tiny_module(seed=1).vae, data, cache_dir=tmp_path)
    EmbeddingIndex.build(module.vae, dataset(4), cache_dir=tmp_path)
    EmbeddingIndex.build(module.vae, data, cache_dir=tmp_path, every_origin=False)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    for path in files:
        path.write_bytes(b"nothing of the kind")
    repaired = EmbeddingIndex.build(module.vae, data, cache_dir=tmp_path, advance=built.append)
    assert built == [6, 6]
    assert "damaged" in caplog.text
    assert torch.equal(first.embeddings, repaired.embeddings)


# ---- maps -----------------------------------------------------------------------------------------------------------


def test_principal_components_are_those_of_the_correlation_matrix():
    values = (
        torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        @ torch.randn(5, 5).double()
    )
    points = project(values)
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(values.numpy().T))[::-1]
    np.testing.assert_allclose(points.var(axis=0), eigenvalues[:2], rtol=1e-8)
    assert abs(np.corrcoef(points.T)[0, 1]) < 1e-8
    assert project(torch.arange(6.0).view(6, 1)).shape == (6, 2)


def test_a_map_is_a_png_coloured_by_a_property(tmp_path: Path):
    module, crystals = tiny_module(), random_crystals((2, 3, 4, 5, 1))
    energies = crystals.properties["energy"].clone()
    energies[1] = torch.nan
    crystals = crystals.replace(properties={"energy": energies})
    points = module.latent_map(crystals, tmp_path / "maps" / "energy.png", color="energy")
    assert points.shape == (5, 2)
    picture = (tmp_path / "maps" / "energy.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    module.latent_map(crystals, tmp_path / "plain.png")
    assert (tmp_path / "plain.png").read_bytes() != picture
    with pytest.raises(ConfigError, match="color: these crystals have no property 'band_gap'; they have energy"):
        module.latent_map(crystals, tmp_path / "x.png", color="band_gap")
    with pytest.raises(ConfigError, match="map: got 2 crystals; expected at least 3"):
        module.latent_map(crystals[:2], tmp_path / "x.png")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        module.latent_map(crystals, tmp_path / "file" / "x.png")


def test_umap_names_its_extra_where_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"method=umap needs .*pip install 'crystalvae\[umap\]'"):
        project(torch.randn(10, 4), method="umap")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # numba's and scikit-learn's own
def test_umap_separates_what_lies_apart():
    pytest.importorskip("umap")
    values = torch.cat((torch.randn(40, 6), torch.randn(40, 6) + 20.0))
    points = project(values, method="umap", seed=1)
    centres = points[:40].mean(axis=0), points[40:].mean(axis=0)
    apart = float(np.linalg.norm(centres[0] - centres[1]))
    assert apart > 3 * max(points[:40].std(), points[40:].std()) or apart > 5
    np.testing.assert_array_equal(project(values, method="umap", seed=1), points)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_walk_is_written_as_cifs_and_as_one_trajectory(tmp_path: Path):
    path = tiny_module().interpolate(*pair(), 4)
    path = path.replace(properties={"fraction": path.properties["fraction"]})
    files = write_series(path, tmp_path / "walk", columns={"step": range(4)})
    names = [file.name for file in files]
    assert names == [*(f"{i:04}.cif" for i in range(4)), "samples.extxyz", "samples.csv", "samples.json"]
    frames: Any = read(tmp_path / "walk" / "samples.extxyz", index=":")
    assert [len(frame) for frame in frames] == [6] * 4
    np.testing.assert_allclose([frame.get_volume() for frame in frames], path.volumes, rtol=1e-4)
    rows = (tmp_path / "walk" / "samples.csv").read_text().splitlines()
    assert rows[0] == "id,step,fraction,formula,atoms,volume,density"
    assert rows[2].startswith("0001,1,0.33333334,")


# ---- what is taken as crystals --------------------------------------------------------------------------------------


def test_crystals_may_come_in_any_form():
    structures = rock_salt_and_friends()
    batch = CrystalBatch.from_structures(structures)
    forms = (
        batch,
        structures,
        batch.to_atoms(),
        batch.to_pyg(),
        CrystalDataset(batch, list("abcd")),
        tuple(structures),
    )
    for form in forms:
        assert_same_crystals(to_crystals("x", form), batch, atol=1e-4)
    assert len(to_crystals("x", structures[0])) == 1
    assert len(to_crystals("x", batch.to_atoms()[0])) == 1


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("given", [[], None, [1, 2], [rock_salt_and_friends()[0], "Li"], 3.0])
def test_what_is_no_crystal_is_said(given: object):
    with pytest.raises(ConfigError, match=r"x: got .*; expected a CrystalBatch"):
        to_crystals("x", given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="x: got no crystal"):
        to_crystals("x", random_crystals()[[]])
