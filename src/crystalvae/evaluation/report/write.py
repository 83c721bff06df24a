"""Write the report of an evaluation: `report.html`, its plots, its crystals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.writers import default_ids
from crystalvae.errors import DataError, OutputError
from crystalvae.evaluation.report import distributions, page
from crystalvae.evaluation.report.archive import cif_texts, file_names, write_archive
from crystalvae.evaluation.report.cases import (
    GENERATION_ORDER,
    RECONSTRUCTION_ORDER,
    Columns,
    Group,
    generation_groups,
    numbers,
    reconstruction_groups,
)
from crystalvae.evaluation.report.comparison import comparisons, is_other_dataset
from crystalvae.evaluation.report.facts import crystal_facts
from crystalvae.evaluation.report.numbers import chemical_formula
from crystalvae.evaluation.report.parity import lattice_parity_plot, rms_plot
from crystalvae.evaluation.report.periodic_table import element_plot
from crystalvae.evaluation.report.published import published_numbers
from crystalvae.evaluation.report.scene import BOND
from crystalvae.evaluation.report.style import Plot, plotting
from crystalvae.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_CASES = 8
"""How many of the best, and of the worst, crystals the page shows."""
PLOTS_FOLDER = "plots"


def write_html_report(
    report: Mapping[str, object],
    *,
    generated: CrystalBatch,
    reference: CrystalBatch,
    targets: CrystalBatch | None = None,
    predictions: CrystalBatch | None = None,
    output_dir: Path | str,
) -> Path:
    """Write `report.html`, `plots/*.png` and one zip of CIFs a set of crystals to a folder; returns the page's path.

    The page holds everything it shows, its viewer included: it opens from disk, and asks the network for nothing.

    Args:
        report: The evaluation as plain data, as `EvaluationReport.to_dict` gives it.
        generated: What was evaluated, in the order of the report's `per_crystal`; for reconstruction and structure
            prediction the predictions.
        reference: What it is compared with in the distributions.
        targets: For reconstruction and structure prediction, the crystals that `predictions` should be.
        predictions: One for each target, in the same order (of several candidates, the first).
        output_dir: Made where it is missing; files of an earlier report there are replaced.

    Raises `DataError` for a report without sections, or targets and predictions that do not pair up, and `OutputError`
    where the folder cannot be written to.
    """
    if not isinstance(report.get("sections"), Sequence):
        raise DataError(f"report: expected plain data with 'sections', got the keys {sorted(report)}")
    if (targets is None) != (predictions is None):
        given = "targets" if predictions is None else "predictions"
        raise DataError(f"targets and predictions go together, got {given} only: give both, crystal i for crystal i")
    if targets is not None and predictions is not None and len(targets) != len(predictions):
        raise DataError(
            f"predictions: expected one for each of {len(targets)} targets, got {len(predictions)}; of several "
            "candidates give the first"
        )
    folder = Path(output_dir).expanduser()
    sets = {"generated": generated} if targets is None else {"targets": targets}
    if predictions is not None:
        sets["predictions"] = predictions
    ids = _ids(report, len(next(iter(sets.values()))))
    try:
        (folder / PLOTS_FOLDER).mkdir(parents=True, exist_ok=True)
        names = file_names(ids)
        texts = {name: cif_texts(crystals, names) for name, crystals in sets.items()}
        archives = [
            (f"{name}.zip", name, write_archive(folder / f"{name}.zip", texts[name], names, ids)) for name in sets
        ]
        plots = _plots(report, generated, reference, targets, predictions)
        for plot in plots:
            plot.write(folder / PLOTS_FOLDER)
        groups = _groups(report, generated, targets, predictions, ids, texts)
        html = _render(
            report, plots, groups, archives, ranked_by=GENERATION_ORDER if targets is None else RECONSTRUCTION_ORDER
        )
        write_text(folder / "report.html", html)
        return folder / "report.html"
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"cannot write the report to {folder}: {error.strerror or error}. Give a folder that can be written to"
        ) from error


def _ids(report: Mapping[str, object], count: int) -> list[str]:
    per_crystal = report.get("per_crystal")
    ids = per_crystal.get("id") if isinstance(per_crystal, Mapping) else None
    return [str(name) for name in ids] if isinstance(ids, Sequence) and len(ids) == count else default_ids(count)


def _columns(report: Mapping[str, object]) -> Columns:
    per_crystal = report.get("per_crystal")
    return per_crystal if isinstance(per_crystal, Mapping) else {}


def _distribution(report: Mapping[str, object], section: str) -> Mapping[str, Any]:
    for entry in report["sections"]:  # pyright: ignore[reportGeneralTypeIssues]
        if entry.get("name") == section:
            return entry.get("distributions") or {}
    return {}


def _plots(
    report: Mapping[str, object],
    generated: CrystalBatch,
    reference: CrystalBatch,
    targets: CrystalBatch | None,
    predictions: CrystalBatch | None,
) -> list[Plot]:
    names = ("generated" if targets is None else "predicted", "reference")
    with plotting():
        plots: list[Plot] = []
        if targets is not None and predictions is not None:
            plots.append(lattice_parity_plot(targets, predictions))
            rms = numbers(_columns(report), "rms", len(targets))
            if (rms == rms).any():  # noqa: PLR0124 - any that is not NaN
                plots.append(rms_plot(rms))
        ours, theirs = crystal_facts(generated), crystal_facts(reference)
        plots += distributions.fact_plots(ours, theirs, names)
        symmetry = _distribution(report, "symmetry")
        tolerances = [key.removeprefix("space_group_") for key in symmetry if key.startswith("space_group_")]
        tolerances = [name for name in tolerances if name != "symbols" and symmetry[f"space_group_{name}"]["generated"]]
        if tolerances:
            chosen = max(tolerances, key=float)
            systems = symmetry[f"crystal_system_{chosen}"]
            plots.append(distributions.crystal_system_plot(systems, names, tolerance=chosen))
            symbols = symmetry.get("space_group_symbols", {})
            groups = symmetry[f"space_group_{chosen}"]
            plots.append(distributions.space_group_plot(groups, symbols, names, tolerance=chosen))
        energies = _distribution(report, "stability").get("energy_above_hull")
        if energies:
            plots.append(distributions.hull_plot(list(energies)))
        plots.append(element_plot(ours.element_share, theirs.element_share, names))
    return plots


def _groups(
    report: Mapping[str, object],
    generated: CrystalBatch,
    targets: CrystalBatch | None,
    predictions: CrystalBatch | None,
    ids: Sequence[str],
    texts: Mapping[str, Sequence[str]],
) -> list[Group]:
    def cif(name: str, indices: list[int]) -> list[str]:
        return [texts[name][index] for index in indices]

    if targets is not None and predictions is not None:
        return reconstruction_groups(targets, predictions, _columns(report), ids, cif, most=MOST_CASES)
    return generation_groups(generated, _columns(report), ids, cif, most=MOST_CASES)


def _render(
    report: Mapping[str, object],
    plots: Sequence[Plot],
    groups: Sequence[Group],
    archives: Sequence[tuple[str, str, int]],
    *,
    ranked_by: str,
) -> str:
    published = published_numbers()
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            heading=page.heading_of(report),
            headlines=page.headlines(report),
            sections=page.section_views(report),
            comparisons=comparisons(report),
            published=published,
            other_dataset=is_other_dataset(report),
            plots=plots,
            plots_folder=PLOTS_FOLDER,
            inputs=page.input_rows(report),
            run=page.facts_of_run(report),
            config=json.dumps(report["config"], indent=1, ensure_ascii=False) if report.get("config") else "",
            groups=[group for group in groups if group.cases],
            ranked_by=ranked_by,
            paired=bool(groups and groups[0].cases and len(groups[0].cases[0].panels) > 1),
            archives=archives,
            viewer=page.embeddable(page.viewer_data([group for group in groups if group.cases])),
            libraries=page.vendored(),
            asset=_asset,
            bond=f"{BOND:g}",
            chemical_formula=chemical_formula,
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(page.ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset(name: str) -> str:
    return (page.ASSETS / name).read_text(encoding="utf-8")
