"""What a sequence model makes: samples, centres, typical windows, forecasts, and how far they err."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from crystalvae.errors import ConfigError, DataError
from crystalvae.sequence_module.forecast_errors import autoregression, forecast_errors
from crystalvae.sequence_module.generation import (
    draw_latents,
    forecast,
    forecast_trajectory,
    motif_centres,
    reconstruct,
    sample,
    typical_windows,
)
from crystalvae.sequence_module.motifs.fitting import fit_motifs
from crystalvae.sequence_module.windows import FrameSet
from tests.sequences import EMBEDDING, LATENTS, TINY, built, swinging, windows


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_are_decoded_latents():
    module = built()
    drawn = sample(module, 7, source="normal", generator=seeded())
    expected = module.model.decode(torch.randn(7, 4, generator=seeded()))
    torch.testing.assert_close(drawn, expected)
    assert drawn.shape == (7, 8, 12)
    latents = torch.randn(60, 4)
    one, again = (sample(module, 5, latents=latents, components=2, generator=seeded(3)) for _ in range(2))
    assert torch.equal(one, again)
    with pytest.raises(ConfigError, match="fitted to latents of windows"):
        sample(module, 5)


def test_latents_are_drawn_like_those_that_were_given():
    centres = torch.tensor([[10.0, 0.0], [0.0, -40.0]])
    spread = torch.tensor([[[1.0, 0.0], [2.0, 0.5]], [[3.0, 0.0], [0.0, 1.0]]])
    chosen = torch.arange(4000) % 4 // 3  # three of four near the first centre
    given = centres[chosen] + torch.einsum("bij,bj->bi", spread[chosen], torch.randn(4000, 2, generator=seeded()))
    drawn = draw_latents(given, 4000, components=2, generator=seeded(1))
    first = drawn[:, 1] > -20.0
    assert float(first.float().mean()) == pytest.approx(0.75, abs=0.03)
    for part, matrix in ((drawn[first], spread[0]), (drawn[~first], spread[1])):
        torch.testing.assert_close(torch.cov(part.T), matrix @ matrix.T, atol=0.8, rtol=0.15)


@torch.no_grad()
def test_reconstructions_and_centres_are_decoded_means():
    module, given = built(), windows(frames=8)
    mean = module.model.encode(given).mean
    torch.testing.assert_close(reconstruct(module, given), module.model.decode(mean))
    latents = torch.randn(40, 4, generator=seeded()).double().numpy()
    motifs = fit_motifs(latents, [40], 3, method="kmeans")
    centres = motif_centres(module, motifs)
    torch.testing.assert_close(centres[1], module.model.decode(torch.from_numpy(motifs.centres).float())[1])


def test_typical_windows_are_the_nearest_of_their_motif():
    latents = np.array([[0.0], [0.1], [0.3], [9.0], [9.1], [0.11], [9.2], [0.05]])
    motifs = fit_motifs(latents, [5, 3], 2, method="kmeans")
    labels, _ = motifs.label(latents, [5, 3])
    # Motif 0 has windows 0, 1, 2 of the first trajectory, 0, 2 of the second; its centre is 0.112.
    found = typical_windows(motifs, latents, labels, [5, 3], motif=0, number=4)
    assert found == [(1, 0), (0, 1), (1, 2), (0, 0)]
    apart = typical_windows(motifs, latents, labels, [5, 3], motif=0, number=4, apart=3)
    assert apart == [(1, 0), (0, 1)]
    assert typical_windows(motifs, latents, np.zeros(8, dtype=int), [5, 3], motif=1) == []


@torch.no_grad()
def test_forecasts_are_rolled_on():
    module, given = built(), windows(frames=11)
    first = module.model.predict(module.model.encode(given[:, -8:]).mean)
    made = forecast(module, given, 10)
    assert made.shape == (5, 10, 12)
    torch.testing.assert_close(made[:, :4], first)
    seen = torch.cat((given, first), dim=1)[:, -8:]
    torch.testing.assert_close(made[:, 4:8], module.model.predict(module.model.encode(seen).mean))
    torch.testing.assert_close(forecast(module, given, 3), first[:, :3])
    torch.testing.assert_close(forecast(module, given[2:3], 10), made[2:3], atol=1e-5, rtol=1e-5)
    with pytest.raises(DataError, match="got 7 frames; expected at least a window of 8"):
        forecast(module, given[:, :7], 2)
    with pytest.raises(ConfigError, match="no future decoder"):
        forecast(built(model={**TINY, "future_decoder": False}), given, 2)


@pytest.mark.parametrize("features", [None, LATENTS], ids=["geometry", "latents"])
def test_a_forecast_of_a_trajectory_goes_on_from_its_last_frame(features):
    module, given = built(features), swinging("a", frames=20, step=2.0)
    made = forecast_trajectory(module, given, 6)
    assert made.id == "a-forecast"
    assert made.times.tolist() == [40.0, 42.0, 44.0, 46.0, 48.0, 50.0]
    assert made.atom_types.tolist() == given.atom_types.tolist()
    assert made.lattices.shape == (6, 3, 3)


def test_embeddings_give_no_crystals():
    module, given = built(EMBEDDING), swinging("a", frames=20)
    frames = module.frames([given]).frames[None]
    assert forecast(module, frames, 6).shape == (1, 6, 8)
    with pytest.raises(ConfigError, match="do not decode to crystals"):
        forecast_trajectory(module, given, 6)


# ---- errors of forecasts ---------------------------------------------------------------------------------------------


def test_the_autoregression_is_the_least_squares_fit_within_segments():
    generator = seeded()
    series, centre, factor = [torch.zeros(2)], torch.tensor([3.0, -1.0]), torch.tensor([0.9, -0.5])
    for _ in range(20000):
        series.append(centre + factor * (series[-1] - centre) + 0.1 * torch.randn(2, generator=generator))
    found = autoregression(FrameSet.of([torch.stack(series)]))
    torch.testing.assert_close(found[0], centre, atol=0.03, rtol=0.0)
    torch.testing.assert_close(found[1], factor, atol=0.03, rtol=0.0)
    steps = torch.tensor([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]])
    joined = autoregression(FrameSet.of([steps, steps + torch.tensor([50.0, 0.0])]))
    assert joined[1].tolist() == pytest.approx([1.0, 0.0])  # no step between the two; what is constant predicts itself


def test_references_err_as_worked_out_by_hand():
    module = built()
    given = swinging("line", frames=30)
    coords = given.frac_coords[:1].repeat(30, 1, 1)
    coords[:, 1, 0] += 0.01 * torch.arange(30)
    lattices = given.lattices[:1].repeat(30, 1, 1)
    line = module.frames([replace(given, frac_coords=coords, lattices=lattices)])
    found = forecast_errors(module, line, line, horizons=3)
    assert found["horizon"].tolist() == [1, 2, 3]
    assert found["linear"].max() < 1e-6
    move = float((line.frames[1] - line.frames[0]).square().sum()) / int((module.features.std > 0).sum())
    assert found["last_frame"].tolist() == pytest.approx([move, 4 * move, 9 * move], rel=1e-3)
    varies = module.features.std > 0
    last = [float(line.frames[8 + h : 28 + h][..., varies].square().mean()) for h in range(3)]
    assert found["mean"].tolist() == pytest.approx(last, rel=1e-3)


@torch.no_grad()
def test_the_model_errs_as_its_forecast_does():
    module = built()
    frames = module.frames([swinging("a", frames=30), swinging("b", frames=9), swinging("c", frames=21)])
    found = forecast_errors(module, frames, frames, horizons=6, batch_size=5)
    whole = frames.gather(frames.starts(14), 14)
    errors = (forecast(module, whole[:, :8], 6) - whole[:, 8:]).square()[..., module.features.std > 0]
    assert found["model"].tolist() == pytest.approx(errors.mean(dim=(0, 2)).tolist(), rel=1e-4)
    with pytest.raises(DataError, match="no window of 8 frames with 30 after it; the longest is 30"):
        forecast_errors(module, frames, frames, horizons=30)
