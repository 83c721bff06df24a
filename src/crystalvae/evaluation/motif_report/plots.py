"""Pictures of what motifs do: timelines, transitions, usage and dwell times, and the tree of motifs."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

from crystalvae.evaluation.motif_report.colours import motif_colours
from crystalvae.evaluation.motif_report.findings import MotifFindings
from crystalvae.evaluation.motif_report.latent_map import frame_properties
from crystalvae.evaluation.report.style import INK, Plot, finish, new_figure
from crystalvae.sequence_module.motifs.statistics import runs

MOST_TIMELINES = 4
WEAK = 0.02
"""Switches less probable than this are not drawn."""
_SOFT = "#5b6674"


def timeline_plot(findings: MotifFindings) -> Plot:
    """Draw the motifs of the first trajectories above temperature and energy, and the label where there is one."""
    colours = motif_colours(findings.statistics.num_motifs)
    frames = frame_properties(findings)
    curves = [name for name in ("temperature", "energy (eV/atom)") if name in frames]
    shown = list(zip(findings.trajectories, findings.segmentation.segmented, strict=True))[:MOST_TIMELINES]
    figure = new_figure(10.4, (0.75 + 0.75 * len(curves)) * len(shown))
    ratios = [0.55, *([1.0] * len(curves))] * len(shown)
    grid = figure.subplots(len(ratios), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for number, (trajectory, segmented) in enumerate(shown):
        times = (trajectory.times - trajectory.times[0]).numpy() / 1000.0
        rows = grid[number * (1 + len(curves)) : (number + 1) * (1 + len(curves))]
        strips = {"motif": segmented.frame_motifs}
        label = findings.label
        if label is not None and label in trajectory.properties and _few(trajectory.properties[label].numpy()):
            strips[label] = trajectory.properties[label].numpy().astype(int)
        _strips(rows[0], times, strips, colours)
        rows[0].set_title(trajectory.id)
        for axes, name in zip(rows[1:], curves, strict=True):
            axes.plot(times, frames[name][number], color=_SOFT, linewidth=0.6)
            axes.set_xlim(times[0], times[-1])
            axes.set_ylabel("T (K)" if name == "temperature" else "eV/atom")
            axes.tick_params(labelbottom=False)
        rows[-1].tick_params(labelbottom=True)
    grid[-1].set_xlabel("time (ps)")
    some = "" if len(shown) == len(findings.trajectories) else f" The first {len(shown)} trajectories."
    below = f" Below the motifs the known {findings.label}, in colours of its own." if findings.label else ""
    return finish(
        figure,
        name="timeline",
        title="Timeline",
        caption=f"The motif of each frame, above temperature and energy where they are known.{below}{some}",
        wide=True,
    )


def _few(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all()) and len(np.unique(values)) <= 10


def _strips(axes: Any, times: np.ndarray, strips: dict[str, Int[np.ndarray, "T"]], colours: list[str]) -> None:
    step = float(times[1] - times[0]) if len(times) > 1 else 1.0
    for row, (name, values) in enumerate(strips.items()):
        own = colours if name == "motif" else ["#2b2f36", "#a9b2bd", "#6d7682", "#d4dae1"] * 3
        classes = {entry: place for place, entry in enumerate(np.unique(values).tolist())}
        for motif, start, size in zip(*runs(values), strict=True):
            colour = own[int(motif) if name == "motif" else classes[int(motif)]]
            axes.barh(-row, size * step, left=times[start], height=0.9, color=colour, linewidth=0)
    axes.set_xlim(times[0], times[-1])
    axes.set_yticks([-row for row in range(len(strips))], list(strips))
    axes.tick_params(labelbottom=False, length=0)
    axes.grid(visible=False)


def transition_plot(findings: MotifFindings) -> Plot:
    """Draw motifs on a circle, as large as their usage, and what follows what as arrows."""
    from matplotlib.patches import FancyArrowPatch

    statistics = findings.statistics
    count, colours = statistics.num_motifs, motif_colours(statistics.num_motifs)
    angles = 0.5 * np.pi - 2.0 * np.pi * np.arange(count) / count
    places = np.stack((np.cos(angles), np.sin(angles)), axis=1) if count > 1 else np.zeros((1, 2))
    radii = 0.09 + 0.22 * np.sqrt(statistics.usage)
    figure = new_figure(5.0, 4.6)
    axes = figure.add_subplot()
    for start, stop in zip(*np.nonzero(statistics.switches >= WEAK), strict=True):
        chance = float(statistics.switches[start, stop])
        direction = (places[stop] - places[start]) / np.linalg.norm(places[stop] - places[start])
        ends = places[start] + direction * (radii[start] + 0.02), places[stop] - direction * (radii[stop] + 0.02)
        bend = "arc3,rad=0.18"
        arrow = FancyArrowPatch(
            tuple(ends[0]), tuple(ends[1]), connectionstyle=bend, arrowstyle="-|>", mutation_scale=9 + 7 * chance,
            linewidth=0.6 + 3.2 * chance, color=colours[int(start)], alpha=0.25 + 0.6 * chance,
        )  # fmt: skip
        axes.add_patch(arrow)
        sideways = np.array([direction[1], -direction[0]]) * -0.12
        x, y = 0.5 * (ends[0] + ends[1]) - sideways
        axes.text(x, y, f"{chance:.2f}", fontsize=7, ha="center", va="center", color=_SOFT)
    for motif, (x, y) in enumerate(places):
        axes.add_patch(_disc((x, y), float(radii[motif]), colours[motif]))
        axes.text(x, y, str(motif), color="white", ha="center", va="center", fontweight="bold")
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.45, 1.45), aspect="equal")
    axes.set_axis_off()
    return finish(
        figure,
        name="transitions",
        title="What follows what",
        caption="Motifs, as large as their usage, and the probabilities of the next motif where it changes; those "
        f"below {WEAK:g} are not drawn.",
    )


def _disc(place: tuple[float, float], radius: float, colour: str) -> Any:
    from matplotlib.patches import Circle

    return Circle(place, radius, color=colour, linewidth=0)


def usage_plot(findings: MotifFindings) -> Plot:
    """Draw usage, the share in the long run, and dwell times of each motif."""
    statistics = findings.statistics
    motifs, colours = np.arange(statistics.num_motifs), motif_colours(statistics.num_motifs)
    figure = new_figure(5.0, 4.6)
    above, below = figure.subplots(2, 1, sharex=True)
    above.bar(motifs, statistics.usage, color=colours, width=0.7)
    above.plot(motifs, statistics.stationary, "_", color=INK, markersize=18, label="in the long run")
    above.set_ylabel("share of frames")
    above.legend(loc="upper right")
    step = float(findings.trajectories[0].times[:2].diff()[0])
    segmented = [runs(entry.frame_motifs) for entry in findings.segmentation.segmented]
    sizes = [np.concatenate([n[of == motif] for of, _, n in segmented]) * step / 1000.0 for motif in motifs]
    for motif, values in enumerate(sizes):
        spread = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(len(values))
        below.plot(motif + spread, np.sort(values), ".", color=colours[motif], markersize=4, alpha=0.7)
    below.plot(motifs, [np.median(v) if len(v) else np.nan for v in sizes], "_", color=INK, markersize=18)
    below.set(ylabel="dwell time (ps)", xlabel="motif", xticks=motifs)
    below.set_ylim(bottom=0.0)
    return finish(
        figure,
        name="usage",
        title="Usage and dwell times",
        caption="Above: share of frames, and that of the stationary distribution. Below: each stay in a motif, those "
        "that the recording cuts included, and their median.",
    )


def tree_plot(findings: MotifFindings) -> Plot:
    """Draw how motifs merge, nodes that lead to each other first; a motif's colour bar is its community."""
    tree, count = findings.tree, findings.statistics.num_motifs
    members: dict[int, list[int]] = {motif: [motif] for motif in range(count)}
    for number, merge in enumerate(tree.merges):
        members[count + number] = members[merge.first] + members[merge.second]
    order = members[count + len(tree.merges) - 1] if tree.merges else [0]
    at = {motif: (float(place), 0.0) for place, motif in enumerate(order)}
    figure = new_figure(5.0, 3.4)
    axes = figure.add_subplot()
    for number, merge in enumerate(tree.merges):
        (left, low), (right, high) = at[merge.first], at[merge.second]
        style = {"color": INK, "linewidth": 1.2, "linestyle": "-" if merge.cost is not None else ":"}
        axes.plot([left, left, right, right], [low, number + 1.0, number + 1.0, high], **style)
        at[count + number] = (0.5 * (left + right), number + 1.0)
    colours, communities = motif_colours(count), motif_colours(int(findings.communities.max()) + 1)
    for place, motif in enumerate(order):
        axes.plot(place, 0.0, "o", color=colours[motif], markersize=10, clip_on=False)
        axes.plot(
            [place - 0.4, place + 0.4], [-0.55, -0.55], color=communities[findings.communities[motif]], linewidth=4
        )
    axes.set(xticks=range(count), xticklabels=[str(motif) for motif in order], xlabel="motif", ylabel="merge")
    axes.set_ylim(-0.8, len(tree.merges) + 0.5)
    axes.grid(visible=False)
    return finish(
        figure,
        name="tree",
        title="Tree of motifs",
        caption="Motifs that lead to each other and are little used are merged first; dotted where they never meet. "
        "Bars below: communities.",
    )
