"""The prior that says space groups and sites first: hints, known crystals, and crystals that are symmetric."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.data import covalent_radii
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.symmetric.projection import AtomSites, project
from crystalvae.data.symmetric.source import SPACE_GROUP, symmetric
from crystalvae.data.symmetric.space_groups import space_group
from crystalvae.data.symmetry import moyo_dataset
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import CheckpointError, ConfigError
from crystalvae.prior_module.analogues import Analogues
from crystalvae.prior_module.conditioned_genes import ConditionedGenes
from crystalvae.prior_module.genes import Genes
from crystalvae.prior_module.hints import SymmetryEmbedder, cell_features, place_features
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.sampling import SampleRequest, sample
from crystalvae.vae_module import draw_crystals
from crystalvae.vae_module.latent_source import DrawOptions
from tests.samples import tiny_prior, tiny_prior_config
from tests.test_canonical import CRYSTALS
from tests.test_symmetric_description import random_symmetric

GENE = {"d_model": 16, "nhead": 2, "num_layers": 1, "dropout": 0.0, "max_atoms": 24}
SYMMETRIC = {
    "_target_": "crystalvae.prior_module.symmetric_flow.SymmetricFlow",
    "gene": GENE,
    "composition": None,
    "sampler": {"steps": 3, "projection": True, "stochasticity": 1.0},
}


def described(*numbers: int, seed: int = 0) -> CrystalBatch:
    rng = np.random.default_rng(seed)
    return symmetric(CrystalBatch.cat([random_symmetric(number, rng) for number in numbers]))[0]


def textbook() -> CrystalBatch:
    return symmetric(CRYSTALS)[0]


def model(**options: Any) -> LatentPrior:
    """Return a tiny prior of symmetric crystals, whose training set are the textbook's and some random ones."""
    module = tiny_prior(**{**SYMMETRIC, **options})
    module.prior.gene.load_state_dict(ConditionedGenes(**GENE).state_dict())
    crystals = textbook()
    module.fit_statistics(crystals)
    counts = crystals.num_atoms.unique(return_counts=True)
    module.vae_module.statistics = {"num_atoms": dict(zip(*(part.tolist() for part in counts), strict=True))}
    return module


def found_groups(crystals: CrystalBatch, tolerance: float = 1e-3) -> list[int]:
    return [moyo_dataset(*arrays, tolerance).number for arrays in crystals.to_arrays()]


# ---- hints -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [12, 62, 166, 225])
def test_places_are_read_as_the_map_that_takes_the_first_atom_to_each(number: int):
    crystals = described(number, number, number, seed=number)
    sites = AtomSites.of(crystals)
    features = place_features(sites)
    matrix, cosines, sines = features[:, :9].view(-1, 3, 3), features[:, 9:12], features[:, 18:21]
    shift = torch.atan2(sines, cosines) / (2 * torch.pi)
    firsts = crystals.frac_coords[sites.first][sites.orbit]
    apart = torch.einsum("nij,nj->ni", matrix, firsts) + shift - crystals.frac_coords
    simple = (sites.freedom == 0) | (sites.freedom == 3)  # on others, lattice vectors may come in between
    assert bool(simple.any())
    assert (apart - apart.round())[simple].abs().max() < 1e-4


def test_cells_are_read_as_the_average_of_scalar_products():
    for number in (1, 15, 62, 166, 225):
        group = space_group(number)
        seed = np.random.default_rng(number).normal(size=(3, 3))
        metric = seed @ seed.T
        averaged = np.einsum("gji,jk,gkl->il", group.rotations, metric, group.rotations) / len(group.rotations)
        six = [metric[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (2, 1), (2, 0), (1, 0))]
        matrix = cell_features(torch.tensor([number]))[0].view(6, 6).double().numpy()
        expected = [averaged[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (2, 1), (2, 0), (1, 0))]
        np.testing.assert_allclose(six @ matrix, expected, atol=1e-5)


def test_symmetry_says_nothing_before_it_was_learned():
    atoms, crystals = SymmetryEmbedder(d_model=8)(AtomSites.of(textbook()))
    assert not atoms.any()
    assert not crystals.any()


