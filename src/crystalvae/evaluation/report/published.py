"""Numbers that papers publish, each with its source and how it was measured, to be set beside a run's own."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PATH = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Column:
    """A quantity of a table of published numbers: percentages where `unit` is "%".

    `metrics` are the names under which a run may have the same quantity, `gated` those of its gated variant; the first
    that a run has is taken.
    """

    title: str
    metrics: tuple[str, ...]
    unit: str = ""
    better: str = "neither"
    gated: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedTable:
    """Numbers of several models that were measured in one way.

    `kinds` are the kinds of evaluation it belongs to. `checked` says whether the numbers were read in `source` when
    they were written down here; otherwise they are quoted from memory of it.
    """

    name: str
    kinds: tuple[str, ...]
    title: str
    measured: str
    source: str
    url: str
    checked: bool
    columns: tuple[Column, ...]
    rows: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Published:
    """All published numbers: `models` gives the paper of each model, `missing` says whose numbers there are not."""

    dataset: str
    dataset_title: str
    models: Mapping[str, str]
    missing: str
    tables: tuple[PublishedTable, ...]

    def for_kind(self, kind: str) -> list[PublishedTable]:
        """Return the tables that belong to a kind of evaluation."""
        return [table for table in self.tables if kind in table.kinds]


@cache
def published_numbers() -> Published:
    """Return the published numbers that come with the package."""
    content = json.loads(PATH.read_text(encoding="utf-8"))
    tables = tuple(
        PublishedTable(
            **{
                **table,
                "kinds": tuple(table["kinds"]),
                "columns": tuple(
                    Column(**{**column, "metrics": tuple(column["metrics"]), "gated": tuple(column.get("gated", ()))})
                    for column in table["columns"]
                ),
            }
        )
        for table in content["tables"]
    )
    return Published(**{**content, "tables": tables})


def beside(
    tables: Iterable[PublishedTable], metric: str, known: Collection[str] = ()
) -> tuple[PublishedTable, Column] | None:
    """Return the first table with a column for a metric, and that column; None where nobody published it.

    Numbers whose codes let only valid crystals match stand beside the gated metric, if that is among the `known` ones.
    """
    for table in tables:
        for column in table.columns:
            gated = any(name in known for name in column.gated)
            if metric in (column.gated if gated else column.metrics):
                return table, column
    return None
