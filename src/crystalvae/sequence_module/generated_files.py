"""What a sequence model makes, and the windows that are typical of motifs, as extended XYZ.

Where features do not decode, samples and forecasts are written as arrays of standardised features, and that is said.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.data.trajectories import Trajectory
from crystalvae.files import whole_file
from crystalvae.sequence_module.generation import (
    forecast,
    future_from,
    motif_centres,
    reconstruct,
    sample,
    typical_windows,
)
from crystalvae.sequence_module.motifs.storage import Segmentation
from crystalvae.sequence_module.sequence_module import SequenceModule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """A typical window of a motif: the frames from `start` on of a trajectory."""

    motif: int
    trajectory: Trajectory
    start: int


@dataclass(frozen=True, eq=False)
class Forecast:
    """A window of a trajectory that starts at `start`, its reconstruction, and the frames after it: true, predicted.

    All are standardised features; `true` has as many frames as there are, at most as many as `predicted`, which is None
    for a model without a future decoder.
    """

    id: str
    start: int
    step: float
    window: Float[Tensor, "T F"]
    reconstruction: Float[Tensor, "T F"]
    true: Float[Tensor, "_ F"]
    predicted: Float[Tensor, "S F"] | None


def motif_clips(segmentation: Segmentation, trajectories: Sequence[Trajectory], *, number: int) -> list[Clip]:
    """Return up to `number` typical windows of each motif, which share no frames."""
    known = {entry.id: entry for entry in trajectories}
    window = segmentation.segmented[0].window
    found = []
    for motif in range(segmentation.model.num_motifs):
        places = typical_windows(
            segmentation.model,
            segmentation.latents,
            segmentation.window_motifs,
            segmentation.counts,
            motif=motif,
            number=number,
            apart=window,
        )
        for place, start in places:
            whole = known[segmentation.segmented[place].id]
            found.append(Clip(motif, whole[start : start + window], start))
    return found


@torch.no_grad()
def forecasts(module: SequenceModule, parts: Sequence[Trajectory], *, steps: int) -> list[Forecast]:
    """Return for each trajectory its window that ends in the middle, what the model makes of it, and what follows."""
    window = module.model.window
    found = []
    for entry in parts:
        frames = module.frames([entry]).frames
        start = max(0, min(len(entry) // 2 - window, len(entry) - window - steps))
        past = frames[None, start : start + window]
        found.append(
            Forecast(
                id=entry.id,
                start=start,
                step=float(entry.times[:2].diff()[0]),
                window=past[0],
                reconstruction=reconstruct(module, past)[0],
                true=frames[start + window : start + window + steps],
                predicted=forecast(module, past, steps)[0] if module.model.future_steps else None,
            )
        )
    return found


def write_clips(clips: Sequence[Clip], folder: Path) -> list[Path]:
    """Write each clip as `motif_<motif>_<number>.extxyz`."""
    paths, numbers = [], {}
    for clip in clips:
        numbers[clip.motif] = numbers.get(clip.motif, -1) + 1
        paths.append(folder / f"motif_{clip.motif}_{numbers[clip.motif]}.extxyz")
        clip.trajectory.write_extxyz(paths[-1])
    return paths


def write_samples(
    module: SequenceModule,
    segmentation: Segmentation,
    latents: Float[Tensor, "W L"],
    folder: Path,
    *,
    number: int,
    components: int,
    seed: int,
) -> list[Path]:
    """Write the decoded centre of each motif, and `number` windows drawn like the training windows' `latents`."""
    step = float(module.statistics.get("step", 1.0))
    made = {f"centre_{i}": frames for i, frames in enumerate(motif_centres(module, segmentation.model))}
    if number:
        generator = torch.Generator().manual_seed(seed)
        drawn = sample(module, number, latents=latents, components=components, generator=generator)
        made |= {f"sample_{i}": frames for i, frames in enumerate(drawn)}
    return [_write(module, frames, folder, name, step=step) for name, frames in made.items()]


def write_forecasts(module: SequenceModule, made: Sequence[Forecast], folder: Path) -> list[Path]:
    """Write the predicted frames of each forecast, times going on from its window's last frame."""
    return [
        _write(
            module,
            entry.predicted,
            folder,
            f"forecast_{entry.id}",
            step=entry.step,
            begin=(entry.start + len(entry.window)) * entry.step,
        )
        for entry in made
        if entry.predicted is not None
    ]


def _write(
    module: SequenceModule,
    frames: Float[Tensor, "T F"],
    folder: Path,
    name: str,
    *,
    step: float,
    begin: float = 0.0,
) -> Path:
    if module.features.decodable:
        path = folder / f"{name}.extxyz"
        future_from(module.features.trajectory(frames, id=name, step=step), begin).write_extxyz(path)
        return path
    log.info("%s: these features do not decode to crystals; written as an array of standardised features", name)
    path = folder / f"{name}.npy"
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, frames.cpu().numpy())
    return path
