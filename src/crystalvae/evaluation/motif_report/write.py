"""Write the report of motifs: `report.html`, its plots and animations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crystalvae.errors import OutputError
from crystalvae.evaluation.motif_report.animation import write_animation
from crystalvae.evaluation.motif_report.colours import motif_colours
from crystalvae.evaluation.motif_report.findings import MotifFindings
from crystalvae.evaluation.motif_report.latent_map import latent_map
from crystalvae.evaluation.motif_report.model_plots import forecast_plot, reconstruction_plot, training_plot
from crystalvae.evaluation.motif_report.player import MovingScene, moving_scene, player_data
from crystalvae.evaluation.motif_report.plots import timeline_plot, transition_plot, tree_plot, usage_plot
from crystalvae.evaluation.report.numbers import write_number
from crystalvae.evaluation.report.page import written_facts
from crystalvae.evaluation.report.style import Plot, plotting
from crystalvae.evaluation.report.templates import render
from crystalvae.evaluation.report.write import HTML_NAME, PLOTS_FOLDER
from crystalvae.files import write_text
from crystalvae.sequence_module.motifs.write import motif_table

ANIMATIONS_FOLDER = "animations"
ASSETS = Path(__file__).with_name("assets")


def write_motif_report(
    findings: MotifFindings,
    output_dir: Path | str,
    *,
    projection: str = "pca",
    properties: Sequence[str] | None = None,
    animations: Sequence[str] = (),
    seed: int = 0,
) -> list[Path]:
    """Write the page, `plots/*.png` and, of `animations` (gif, mp4), one of each motif's first clip; returns the paths.

    The page holds everything it shows, its viewer included: it opens from disk and asks the network for nothing.
    Raises `OutputError` where the folder cannot be written to, `ConfigError` for a map or animation that
    cannot be made.
    """
    folder = Path(output_dir).expanduser()
    with plotting():
        plots = _plots(findings, projection=projection, properties=properties, seed=seed)
    try:
        (folder / PLOTS_FOLDER).mkdir(parents=True, exist_ok=True)
        paths = [plot.write(folder / PLOTS_FOLDER) for plot in plots.values()]
        moving = _write_animations(findings, folder / ANIMATIONS_FOLDER, animations)
        write_text(folder / HTML_NAME, _render(findings, plots, [path.relative_to(folder) for path in moving]))
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write the report to {folder}: {error.strerror or error}") from error
    return [folder / HTML_NAME, *paths, *moving]


def _plots(findings: MotifFindings, *, projection: str, properties: Sequence[str] | None, seed: int) -> dict[str, Plot]:
    plots = [
        latent_map(findings, projection=projection, properties=properties, seed=seed),
        timeline_plot(findings),
        transition_plot(findings),
        usage_plot(findings),
        tree_plot(findings),
    ]
    if findings.forecasts:
        plots.append(reconstruction_plot(findings.forecasts[0], list(findings.feature_names)))
    if findings.forecast_errors is not None:
        plots.append(forecast_plot(findings.forecast_errors, held_out=findings.held_out))
    if findings.training is not None:
        plots.append(training_plot(findings.training))
    return {plot.name: plot for plot in plots}


def _write_animations(findings: MotifFindings, folder: Path, kinds: Sequence[str]) -> list[Path]:
    """Write the first clip of each motif in each form; what cannot be drawn is left out, and the page says why."""
    colours = motif_colours(findings.statistics.num_motifs)
    first = {clip.motif: clip for clip in reversed(findings.clips)}
    paths = []
    for motif in sorted(first if kinds else ()):
        clip = first[motif]
        moving = moving_scene(clip.trajectory)
        if isinstance(moving, MovingScene):
            folder.mkdir(exist_ok=True)
            options = {"title": f"motif {motif}", "colour": colours[motif]}
            paths += [write_animation(moving, folder / f"motif_{motif}.{kind}", **options) for kind in kinds]
    return paths


def _render(findings: MotifFindings, plots: dict[str, Plot], animations: Sequence[Path]) -> str:
    statistics = findings.statistics
    colours = motif_colours(statistics.num_motifs)
    step = float(findings.trajectories[0].times[:2].diff()[0])
    table = motif_table(statistics, findings.communities, step=step)
    motifs = [
        {
            "number": motif,
            "colour": colours[motif],
            "usage": f"{row['usage']:.1%}",
            "community": int(row["community"]),
            "stationary": f"{row['stationary']:.1%}",
            "runs": int(row["runs"]),
            "mean": _picoseconds(row["mean_dwell_fs"]),
            "median": _picoseconds(row["median_dwell_fs"]),
            "next": _next(statistics.switches[motif]),
            "clips": [place for place, clip in enumerate(findings.clips) if clip.motif == motif],
        }
        for motif, row in enumerate(table.to_dict("records"))
    ]
    trajectories = findings.trajectories
    return render(
        "motifs.html.j2",
        assets=ASSETS,
        heading=f"Motifs: {findings.name}",
        lead=f"{statistics.num_motifs} motifs in {write_number(statistics.frames)} frames of {len(trajectories)} "
        f"trajectories; windows of {findings.segmentation.segmented[0].window} frames, {step:g} fs apart.",
        motifs=motifs,
        agreement=findings.agreement,
        comparison=findings.comparison,
        label=findings.label,
        held_out=findings.held_out,
        errors=_error_rows(findings),
        plots=plots,
        plots_folder=PLOTS_FOLDER,
        animations=[path.as_posix() for path in animations],
        files=list(findings.files),
        run=written_facts(findings.run),
        config=json.dumps(findings.config, indent=1, ensure_ascii=False) if findings.config else "",
        clips=findings.clips,
        viewer=player_data(findings.clips, colours) if findings.clips else "",
    )


def _picoseconds(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value / 1000.0:.2f}"


def _next(switches: np.ndarray) -> str:
    """Return the likeliest motifs to come next, in words."""
    order = [motif for motif in np.argsort(-switches, kind="stable")[:3].tolist() if switches[motif] > 0]
    return ", ".join(f"{motif} ({switches[motif]:.0%})" for motif in order) or "none"


def _error_rows(findings: MotifFindings) -> list[list[str]]:
    if findings.forecast_errors is None:
        return []
    rows = findings.forecast_errors[["horizon", "model", "last_frame", "linear", "ar1", "mean"]].to_numpy()
    return [[f"{int(row[0])}", *(f"{value:.3g}" for value in row[1:])] for row in rows]
