"""Write the report of an evaluation: `evaluation.json`, `report.html`, its plots, its crystals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.view.assets import embeddable
from crystalvae.errors import OutputError
from crystalvae.evaluation.evaluation_report import EvaluationReport, plain_data
from crystalvae.evaluation.report.archive import cif_texts, file_names, write_archive
from crystalvae.evaluation.report.cases import (
    GENERATION_ORDER,
    RECONSTRUCTION_ORDER,
    Cifs,
    Group,
    generation_groups,
    numbers,
    reconstruction_groups,
)
from crystalvae.evaluation.report.comparison import comparisons, is_other_dataset
from crystalvae.evaluation.report.distributions import (
    crystal_system_plot,
    fact_plots,
    hull_plot,
    space_group_plot,
)
from crystalvae.evaluation.report.facts import crystal_facts
from crystalvae.evaluation.report.numbers import chemical_formula
from crystalvae.evaluation.report.page import (
    facts_of_run,
    heading_of,
    headlines,
    input_rows,
    section_views,
    viewer_data,
)
from crystalvae.evaluation.report.parity import lattice_parity_plot, rms_plot
from crystalvae.evaluation.report.periodic_table import element_plot
from crystalvae.evaluation.report.published import published_numbers
from crystalvae.evaluation.report.style import Plot, plotting
from crystalvae.evaluation.report.templates import render
from crystalvae.files import write_text

JSON_NAME = "evaluation.json"
HTML_NAME = "report.html"
PLOTS_FOLDER = "plots"
MOST_CASES = 8
"""How many of the best, and of the worst, crystals the page shows."""


def write_report(report: EvaluationReport, output_dir: Path | str, *, html: bool = True) -> list[Path]:
    """Write `evaluation.json` and, with `html`, `report.html` into a folder; returns their paths.

    Each file is whole or not there. Raises `OutputError` where they cannot be written.
    """
    path = Path(output_dir).expanduser() / JSON_NAME
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}. Give another output_dir") from error
    return [path, write_html_report(report, path.parent)] if html else [path]


def write_html_report(report: EvaluationReport, output_dir: Path | str) -> Path:
    """Write `report.html`, `plots/*.png` and a zip of CIFs for each set of crystals; returns the page's path.

    The page holds everything it shows, its viewer included: it opens from disk, and asks the network for nothing. The
    folder is made where it is missing; files of an earlier report there are replaced.

    Raises `OutputError` where the folder cannot be written to.
    """
    folder = Path(output_dir).expanduser()
    try:
        (folder / PLOTS_FOLDER).mkdir(parents=True, exist_ok=True)
        texts, archives = _write_crystals(report, folder)
        plots = _plots(report)
        for plot in plots:
            plot.write(folder / PLOTS_FOLDER)
        write_text(folder / HTML_NAME, _render(report, plots, _groups(report, texts), archives))
        return folder / HTML_NAME
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"cannot write the report to {folder}: {error.strerror or error}. Give a folder that can be written to"
        ) from error


def _write_crystals(report: EvaluationReport, folder: Path) -> tuple[Cifs, list[tuple[str, str, int]]]:
    """Write a zip of CIFs for each set of crystals; returns the CIFs by set, and file, set and number of each zip."""
    sets: dict[str, CrystalBatch] = {"generated": report.generated.crystals}
    if report.targets is not None and report.predictions is not None:
        sets = {"targets": report.targets, "predictions": report.predictions}
    ids = report.generated.ids
    names = file_names(ids)
    texts = {name: cif_texts(crystals, names) for name, crystals in sets.items()}
    return texts, [
        (f"{name}.zip", name, write_archive(folder / f"{name}.zip", texts[name], names, ids)) for name in sets
    ]


def _plots(report: EvaluationReport) -> list[Plot]:
    names = ("generated" if report.targets is None else "predicted", "reference")
    with plotting():
        plots: list[Plot] = []
        if report.targets is not None and report.predictions is not None:
            plots.append(lattice_parity_plot(report.targets, report.predictions))
            rms = numbers(report.columns(), "rms", len(report.targets))
            if (rms == rms).any():  # noqa: PLR0124 - any that is not NaN
                plots.append(rms_plot(rms))
        ours, theirs = crystal_facts(report.generated.crystals), crystal_facts(report.reference.crystals)
        plots += fact_plots(ours, theirs, names)
        plots += _symmetry_plots(report, names)
        energies: Sequence[float] = report.distributions("stability").get("energy_above_hull", ())
        if energies:
            plots.append(hull_plot(energies))
        plots.append(element_plot(ours.element_share, theirs.element_share, names))
    return plots


def _symmetry_plots(report: EvaluationReport, names: tuple[str, str]) -> list[Plot]:
    """Return the plots of symmetry at the largest tolerance at which a generated crystal has a space group."""
    symmetry = report.distributions("symmetry")
    tolerances = [key.removeprefix("space_group_") for key in symmetry if key.startswith("space_group_")]
    tolerances = [name for name in tolerances if name != "symbols" and symmetry[f"space_group_{name}"]["generated"]]
    if not tolerances:
        return []
    chosen = max(tolerances, key=float)
    systems, groups = symmetry[f"crystal_system_{chosen}"], symmetry[f"space_group_{chosen}"]
    return [
        crystal_system_plot(systems, names, tolerance=chosen),
        space_group_plot(groups, symmetry["space_group_symbols"], names, tolerance=chosen),
    ]


def _groups(report: EvaluationReport, texts: Cifs) -> list[Group]:
    columns, ids = report.columns(), report.generated.ids
    if report.targets is not None and report.predictions is not None:
        return reconstruction_groups(report.targets, report.predictions, columns, ids, texts, most=MOST_CASES)
    return generation_groups(report.generated.crystals, columns, ids, texts["generated"], most=MOST_CASES)


def _render(
    report: EvaluationReport,
    plots: Sequence[Plot],
    groups: Sequence[Group],
    archives: Sequence[tuple[str, str, int]],
) -> str:
    config = plain_data(report.extra.get("config"))
    shown = [group for group in groups if group.cases]
    return render(
        "report.html.j2",
        heading=heading_of(report),
        headlines=headlines(report),
        sections=section_views(report),
        comparisons=comparisons(report),
        published=published_numbers(),
        other_dataset=is_other_dataset(report),
        plots=plots,
        plots_folder=PLOTS_FOLDER,
        inputs=input_rows(report),
        run=facts_of_run(report),
        config=json.dumps(config, indent=1, ensure_ascii=False) if config else "",
        groups=shown,
        ranked_by=GENERATION_ORDER if report.targets is None else RECONSTRUCTION_ORDER,
        paired=bool(groups and groups[0].cases and len(groups[0].cases[0].panels) > 1),
        archives=archives,
        viewer=embeddable(viewer_data(shown)) if shown else "",
        chemical_formula=chemical_formula,
    )