def test_the_flow_is_told_sites_and_the_known_crystal():
    module, crystals = model(), described(62, 225)
    prior, vae = module.prior, module.vae_module.vae
    noise = torch.randn(crystals.num_nodes, prior.latent_dim, generator=torch.Generator().manual_seed(0))
    larger = crystals.replace(lattices=1.05 * crystals.lattices)
    prior.analogues.fit(larger)
    told = prior.hints(crystals, vae)
    assert bool((told.elements > 0).all())

    def answer(**changes: Any) -> torch.Tensor:
        return prior.estimate(noise, 0.5, crystals, {}, None, replace(told, **changes))

    first = answer()
    elsewhere = replace(told.sites, site=told.sites.site - 1)
    changes = (
        {"sites": elsewhere},
        {"latents": told.latents + 1.0},
        {"elements": torch.full_like(told.elements, 16)},
        {"distance": told.distance + 1.0},
    )
    for change in changes:
        assert not torch.allclose(answer(**change), first)
    nothing = torch.zeros_like(told.elements)
    assert torch.equal(answer(elements=nothing), answer(elements=nothing, latents=told.latents + 1.0))


# ---- known crystals --------------------------------------------------------------------------------------------------


def analogues_of(crystals: CrystalBatch) -> Analogues:
    known = Analogues()
    known.fit(crystals)
    return known


def with_elements(crystals: CrystalBatch, old: int, new: int) -> CrystalBatch:
    return crystals.replace(atom_types=torch.where(crystals.atom_types == old, new, crystals.atom_types))


def test_known_crystals_come_back_as_they_were_with_other_elements():
    crystals = described(12, 62, 139, 166, 194, 225, 227)
    asked = with_elements(crystals, 8, 16)
    models = analogues_of(crystals).find(asked, Genes.of(asked))
    assert bool(models.known.all())
    assert torch.equal(models.elements, crystals.atom_types)
    apart = models.crystals.frac_coords - crystals.frac_coords
    assert (apart - apart.round()).abs().max() < 1e-4
    scale = (models.crystals.volumes / crystals.volumes) ** (1 / 3)
    both = [numbers for batch in (asked, crystals) for numbers, _, _ in batch.to_arrays()]
    expected = torch.tensor([(covalent_radii[numbers] ** 3).sum() for numbers in both]).view(2, -1)
    torch.testing.assert_close(scale, ((expected[0] / expected[1]) ** (1 / 3)).float(), rtol=2e-3, atol=0)
    torch.testing.assert_close(
        models.crystals.lengths / crystals.lengths, scale[:, None].expand(-1, 3), rtol=2e-3, atol=0
    )
    matcher = StructureMatcher(scale=True)
    pairs = zip(models.crystals.to_structure(), asked.to_structure(), strict=True)
    assert all(matcher.fit(one, other) for one, other in pairs)


def test_a_crystal_is_no_model_of_itself():
    crystals = described(62, 225)
    known = analogues_of(crystals)
    assert not known.find(crystals, Genes.of(crystals)).known.any()
    larger = crystals.replace(lattices=1.02 * crystals.lattices)
    assert bool(known.find(larger, Genes.of(larger)).known.all())
    known.fit(CrystalBatch.cat([crystals, with_elements(crystals, 8, 52)]))
    found = known.find(crystals, Genes.of(crystals))
    assert set(found.elements.tolist()) == {12, 52}


def test_models_are_the_nearest_or_drawn_by_similarity():
    base = described(225)
    known = analogues_of(CrystalBatch.cat([base, with_elements(base, 8, 52)]))
    asked = CrystalBatch.cat([with_elements(base, 8, 34)] * 2000)
    nearest = known.find(asked[:1], Genes.of(asked[:1]))
    others = torch.tensor([[12, 8], [12, 52]])
    votes = known.similarity.log_votes(torch.tensor([[12, 34]]), others)[0].detach()
    assert float(nearest.distance[0]) == pytest.approx(-float(votes.max()), abs=1e-5)
    uniform = torch.rand(len(asked), generator=torch.Generator().manual_seed(0))
    drawn = known.find(asked, Genes.of(asked), noise=uniform)
    share = (drawn.elements == 8).float().sum() / (asked.atom_types == 34).sum()
    assert float(share) == pytest.approx(float(votes.softmax(dim=0)[0]), abs=0.04)


def test_known_crystals_are_kept_in_the_checkpoint(tmp_path: Path):
    module = model()
    module.save_checkpoint(tmp_path / "prior.ckpt")
    loaded = LatentPrior.load_from_checkpoint(tmp_path / "prior.ckpt")
    assert loaded.prior.analogues.genes() == module.prior.analogues.genes()
    assert torch.equal(loaded.prior.analogues.get_extra_state(), module.prior.analogues.get_extra_state())
    with pytest.raises(CheckpointError, match="damaged"):
        loaded.prior.analogues.set_extra_state(torch.zeros(40, dtype=torch.uint8))


