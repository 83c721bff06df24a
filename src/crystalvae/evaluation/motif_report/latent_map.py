"""Maps of the windows' latents, coloured by motif, community, time and properties of the frames."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from crystalvae.checks import check_choice
from crystalvae.errors import ConfigError
from crystalvae.evaluation.motif_report.colours import motif_colours
from crystalvae.evaluation.motif_report.findings import MotifFindings
from crystalvae.evaluation.report.style import Plot, finish, new_figure
from crystalvae.sequence_module.motifs.segmentation import window_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROJECTIONS = ("pca", "umap")
MOST_POINTS = 6000
MOST_CLASSES = 10
"""A property of whole numbers with more values than this is coloured like any other number."""


def check_projection(name: object) -> None:
    """Raise `ConfigError` for a map that there is not, or that its package is missing for."""
    check_choice("report.map", name, PROJECTIONS)
    if name == "umap" and importlib.util.find_spec("umap") is None:
        raise ConfigError("report.map=umap: needs umap-learn: pip install umap-learn; or use report.map=pca")


def project(latents: Float[np.ndarray, "W L"], *, projection: str, seed: int) -> tuple[Float[np.ndarray, "W 2"], str]:
    """Return latents in two dimensions, and in a few words how they came there."""
    check_projection(projection)
    if projection == "umap":
        umap = import_module("umap")
        return np.asarray(umap.UMAP(random_state=seed).fit_transform(latents), dtype=np.float64), "UMAP"
    centred = latents - latents.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    shares = singular**2 / max(float((singular**2).sum()), 1e-300)
    points = centred @ axes[:2].T
    flat = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))  # of one latent dimension
    return flat, "principal components, " + " and ".join(f"{share:.0%}" for share in shares[:2]) + " of the variance"


def latent_map(
    findings: MotifFindings, *, projection: str = "pca", properties: Sequence[str] | None = None, seed: int = 0
) -> Plot:
    """Draw the map once for each colouring, all windows or a seeded choice of them."""
    found = findings.segmentation
    colourings = window_colourings(findings, properties)
    rows = np.sort(np.random.default_rng(seed).permutation(len(found.latents))[:MOST_POINTS])
    points, how = project(found.latents[rows], projection=projection, seed=seed)
    columns = min(3, len(colourings))
    lines = math.ceil(len(colourings) / columns)
    figure = new_figure(3.4 * columns, 2.9 * lines)
    for number, (title, values) in enumerate(colourings.items()):
        axes = figure.add_subplot(lines, columns, number + 1)
        _scatter(figure, axes, points, values[rows], title)
    some = "" if len(rows) == len(found.latents) else f" {len(rows)} of {len(found.latents)} windows."
    return finish(
        figure,
        name="latent_map",
        title="Map of the latents",
        caption=f"Each point is a window of {found.segmented[0].window} frames; {how}.{some}",
        wide=True,
    )


def window_colourings(findings: MotifFindings, properties: Sequence[str] | None) -> dict[str, Shaped[np.ndarray, "W"]]:
    """Return what windows are coloured by: motif, community where it says more, time, and properties.

    The value of a window is that of the frame in its middle; energies are per atom. `properties` are all by default;
    `ConfigError` for one that no trajectory has.
    """
    found, trajectories = findings.segmentation, findings.trajectories
    window = found.segmented[0].window
    colourings: dict[str, np.ndarray] = {"motif": found.window_motifs}
    if len(np.unique(findings.communities)) < found.model.num_motifs:
        colourings["community"] = findings.communities[found.window_motifs]
    frames = frame_properties(findings)
    if unknown := [name for name in properties or () if name not in frames]:
        raise ConfigError(f"report.properties: no property {', '.join(unknown)}; there are {', '.join(frames)}")
    frames = frames if properties is None else {name: frames[name] for name in properties}
    times = {"time (ps)": [(entry.times - entry.times[0]).numpy() / 1000.0 for entry in trajectories]}
    for name, parts in {**times, **frames}.items():
        colourings[name] = np.concatenate([window_values(part, window) for part in parts])
    return colourings


def frame_properties(findings: MotifFindings) -> Mapping[str, list[Shaped[np.ndarray, "_"]]]:
    """Return the values of the frames of each trajectory, by name, of what all trajectories have."""
    trajectories = findings.trajectories
    values: dict[str, list[np.ndarray]] = {}
    energies = [entry.energies for entry in trajectories]
    if all(entry is not None for entry in energies):
        values["energy (eV/atom)"] = [
            entry.energies.numpy() / entry.num_atoms for entry in trajectories if entry.energies is not None
        ]
    common = [name for name in trajectories[0].properties if all(name in entry.properties for entry in trajectories)]
    return values | {name: [entry.properties[name].numpy() for entry in trajectories] for name in common}


def is_class(values: Shaped[np.ndarray, "_"]) -> bool:
    """Say whether values are few whole numbers, names of classes rather than amounts."""
    known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return bool((known == known.round()).all()) and len(np.unique(known)) <= MOST_CLASSES


def _scatter(figure: Figure, axes: Axes, points: np.ndarray, values: Int[np.ndarray, "_"] | Any, title: str) -> None:
    axes.set_title(title)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    style: dict[str, Any] = {"s": 4.0, "linewidths": 0.0, "rasterized": True}
    if is_class(values):
        classes = np.unique(values[np.isfinite(values)]).astype(int)
        colours = motif_colours(int(classes.max()) + 1 if len(classes) and classes.min() >= 0 else len(classes))
        for place, entry in enumerate(classes.tolist()):
            chosen = values == entry
            colour = colours[entry if classes.min() >= 0 else place]
            axes.scatter(*points[chosen].T, color=colour, label=str(entry), **style)
        axes.legend(markerscale=3.0, handletextpad=0.1, loc="best", fontsize=7.5)
        return
    drawn = axes.scatter(*points.T, c=values, cmap="viridis", **style)
    figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02)
