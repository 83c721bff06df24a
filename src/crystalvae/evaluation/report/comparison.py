"""Tables of published numbers with a run's own numbers in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crystalvae.evaluation.evaluation_report import EvaluationReport
from crystalvae.evaluation.metric import Metric
from crystalvae.evaluation.report.numbers import ARROWS, write_number, write_published
from crystalvae.evaluation.report.page import name_of
from crystalvae.evaluation.report.published import Column, PublishedTable, published_numbers
from crystalvae.evaluation.substitution.section import PREFIX, TITLE_LEARNED


@dataclass(frozen=True)
class ComparisonRow:
    """A row of a table of published numbers; `ours` marks those of this run."""

    model: str
    paper: str
    cells: list[str]
    ours: bool = False


@dataclass(frozen=True)
class Comparison:
    """A table of published numbers with this run's own."""

    table: PublishedTable
    rows: list[ComparisonRow]
    arrows: list[str]


def comparisons(report: EvaluationReport) -> list[Comparison]:
    """Return the published tables that have a quantity of this run, with its own numbers first."""
    metrics = report.metrics()
    published = published_numbers()
    name = name_of(report)
    result = []
    for table in published.for_kind(report.kind):
        rows = [ComparisonRow(name, "this run", _own(table.columns, metrics, gated=False), ours=True)]
        if any(column.gated for column in table.columns):
            rows.append(
                ComparisonRow(f"{name}, gated", "this run", _own(table.columns, metrics, gated=True), ours=True)
            )
        if all(cell == "–" for row in rows for cell in row.cells):
            continue  # nothing of this run stands beside it
        substituted = {key.removeprefix(PREFIX): value for key, value in metrics.items() if key.startswith(PREFIX)}
        for gated, ending in ((False, ""), (True, ", gated")):
            cells = _own(table.columns, substituted, gated=gated)
            if any(cell != "–" for cell in cells):
                rows.append(ComparisonRow(f"{_substitution(report)}{ending}", "this run", cells, ours=True))
        rows += [
            ComparisonRow(
                model,
                published.models[model],
                [write_published(value, column.unit) for value, column in zip(values, table.columns, strict=True)],
            )
            for model, values in table.rows.items()
        ]
        result.append(Comparison(table, rows, [ARROWS.get(column.better, "") for column in table.columns]))
    return result


def _substitution(report: EvaluationReport) -> str:
    learned = any(section.title == TITLE_LEARNED for section in report.sections)
    return f"substitution, {'distances learned' if learned else 'no model'}"


def is_other_dataset(report: EvaluationReport) -> bool:
    """Say whether a run was evaluated on crystals that the published numbers are not about."""
    named = f"{report.extra.get('dataset') or ''} {report.reference.name}"
    return published_numbers().dataset not in named.lower().replace("-", "_")


def _own(columns: Sequence[Column], metrics: Mapping[str, Metric], *, gated: bool) -> list[str]:
    cells = []
    for column in columns:
        names = column.gated if gated else column.metrics
        metric = next((metrics[name] for name in names if name in metrics), None)
        cells.append(write_number(None) if metric is None else write_number(metric.value, metric.unit, bare=True))
    return cells
