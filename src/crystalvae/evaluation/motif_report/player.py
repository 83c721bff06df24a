"""Clips as the viewer in the page plays them: the atoms of one cell, frame after frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from crystalvae.data.trajectories import Trajectory
from crystalvae.data.view.assets import embeddable
from crystalvae.data.view.scene import Scene, look, scene, with_faces
from crystalvae.sequence_module.generated_files import Clip


@dataclass(frozen=True, eq=False)
class MovingScene:
    """What is drawn of T frames: the scene of the mean crystal, and where its A atoms and its cell are in each (Å)."""

    mean: Scene
    positions: Float[np.ndarray, "T A 3"]
    cells: Float[np.ndarray, "T 3 3"]


def moving_scene(trajectory: Trajectory) -> MovingScene | str:
    """Return what is drawn of a trajectory, or why it cannot be drawn, in a few words.

    Which atoms stand on faces, and so are drawn on both sides, and which are bonded is decided by the mean crystal:
    nothing comes and goes while it plays.
    """
    numbers = trajectory.atom_types.numpy()
    coords, lattices = trajectory.frac_coords.double().numpy(), trajectory.lattices.double().numpy()
    if not (np.isfinite(coords).all() and np.isfinite(lattices).all()):
        return "it has numbers that are not finite"
    mean_coords, mean_lattice = coords.mean(axis=0), lattices.mean(axis=0)
    mean = scene(numbers, mean_coords, mean_lattice)
    if isinstance(mean, str):
        return mean
    source, inside = with_faces(np.mod(mean_coords, 1.0), mean_lattice)
    images = coords[:, source] + (inside - mean_coords[source]).round()
    return MovingScene(mean=mean, positions=images @ lattices, cells=lattices)


def player_data(clips: Sequence[Clip], colours: Sequence[str]) -> str:
    """Return as embeddable JSON what the page's script plays: clips by motif, colours and radii of elements."""
    scenes = [(clip, moving_scene(clip.trajectory)) for clip in clips]
    return embeddable(
        {
            **look(found.mean for _, found in scenes if isinstance(found, MovingScene)),
            "motifColours": list(colours),
            "clips": [_clip(clip, found) for clip, found in scenes],
        }
    )


def _clip(clip: Clip, found: MovingScene | str) -> dict[str, object]:
    times = clip.trajectory.times
    drawn = isinstance(found, MovingScene)
    return {
        "motif": clip.motif,
        "trajectory": clip.trajectory.id,
        "start": clip.start,
        "times": [round(float(time), 3) for time in times],
        "scene": found.mean.to_dict() if drawn else None,
        "positions": found.positions.round(3).tolist() if drawn else [],
        "cells": found.cells.round(4).tolist() if drawn else [],
        "obstacle": "" if drawn else found,
    }