# ---- training --------------------------------------------------------------------------------------------------------


def test_training_hides_the_known_crystal_at_the_given_share(monkeypatch: pytest.MonkeyPatch):
    for dropout, expected in ((0.0, 0.0), (1.0, 1.0)):
        module = LatentPrior(**{**tiny_prior_config(**SYMMETRIC), "analogue_dropout": dropout, "trained": ["flow"]})
        seen: list[torch.Tensor | None] = []
        hints = module.prior.hints
        monkeypatch.setattr(
            module.prior, "hints", lambda *a, noise, h=hints, s=seen: s.append(noise) or h(*a, noise=noise)
        )
        batch = TrainingBatch.whole(textbook())
        loss = module.losses(batch, training=True)["loss"]
        assert bool(torch.isfinite(loss))
        module.losses(batch, training=False)
        assert float(seen[0].isnan().float().mean()) == expected  # type: ignore[union-attr]
        assert seen[1] is None


def test_only_what_is_named_is_trained():
    module = LatentPrior(**{**tiny_prior_config(**SYMMETRIC), "trained": ["flow"]})
    learning = {name.split(".")[0] for name, part in module.prior.named_parameters() if part.requires_grad}
    assert learning == {"denoiser"}


@pytest.mark.parametrize("given", [True, False])
def test_the_gene_model_learns_alone(given: bool):
    module = LatentPrior(**{**tiny_prior_config(**SYMMETRIC), "trained": ["gene"], "composition_weight": 1.0})
    learning = [part for part in module.prior.parameters() if part.requires_grad]
    assert {name.split(".")[0] for name, part in module.prior.named_parameters() if part.requires_grad} == {"gene"}
    optimizer = torch.optim.Adam(learning, lr=1e-2)
    crystals = textbook()
    task = torch.full((len(crystals),), given)

    def of_task(flag: torch.Tensor | None) -> float:
        with torch.no_grad():
            return float(module.prior.gene_loss(crystals, {}, flag).mean())

    before, whole = of_task(task), module.losses(TrainingBatch.whole(crystals), training=False)
    for step in range(30):
        losses = module.losses(TrainingBatch.whole(crystals, seed=(0, 0, step)), training=True)
        assert set(losses) == {"loss", "gene_nll"}
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert of_task(task) < 0.5 * before
    assert of_task(None) == pytest.approx((of_task(task) + of_task(~task)) / 2, rel=1e-4)
    assert {"gene_nll", "flow_loss"} <= set(whole)


# ---- sampling --------------------------------------------------------------------------------------------------------


def draw(module: LatentPrior, number: int = 12, **options: Any) -> CrystalBatch:
    return sample(module.vae_module, SampleRequest(number=number, seed=3, **options))


def test_samples_have_their_space_groups_exactly():
    crystals = draw(model())
    said = crystals.properties[SPACE_GROUP].long().tolist()
    moved = project(crystals)
    assert (moved.lattices - crystals.lattices).abs().max() < 1e-4
    apart = moved.frac_coords - crystals.frac_coords
    assert (apart - apart.round()).abs().max() < 1e-4
    order = [len(space_group(number).rotations) for number in said]
    found = [len(space_group(number).rotations) for number in found_groups(crystals)]
    assert all(more >= least for more, least in zip(found, order, strict=True))  # by chance there may be more symmetry


@pytest.mark.parametrize("asked", [{"space_group": 225}, {"crystal_system": "hexagonal"}])
def test_space_groups_asked_for_are_met(asked: dict[str, Any]):
    groups = draw(model(), **asked).properties[SPACE_GROUP].long()
    low, high = (225, 225) if "space_group" in asked else (168, 194)
    assert bool(((groups >= low) & (groups <= high)).all())


def test_sites_asked_for_are_met():
    for asked in ({"num_atoms": 3}, {}, {"composition": "CaF2", "formula_units": 1}):
        crystals = draw(model(), space_group=225, wyckoff="a c", **asked)
        assert crystals.num_atoms.tolist() == [3] * 12
        for group, pairs in Genes.of(crystals).to_list():
            assert (group, sorted(site for _, site in pairs)) == (225, [0, 2])
        assert found_groups(crystals) == [225] * 12


def test_a_formula_comes_in_the_sizes_that_its_symmetry_allows():
    crystals = draw(model(), composition="NaCl", space_group=225)  # orbits have 1, 1, 2, 6 or more atoms
    assert crystals.num_atoms.tolist() == [2, 4, 12, 14] * 3
    assert {group for group, _ in Genes.of(crystals).to_list()} == {225}
    with pytest.raises(ConfigError, match="composition=NaCl: no crystal of the sizes seen in training can have"):
        draw(model(), composition="NaCl", space_group=225, wyckoff="a")


