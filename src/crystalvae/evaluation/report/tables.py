"""An evaluation as tables in the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from crystalvae.errors import printable
from crystalvae.evaluation.evaluation_report import EvaluationReport
from crystalvae.evaluation.metric import Metric
from crystalvae.evaluation.report.numbers import HEADLINES

if TYPE_CHECKING:
    from rich.console import RenderableType


MOST_LINES = 10
"""Most numbers of a summary."""


def format_summary(report: EvaluationReport) -> list[str]:
    """Return the numbers that were asked for, at most `MOST_LINES`: the headlines; and what parts were skipped."""
    metrics = report.metrics()
    chosen = [name for name in HEADLINES[report.kind] if name in metrics]
    for section in report.sections:  # parts that were asked for and have no headline: their first number
        if not any(name in section.metrics for name in chosen):
            chosen += list(section.metrics)[:1]
    chosen = chosen[:MOST_LINES]
    others = {name: _references(report, name) for name in chosen}
    width = max((len(name) for name in chosen), default=0)
    lines = [f"{report.kind}: {report.generated.name}, {report.generated.total} crystals"]
    lines += [f"  {name:<{width}}  {format_value(metrics[name])}{others[name]}" for name in chosen]
    skipped = [section.title for section in report.sections if section.skipped]
    return lines + ([f"  skipped: {', '.join(skipped)}"] if skipped else [])


def _references(report: EvaluationReport, name: str) -> str:
    section = next((section for section in report.sections if name in section.metrics), None)
    found = (
        {} if section is None else {key: values[name] for key, values in section.references.items() if name in values}
    )
    shown = ", ".join(f"{key} {format_value(metric)}" for key, metric in found.items())
    return f"  ({shown})" if shown else ""


def format_tables(report: EvaluationReport) -> list[RenderableType]:
    """Return a table for each part, for `rich`'s console, and a line for each one that was skipped."""
    from rich.markup import escape
    from rich.table import Table

    shown: list[RenderableType] = []
    for section in report.sections:
        if section.skipped:
            shown.append(f"[bold]{escape(section.title)}[/] skipped: {escape(section.skipped)}")
            continue
        table = Table(title=f"{section.title}: {escape(printable(report.generated.name))}", title_justify="left")
        table.add_column("measure", no_wrap=True)
        for title in ("value", *section.references):
            table.add_column(escape(title), justify="right", no_wrap=True)
        table.add_column("definition")
        for name, metric in section.metrics.items():
            others = [metrics.get(name) for metrics in section.references.values()]
            values = ["" if other is None else format_value(other) for other in (metric, *others)]
            table.add_row(name, *values, escape(metric.definition))
        shown.append(table)
        missing = [f"{name}: {text}" for name, text in section.settings.items() if str(text).startswith("left out")]
        shown.extend(f"[yellow]{escape(line)}[/]" for line in missing)
    return shown


def format_value(metric: Metric) -> str:
    """Return a metric's number as people read it: shares in percent, others with their unit."""
    if metric.value is None or (isinstance(metric.value, float) and math.isnan(metric.value)):
        return "none"
    if metric.unit == "share":
        return f"{metric.value:.2%}"
    space = "" if metric.unit in {"", "°"} else " "
    number = str(metric.value) if isinstance(metric.value, int) else f"{metric.value:.4f}"
    return f"{number}{space}{metric.unit}"
