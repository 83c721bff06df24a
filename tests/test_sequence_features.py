"""Features of frames: what they depend on and what they do not, and the way back to crystals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crystalvae.data.lattice import random_rotations
from crystalvae.data.trajectories import Trajectory
from crystalvae.errors import ConfigError, DataError
from crystalvae.sequence_module.features import EmbeddingFeatures, FrameFeatures, GeometryFeatures, LatentFeatures
from crystalvae.vae_module.latent_space.embedding import embed
from tests.samples import tiny_config
from tests.sequences import swinging

ATOMS = [55, 17]


def geometry(reference: Trajectory | None = None) -> GeometryFeatures:
    features = GeometryFeatures(atom_types=ATOMS)
    features.prepare([reference or swinging()])
    return features


def latents() -> LatentFeatures:
    torch.manual_seed(0)
    return LatentFeatures(vae=tiny_config(), atom_types=ATOMS)


def embedding() -> EmbeddingFeatures:
    torch.manual_seed(0)
    return EmbeddingFeatures(vae=tiny_config())


def sheared() -> Trajectory:
    """A swinging cell that is sheared and strained, frame by frame."""
    given = swinging()
    generator = torch.Generator().manual_seed(0)
    strain = 0.05 * torch.randn(len(given), 3, 3, generator=generator, dtype=torch.float64)
    return replace(given, lattices=given.lattices @ (torch.eye(3, dtype=torch.float64) + strain))


# ---- geometry --------------------------------------------------------------------------------------------------------


def test_the_reference_is_zero_and_a_known_strain_and_displacement_is_read_off():
    given = swinging()
    raw = geometry(given).of(given)
    assert raw.shape == (60, 12)
    assert not raw[0].any()
    stretch = given.lattices[:, 2, 2] / given.lattices[0, 2, 2]
    torch.testing.assert_close(raw[:, 2].double(), 0.5 * (stretch**2 - 1), atol=1e-6, rtol=0.0)
    assert not raw[:, [0, 1, 3, 4, 5]].any()
    moved = (given.frac_coords[:, 1] - given.frac_coords[0, 1]) @ given.lattices[0]
    torch.testing.assert_close(raw[:, 9:].double(), moved / 2, atol=1e-6, rtol=0.0)  # half of it, against the mean
    torch.testing.assert_close(raw[:, 6:9], -raw[:, 9:])


def test_geometry_does_not_depend_on_orientation_origin_or_cells_chosen():
    given, features = sheared(), geometry()
    expected = features.of(given)
    rotations = random_rotations(len(given), torch.Generator().manual_seed(0)).double()
    turned = replace(given, lattices=given.lattices @ rotations)
    moved = replace(given, frac_coords=given.frac_coords + 0.3)
    other_cells = replace(given, frac_coords=given.frac_coords + torch.tensor([[[0, 0, 0], [2, -1, 1]]]))
    for same in (turned, moved, other_cells):
        torch.testing.assert_close(features.of(same), expected, atol=1e-5, rtol=1e-5)


def test_an_atom_that_leaves_the_cell_goes_on():
    given = swinging(frames=30)
    coords = given.frac_coords.clone()
    coords[:, 1, 2] += torch.linspace(0.0, 3.0, 30, dtype=torch.float64)
    moved = geometry(given).of(replace(given, frac_coords=coords))[:, 11]
    assert bool((moved.diff() > 0).all())
    assert float(moved[-1]) == pytest.approx(3.0 * float(given.lattices[0, 2, 2]) / 2, abs=1e-5)


def test_geometry_decodes_to_the_very_frames():
    given, features = sheared(), geometry()
    raw = features.of(given)
    features.fit(raw)
    decoded = features.trajectory(features.standardized(raw), id="again", step=2.0)
    assert decoded.atom_types.tolist() == ATOMS
    assert decoded.times.tolist() == given.times.tolist()
    metric = given.lattices @ given.lattices.mT  # lengths and angles: the orientation is not told
    torch.testing.assert_close(decoded.lattices @ decoded.lattices.mT, metric, atol=1e-4, rtol=1e-4)
    between = given.frac_coords[:, 1] - given.frac_coords[:, 0]
    torch.testing.assert_close(decoded.frac_coords[:, 1] - decoded.frac_coords[:, 0], between, atol=1e-5, rtol=0.0)


# ---- a VAE's ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_latents_are_the_posterior_means_atom_by_atom_and_decode():
    features, given = latents(), swinging()
    raw = features.of(given)
    assert raw.shape == (60, 2 * 4)
    vae = features.vae_module.vae
    torch.testing.assert_close(raw[7], vae.encode(given.frames(7)).mode().flatten(), atol=1e-5, rtol=1e-5)
    features.fit(raw)
    crystals = features.crystals(features.standardized(raw))
    direct = vae.to_crystals(vae.decode(raw.reshape(-1, 4), given.frames()), given.frames())
    torch.testing.assert_close(crystals.frac_coords, direct.frac_coords, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(crystals.lattices, direct.lattices, atol=1e-3, rtol=1e-4)
    made = features.trajectory(features.standardized(raw), id="made")
    assert made.atom_types.tolist() == ATOMS
    assert float(made.frac_coords.diff(dim=0).abs().max()) <= 0.5


@torch.no_grad()
def test_embeddings_are_those_of_the_model_and_do_not_decode():
    features, given = embedding(), swinging()
    module = features.vae_module
    expected = embed(module.vae, given.frames(), every_origin=module.any_origin)
    torch.testing.assert_close(features.of(given), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="do not decode"):
        features.crystals(torch.zeros(2, 8))
    with pytest.raises(ConfigError, match="belong to no system"):
        EmbeddingFeatures(vae=tiny_config(), atom_types=ATOMS)


def test_the_vae_stays_as_it_is():
    features = latents().train()
    assert features.training
    assert not any(module.training for module in features.vae_module.modules())
    assert not any(parameter.requires_grad for parameter in features.parameters())


# ---- standardising ---------------------------------------------------------------------------------------------------


def test_features_are_standardised_with_what_was_fitted(caplog: pytest.LogCaptureFixture):
    given, features = swinging(), geometry()
    raw = features.of(given)
    features.fit(raw[:40])
    scaled = features.standardized(raw[:40])
    varies = scaled.std(dim=0) > 0
    torch.testing.assert_close(scaled[:, varies].std(dim=0, correction=0), torch.ones(int(varies.sum())))
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(12), atol=1e-5, rtol=0.0)
    assert float(features.standardized(raw).mean(dim=0).abs().max()) > 1e-3
    torch.testing.assert_close(features.restored(features.standardized(raw)), raw, atol=1e-6, rtol=1e-5)
    assert "7 of 12 features are constant" in caplog.text  # five strains, and z of both atoms
    assert bool(features.standardized(raw + 1.0)[:, ~varies].eq(0).all())


def test_what_stands_still_is_refused():
    given = swinging()
    held = {name: getattr(given, name)[:1].repeat(60, 1, 1) for name in ("frac_coords", "lattices")}
    still = replace(given, **held)
    features = geometry()
    with pytest.raises(DataError, match="all 12 features are constant over the 60 frames"):
        features.fit(features.of(still))


# ---- what cannot be --------------------------------------------------------------------------------------------------


def broken(field: str, frame: int, value: float) -> Trajectory:
    given = swinging(name="broken")
    values: Tensor = getattr(given, field).clone()
    values[frame, 0, 0] = value
    return replace(given, **{field: values})


@pytest.mark.parametrize("make", [geometry, latents, embedding])
@pytest.mark.parametrize(("field", "value"), [("frac_coords", torch.nan), ("lattices", torch.inf)])
def test_a_frame_that_is_no_crystal_is_named(make, field: str, value: float):
    with pytest.raises(DataError, match="trajectory broken, frame 17"):
        make().of(broken(field, 17, value))


@pytest.mark.parametrize("make", [geometry, latents])
def test_other_atoms_are_refused_where_features_are_per_atom(make):
    other = replace(swinging(name="other"), atom_types=torch.tensor([17, 55]))
    with pytest.raises(DataError, match=r"trajectory other: has the atoms \[17, 55\]"):
        make().of(other)
    assert embedding().of(other).shape == (60, 8)


# ---- cache -----------------------------------------------------------------------------------------------------------


class Counted(GeometryFeatures):
    """Geometry that counts how often it is computed."""

    calls = 0

    def raw(self, trajectory: Trajectory) -> Tensor:
        Counted.calls += 1
        return super().raw(trajectory)


def counted(reference: Trajectory) -> FrameFeatures:
    features = Counted(atom_types=ATOMS)
    features.prepare([reference])
    return features


def test_features_are_computed_once(tmp_path: Path):
    given, other = swinging(), swinging(phase=1.0)
    before = Counted.calls
    first = counted(given).of(given, cache_dir=tmp_path)
    assert torch.equal(counted(given).of(given, cache_dir=tmp_path), first)
    assert Counted.calls == before + 1
    counted(given).of(other, cache_dir=tmp_path)
    counted(other).of(given, cache_dir=tmp_path)  # from another reference they are others
    assert Counted.calls == before + 3
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt"}


def test_another_vae_gives_other_cached_features(tmp_path: Path):
    one, other = latents(), latents()
    with torch.no_grad():
        next(iter(other.vae_module.vae.parameters())).add_(0.1)
    assert one.key() != other.key()
    assert not torch.equal(one.of(swinging(), cache_dir=tmp_path), other.of(swinging(), cache_dir=tmp_path))
