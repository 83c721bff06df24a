"""Motifs find regimes that no single frame shows: an atom that swings slowly and quickly in turn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from crystalvae.data.trajectories import Trajectory
from crystalvae.sequence_module.motifs.agreement import adjusted_rand_index, raw_feature_motifs
from crystalvae.sequence_module.motifs.fitting import fit_motifs
from crystalvae.sequence_module.motifs.segmentation import segment_trajectories
from crystalvae.sequence_module.sequence_module import SequenceModule
from tests.sequences import swinging, tiny_module

WINDOW, FUTURE = 12, 4
TRAIN = [swinging(f"train{i}", frames=400, phase=0.7 * i, switch=100) for i in range(4)]
TEST = [swinging(f"test{i}", frames=400, phase=0.3 + 0.7 * i, switch=100) for i in range(2)]


def shuffled(trajectory: Trajectory, seed: int) -> Trajectory:
    """The same frames in another order, each still with its own regime."""
    order = torch.randperm(len(trajectory), generator=torch.Generator().manual_seed(seed))
    return replace(
        trajectory,
        frac_coords=trajectory.frac_coords[order],
        lattices=trajectory.lattices[order],
        properties={name: values[order] for name, values in trajectory.properties.items()},
    )


@pytest.fixture(scope="module")
def module() -> SequenceModule:
    """A small model after 200 steps."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "hidden_size_reconstruction": 16, "hidden_size_prediction": 16}
    model = {"window": WINDOW, "future_steps": FUTURE, "latent_dim": 4, **sizes}
    made = tiny_module(model=model, annealing=None, noise=0.0, loss={"clusters": 4})
    made.describe(TRAIN)
    made.features.prepare(TRAIN)
    made.features.fit(torch.cat([made.features.of(entry) for entry in TRAIN]))
    frames = made.frames(TRAIN)
    starts, generator = frames.starts(WINDOW + FUTURE), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(made.model.parameters(), lr=5e-3, amsgrad=True)
    for _ in range(200):
        rows = starts[torch.randint(len(starts), (64,), generator=generator)]
        optimizer.zero_grad()
        made.losses(frames.gather(rows, WINDOW + FUTURE), training=True, generator=generator)["loss"].backward()
        optimizer.step()
    return made.eval()


def agreement(module: SequenceModule, train: list[Trajectory], test: list[Trajectory]) -> float:
    frames, held_out = module.frames(train), module.frames(test)
    motifs = fit_motifs(module.latents(frames).double().numpy(), frames.window_counts(WINDOW), 2)
    latents = module.latents(held_out).double().numpy()
    ids = [entry.id for entry in test]
    segmented = segment_trajectories(motifs, latents, held_out.window_counts(WINDOW), ids, window=WINDOW)
    regimes = [entry.properties["regime"].numpy() for entry in test]
    return adjusted_rand_index([entry.frame_motifs for entry in segmented], regimes)


def test_motifs_of_held_out_trajectories_are_the_regimes(module: SequenceModule):
    assert agreement(module, TRAIN, TEST) > 0.7


def test_single_frames_do_not_show_them(module: SequenceModule):
    regimes = [entry.properties["regime"].numpy() for entry in TEST]
    found = raw_feature_motifs(module.frames(TRAIN), module.frames(TEST), 2)
    assert adjusted_rand_index(found, regimes) < 0.1
    windows = raw_feature_motifs(module.frames(TRAIN), module.frames(TEST), 2, window=WINDOW)
    assert [len(entry) for entry in windows] == [len(entry) for entry in regimes]
    assert adjusted_rand_index(windows, regimes) < adjusted_rand_index(regimes, regimes)


def test_frames_in_another_order_destroy_them(module: SequenceModule):
    test = [shuffled(entry, seed) for seed, entry in enumerate(TEST)]
    assert agreement(module, TRAIN, test) < 0.1
