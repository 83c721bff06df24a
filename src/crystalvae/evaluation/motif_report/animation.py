"""Clips as GIF and MP4, for talks: drawn by Matplotlib, atoms as discs, the farther ones first."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from crystalvae.checks import check_choices
from crystalvae.data.view.scene import look
from crystalvae.errors import ConfigError
from crystalvae.evaluation.motif_report.player import MovingScene
from crystalvae.evaluation.report.style import INK, new_figure, plotting
from crystalvae.files import whole_file

ANIMATIONS = ("gif", "mp4")
FRAMES_PER_SECOND = 15
INCHES, DPI = 4.0, 120
_TURN, _TILT = math.radians(24.0), math.radians(72.0)
_EDGES = ((0, 1), (0, 2), (0, 4), (1, 3), (1, 5), (2, 3), (2, 6), (3, 7), (4, 5), (4, 6), (5, 7), (6, 7))


def check_animations(names: Sequence[str]) -> None:
    """Raise `ConfigError` for a form that there is not, or that its package is missing for."""
    check_choices("report", list(names), ANIMATIONS)
    if "mp4" in names and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ConfigError("report.mp4=true: needs imageio-ffmpeg: pip install imageio-ffmpeg; GIFs need nothing more")


def write_animation(clip: MovingScene, path: Path, *, title: str, colour: str) -> Path:
    """Write a clip as GIF or MP4, as the suffix of `path` says; `title` stands above it in the motif's colour."""
    check_animations([path.suffix.removeprefix(".")])
    with plotting():
        pictures = list(_pictures(clip, title, colour))
    with whole_file(path) as partial:
        if path.suffix == ".gif":
            _write_gif(pictures, partial)
        else:
            _write_mp4(pictures, partial)
    return path


def _pictures(clip: MovingScene, title: str, colour: str) -> Iterator[np.ndarray]:
    """Give each frame as an image (height, width, 3)."""
    figure = new_figure(INCHES, INCHES)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 0.92))
    view = _view()
    centre = clip.cells.mean(axis=0).sum(axis=0) / 2.0
    corners = np.array([[bits & 1, bits >> 1 & 1, bits >> 2 & 1] for bits in range(8)], dtype=float)
    looks = look([clip.mean])
    colours = np.array([looks["colours"][name] for name in clip.mean.elements])
    radii = 0.2 + 0.22 * np.array([looks["radii"][name] for name in clip.mean.elements], dtype=float)
    reach = float(np.abs((clip.positions - centre) @ view.T)[..., :2].max()) + 1.0
    points = (radii * 72.0 * INCHES * 0.92 / (2.0 * reach)) ** 2 * math.pi  # discs' areas, in points squared
    for positions, cell in zip(clip.positions, clip.cells, strict=True):
        axes.clear()
        axes.set_axis_off()
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        box = (corners @ cell - centre) @ view.T
        for start, stop in _EDGES:
            axes.plot(*box[[start, stop], :2].T, color="#39424e", linewidth=1.0, zorder=1)
        seen = (positions - centre) @ view.T
        for first, second in clip.mean.bonds:
            axes.plot(*seen[[first, second], :2].T, color="#9aa3ad", linewidth=2.5, zorder=2)
        order = np.argsort(seen[:, 2])
        style: dict[str, Any] = {"edgecolors": INK, "linewidths": 0.6, "zorder": 3}
        axes.scatter(*seen[order, :2].T, s=points[order], c=colours[order], **style)
        figure.suptitle(title, color=colour, fontweight="bold")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="rgba", dpi=DPI)
        side = round(INCHES * DPI)
        yield np.frombuffer(buffer.getvalue(), dtype=np.uint8).reshape(side, side, 4)[..., :3].copy()


def _view() -> Float[np.ndarray, "3 3"]:
    """Return the rotation to the viewer's axes (right, up, towards the eye): c points up, nearly."""
    turn = np.array(
        [[math.cos(_TURN), -math.sin(_TURN), 0.0], [math.sin(_TURN), math.cos(_TURN), 0.0], [0.0, 0.0, 1.0]]
    )
    tilt = np.array(
        [[1.0, 0.0, 0.0], [0.0, math.cos(_TILT), math.sin(_TILT)], [0.0, -math.sin(_TILT), math.cos(_TILT)]]
    )
    return tilt @ turn


def _write_gif(pictures: Sequence[np.ndarray], path: Path) -> None:
    from PIL import Image

    first, *others = [Image.fromarray(picture) for picture in pictures]
    pause = round(1000 / FRAMES_PER_SECOND)
    first.save(path, format="GIF", save_all=True, append_images=others, duration=pause, loop=0)


def _write_mp4(pictures: Sequence[np.ndarray], path: Path) -> None:
    imageio_ffmpeg = import_module("imageio_ffmpeg")

    height, width = pictures[0].shape[:2]
    named = path.with_name(f"{path.name}.mp4")  # FFmpeg chooses the form by the suffix
    writer = imageio_ffmpeg.write_frames(str(named), (width, height), fps=FRAMES_PER_SECOND, macro_block_size=8)
    writer.send(None)
    for picture in pictures:
        writer.send(np.ascontiguousarray(picture))
    writer.close()
    named.replace(path)