def test_structures_of_a_formula_have_its_atoms_and_different_genes():
    crystals = draw(model(), number=6, composition="NaCl", formula_units=2)
    genes = Genes.of(crystals).to_list()
    assert len(set(genes)) == len(genes)
    assert all(sorted(numbers) == [11, 11, 17, 17] for numbers, _, _ in crystals.to_arrays())


def test_chemical_systems_are_kept():
    crystals = draw(model(), num_atoms=8, chemical_system="Na-Cl")
    assert all(set(numbers.tolist()) == {11, 17} for numbers, _, _ in crystals.to_arrays())


def test_symmetric_samples_are_a_function_of_the_seed_and_projection_matters():
    module = model()
    first = draw(module)
    assert torch.equal(first.frac_coords, draw(module).frac_coords)
    other = draw(module, sampler={"projection": False})
    assert torch.equal(first.properties[SPACE_GROUP], other.properties[SPACE_GROUP])
    assert not torch.allclose(first.lattices, other.lattices)


def test_genes_of_formulas_are_not_drawn_again(monkeypatch: pytest.MonkeyPatch):
    module = model()
    calls: list[int] = []
    drawn = module.prior.draw_through
    monkeypatch.setattr(module.prior, "draw_through", lambda *a, **k: calls.append(1) or drawn(*a, **k))
    monkeypatch.setattr(draw_crystals, "contacts", lambda crystals: np.zeros(len(crystals)))
    for asked, expected in (({"num_atoms": 2}, 3), ({"composition": "NaCl", "formula_units": 1}, 1)):
        calls.clear()
        draw(module, 2, sampler={"redraws": 2}, **asked)
        assert len(calls) == expected


def test_a_trusted_model_is_what_comes_out():
    module = model()
    asked = CrystalBatch.cat([with_elements(textbook(), 11, 19), described(14)])
    vae = module.vae_module.vae
    given = asked.replace(lattices=torch.eye(3).repeat(len(asked), 1, 1))
    hints = module.prior.hints(given, vae)
    options = DrawOptions(sampler={"trust": 1.0, "projection": False, "stochasticity": 0.0})
    drawn = module.prior.draw_through(vae, given, options=options, generator=torch.Generator().manual_seed(0))
    there = hints.elements > 0
    latents = module.prior.standardize(drawn.latents)
    torch.testing.assert_close(latents[there], hints.latents[there], rtol=1e-4, atol=1e-4)
    assert bool(there.any())
    assert not bool(there.all())
    assert not torch.allclose(latents[~there], hints.latents[~there], atol=0.1)
    # What is not drawn would have come out of the solver just so.
    sampler, generator = module.prior.sampler_options(options.sampler), torch.Generator().manual_seed(0)
    shape = hints.latents.shape
    solved = module.prior.sample_latents(
        given, {}, options=sampler, noise=lambda: torch.randn(shape, generator=generator), hints=hints
    )
    torch.testing.assert_close(module.prior.standardize(solved)[there], hints.latents[there], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"space_group": 231}, "space_group: got 231"),
        ({"crystal_system": "round"}, "crystal_system: got 'round'"),
        ({"space_group": 225, "crystal_system": "hexagonal"}, "is not hexagonal"),
        ({"space_group": 225, "num_atoms": 5, "chemical_system": "Na-Cl-O-F-K"}, "can be like that"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], match: str):
    with pytest.raises(ConfigError, match=match):
        draw(model(), **options)


def test_priors_without_genes_refuse_space_groups_and_their_options():
    module = tiny_prior()
    for options in ({"space_group": 225}, {"crystal_system": "cubic"}):
        with pytest.raises(ConfigError, match="no gene model"):
            sample(module.vae_module, SampleRequest(number=2, num_atoms=4, **options))
    with pytest.raises(ConfigError, match="needs a prior with a gene model"):
        sample(module.vae_module, SampleRequest(number=2, num_atoms=4, sampler={"trust": 1.0}))


def test_genes_and_compositions_exclude_each_other():
    composition = {"d_model": 16, "nhead": 2, "num_layers": 1, "dropout": 0.0, "max_atoms": 12}
    with pytest.raises(ConfigError, match="genes take the place of compositions"):
        tiny_prior(**{**SYMMETRIC, "composition": composition})
