"""An evaluation as tables in the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from crystalvae.evaluation.evaluation_report import EvaluationReport
from crystalvae.evaluation.metric import Metric

if TYPE_CHECKING:
    from rich.console import RenderableType


def format_tables(report: EvaluationReport) -> list[RenderableType]:
    """Return a table for each part, for `rich`'s console, and a line for each one that was skipped."""
    from rich.markup import escape
    from rich.table import Table

    shown: list[RenderableType] = []
    for section in report.sections:
        if section.skipped:
            shown.append(f"[bold]{escape(section.title)}[/] skipped: {escape(section.skipped)}")
            continue
        table = Table(title=f"{section.title}: {escape(report.generated.name)}", title_justify="left")
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
