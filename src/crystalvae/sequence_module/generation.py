"""What a trained sequence model makes: windows from latents, reconstructions, and forecasts rolled on.

Frames come as standardised features, which `SequenceModule.features` turns into trajectories where they decode.
Letters: B windows, T frames of a window, F features, L latent dimensions, W windows of all trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystalvae.checks import check_count
from crystalvae.data.trajectories import Trajectory
from crystalvae.errors import ConfigError, DataError
from crystalvae.sequence_module.motifs.fitting import fit_motifs
from crystalvae.sequence_module.motifs.model import MotifModel
from crystalvae.sequence_module.sequence_module import SequenceModule
from crystalvae.sequence_module.windows import FrameSet

Source = Literal["mixture", "normal"]


@torch.no_grad()
def sample(
    module: SequenceModule,
    count: int,
    *,
    latents: Float[Tensor, "W L"] | None = None,
    components: int = 10,
    source: Source = "mixture",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B T F"]:
    """Decode `count` windows from drawn latents.

    mixture: of a mixture of `components` Gaussians that is fitted to `latents`, those of the training windows. normal:
    of N(0, I), which fits where the KL weighs enough for the posteriors to be near it.
    """
    check_count("count", count)
    if source not in get_args(Source):
        raise ConfigError(f"source: got {source!r}; expected mixture or normal")
    if source == "normal":
        drawn = torch.randn(count, module.model.latent_dim, generator=generator)
    elif latents is None:
        raise ConfigError("sample: a mixture is fitted to latents of windows: give them, or source=normal")
    else:
        drawn = draw_latents(latents, count, components=components, generator=generator)
    return module.model.decode(drawn.to(module.device))


def draw_latents(
    latents: Float[Tensor, "W L"], count: int, *, components: int = 10, generator: torch.Generator | None = None
) -> Float[Tensor, "B L"]:
    """Draw latents from a mixture of Gaussians that is fitted to given ones."""
    values = latents.double().to("cpu").numpy()
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    model = fit_motifs(values, [len(values)], components, method="gmm", seed=seed)
    assert model.weights is not None  # noqa: S101  a mixture has them
    assert model.covariances is not None  # noqa: S101
    chosen = torch.multinomial(torch.from_numpy(model.weights), count, replacement=True, generator=generator)
    spread = model.scale * torch.linalg.cholesky(torch.from_numpy(model.covariances))
    normal = torch.randn(count, values.shape[1], generator=generator, dtype=torch.float64)
    centres = torch.from_numpy(model.centres)
    return (centres[chosen] + torch.einsum("bij,bj->bi", spread[chosen], normal)).float()


@torch.no_grad()
def reconstruct(module: SequenceModule, windows: Float[Tensor, "B T F"]) -> Float[Tensor, "B T F"]:
    """Encode windows and decode their posterior means."""
    return module.model.decode(module.model.encode(windows).mean)


@torch.no_grad()
def motif_centres(module: SequenceModule, motifs: MotifModel) -> Float[Tensor, "K T F"]:
    """Decode the centre of each motif: the window that stands for it."""
    return module.model.decode(torch.from_numpy(motifs.centres).float().to(module.device))


def typical_windows(
    motifs: MotifModel,
    latents: Float[np.ndarray, "W L"],
    labels: Int[np.ndarray, "W"],
    counts: Sequence[int],
    *,
    motif: int,
    number: int = 5,
    apart: int = 1,
) -> list[tuple[int, int]]:
    """Return up to `number` windows of a motif, those nearest to its centre first: (trajectory, first frame) of each.

    `counts` are the windows of each trajectory; windows of one trajectory start at least `apart` frames from each
    other. Empty where the motif has no windows.
    """
    check_count("number", number)
    check_count("apart", apart)
    bounds = np.concatenate(([0], np.cumsum(counts)))
    rows = np.flatnonzero(labels == motif)
    order = rows[np.argsort(np.linalg.norm(latents[rows] - motifs.centres[motif], axis=1), kind="stable")]
    chosen: list[tuple[int, int]] = []
    for row in order.tolist():
        trajectory = int(np.searchsorted(bounds, row, side="right")) - 1
        start = row - int(bounds[trajectory])
        if all(other != trajectory or abs(begun - start) >= apart for other, begun in chosen):
            chosen.append((trajectory, start))
        if len(chosen) == number:
            break
    return chosen


@torch.no_grad()
def forecast(module: SequenceModule, frames: Float[Tensor, "B T F"], steps: int) -> Float[Tensor, "B steps F"]:
    """Predict the `steps` frames after given ones, of which at least a window is needed.

    The model predicts `future_steps` from the last window; what it predicted is then taken as seen, and so on.
    """
    check_count("steps", steps)
    model = module.model
    if frames.shape[1] < model.window:
        raise DataError(f"forecast: got {frames.shape[1]} frames; expected at least a window of {model.window}")
    known = frames[:, -model.window :]
    made: list[Tensor] = []
    while sum(part.shape[1] for part in made) < steps:
        part = model.predict(model.encode(known).mean, known)
        made.append(part)
        known = torch.cat((known, part), dim=1)[:, -model.window :]
    return torch.cat(made, dim=1)[:, :steps]


def forecast_trajectory(module: SequenceModule, trajectory: Trajectory, steps: int) -> Trajectory:
    """Return the frames predicted after a trajectory as a trajectory, times going on from its last frame.

    Raises `ConfigError` where the features do not decode.
    """
    frames: FrameSet = module.frames([trajectory])
    made = forecast(module, frames.frames[None], steps)[0]
    step = float(trajectory.times[-2:].diff()[0])
    future = module.features.trajectory(made, id=f"{trajectory.id}-forecast", step=step)
    return future_from(future, float(trajectory.times[-1]) + step)


def future_from(trajectory: Trajectory, start: float) -> Trajectory:
    """Return a trajectory whose first frame is at a time in fs."""
    return replace(trajectory, times=trajectory.times - trajectory.times[0] + start)
