"""What the page shows, put together from an evaluation's report: plain data for the template."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from crystalvae.evaluation.report.cases import Group
from crystalvae.evaluation.report.numbers import (
    ARROWS,
    HEADLINES,
    MOST_HEADLINES,
    chemical_formula,
    label,
    typeset,
    with_unit,
    write_number,
    write_published,
)
from crystalvae.evaluation.report.published import PublishedTable, beside, published_numbers
from crystalvae.evaluation.report.scene import Scene, element_colours

ASSETS = Path(__file__).with_name("assets")
TITLES = {
    "reconstruction": "Reconstruction",
    "csp": "Crystal structure prediction",
    "generation": "De novo generation",
}
MOST_UNREADABLE = 20
SHOWN_ELSEWHERE = {
    "format_version", "kind", "name", "command", "seed", "seconds", "machine", "versions", "inputs", "metrics",
    "definitions", "sections", "per_crystal", "config",
}  # fmt: skip
"""Keys of the report that stand in other places of the page; every other one stands under "This run"."""

Report = Mapping[str, object]


@dataclass(frozen=True)
class MetricRow:
    """A metric as a row of a table, everything written out."""

    name: str
    title: str
    value: str
    arrow: str
    count: str
    definition: str
    source: str
    published: list[tuple[str, str]]
    published_table: str


@dataclass(frozen=True)
class SectionView:
    """A section of the report, with settings as pairs of texts."""

    name: str
    title: str
    skipped: str
    rows: list[MetricRow]
    settings: list[tuple[str, str]]


def name_of(report: Report) -> str:
    """Return a short name of what was evaluated: of a path its last part."""
    name = str(report.get("name") or "evaluation")
    return PurePath(name).name or name


def heading_of(report: Report) -> str:
    """Return the page's title: the kind of evaluation and the name, or the name alone where that says the kind."""
    name, key = name_of(report), str(report.get("kind", ""))
    kind = TITLES.get(key, key)
    return name[:1].upper() + name[1:] if kind.lower() in name.lower() else f"{kind}: {name}"


def metric_values(report: Report) -> dict[str, Mapping[str, object]]:
    """Return all metrics of all sections by name; of one that several have, the first."""
    result: dict[str, Mapping[str, object]] = {}
    for section in _sections(report):
        metrics: Mapping[str, Mapping[str, object]] = section.get("metrics") or {}  # pyright: ignore[reportAssignmentType]
        for name, metric in metrics.items():
            result.setdefault(name, metric)
    return result


def section_views(report: Report) -> list[SectionView]:
    """Return the sections with their metrics, each beside what was published of it."""
    tables = published_numbers().for_kind(str(report.get("kind", "")))
    known = metric_values(report)
    views = []
    for section in _sections(report):
        metrics: Mapping[str, Mapping[str, object]] = section.get("metrics") or {}  # pyright: ignore[reportAssignmentType]
        settings: Mapping[str, object] = section.get("settings") or {}  # pyright: ignore[reportAssignmentType]
        views.append(
            SectionView(
                name=str(section.get("name", "")),
                title=str(section.get("title") or section.get("name", "")),
                skipped=str(section.get("skipped") or ""),
                rows=[_metric_row(name, metric, tables, known) for name, metric in metrics.items()],
                settings=[(key.replace("_", " "), write_setting(value)) for key, value in settings.items()],
            )
        )
    return views


def headlines(report: Report) -> list[tuple[str, str, str, str]]:
    """Return title, value, arrow and metric's name of what stands at the top of the page."""
    metrics = metric_values(report)
    kind = str(report.get("kind", ""))
    names = [name for name in HEADLINES.get(kind, ()) if metrics.get(name, {}).get("value") is not None]
    if any(name.endswith("@1") for name in names):
        names = [name for name in names if f"{name}@1" not in names]
    return [
        (
            label(name),
            write_number(metrics[name]["value"], str(metrics[name].get("unit") or "")),
            ARROWS.get(str(metrics[name].get("better")), ""),
            name,
        )
        for name in names[:MOST_HEADLINES]
    ]


def input_rows(report: Report) -> list[dict[str, object]]:
    """Return what was compared: role, name, number of crystals, and the unreadable ones with their reasons."""
    inputs: Mapping[str, Mapping[str, object]] = report.get("inputs") or {}  # pyright: ignore[reportAssignmentType]
    rows = []
    for role, entry in inputs.items():
        if not entry:
            continue
        unreadable = entry.get("unreadable") or []
        rows.append(
            {
                "role": role,
                "name": str(entry.get("name", "")),
                "count": write_number(entry.get("count")),
                "unreadable": unreadable[:MOST_UNREADABLE],  # pyright: ignore[reportIndexIssue]
                "unreadable_count": len(unreadable),  # pyright: ignore[reportArgumentType]
            }
        )
    return rows


def facts_of_run(report: Report) -> list[tuple[str, str]]:
    """Return how the run can be repeated: command, seed, time, machine, versions, and what else the report says."""
    seconds = report.get("seconds")
    if isinstance(seconds, Mapping):
        took = " · ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    else:
        took = f"{seconds:.1f} s" if isinstance(seconds, (int, float)) else None
    rows = [("command", report.get("command")), ("seed", report.get("seed")), ("time", took)]
    rows += [(name, report.get(name)) for name in ("machine", "versions")]
    rows += [(name, value) for name, value in report.items() if name not in SHOWN_ELSEWHERE]
    result = []
    for name, value in rows:
        if isinstance(value, Mapping):
            parts = (
                f"{key.replace('_', ' ')} {write_setting(entry)}" for key, entry in value.items() if entry is not None
            )
            result.append((name.replace("_", " "), " · ".join(parts)))
        elif value is not None:
            result.append((name.replace("_", " "), write_setting(value)))
    return result


def viewer_data(groups: Sequence[Group]) -> dict[str, object]:
    """Return what the page's script draws: groups of cases with scenes and CIFs, elements' colours and radii."""
    from ase.data import atomic_numbers, covalent_radii

    scenes = [panel.scene for group in groups for case in group.cases for panel in case.panels]
    symbols = sorted({symbol for entry in scenes if isinstance(entry, Scene) for symbol in entry.elements})
    return {
        "colours": element_colours(symbols),
        "radii": {symbol: round(float(covalent_radii[atomic_numbers[symbol]]), 3) for symbol in symbols},
        "groups": [
            {
                "title": group.title,
                "cases": [
                    {
                        "id": case.id,
                        "formula": chemical_formula(case.formula),
                        "verdict": typeset(case.verdict),
                        "panels": [
                            {
                                "title": panel.title,
                                "scene": panel.scene.to_dict() if isinstance(panel.scene, Scene) else None,
                                "obstacle": panel.scene if isinstance(panel.scene, str) else "",
                                "cif": panel.cif,
                                "facts": [list(fact) for fact in panel.facts],
                            }
                            for panel in case.panels
                        ],
                    }
                    for case in group.cases
                ],
            }
            for group in groups
        ],
    }


def embeddable(data: object) -> str:
    """Return JSON that can stand inside a script element, whatever texts are in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def write_setting(value: object) -> str:
    """Return a setting in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {write_setting(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(write_setting(entry) for entry in value) or "none"
    if value is None or value == "":
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def vendored() -> dict[str, dict[str, str]]:
    """Return the record of the libraries that come with the package: version, licence, origin and hash of each."""
    return json.loads((ASSETS / "vendored.json").read_text(encoding="utf-8"))


def _metric_row(
    name: str, metric: Mapping[str, object], tables: Sequence[PublishedTable], known: Collection[str]
) -> MetricRow:
    found = beside(tables, name, known)
    numbers: list[tuple[str, str]] = []
    if found is not None:
        table, column = found
        place = table.columns.index(column)
        ordered = sorted(
            ((model, values[place]) for model, values in table.rows.items()),
            key=lambda entry: (entry[1] is None, entry[1] or 0.0),
            reverse=column.better == "higher",
        )
        numbers = [(model, with_unit(write_published(value, column.unit), column.unit)) for model, value in ordered]
    count = metric.get("count")
    return MetricRow(
        name=name,
        title=label(name),
        value=write_number(metric.get("value"), str(metric.get("unit") or "")),
        arrow=ARROWS.get(str(metric.get("better")), ""),
        count="" if count is None else write_number(count),
        definition=typeset(str(metric.get("definition") or "")),
        source=str(metric.get("source") or ""),
        published=numbers,
        published_table=found[0].name if found else "",
    )


def _sections(report: Report) -> Sequence[Mapping[str, object]]:
    return report.get("sections") or []  # pyright: ignore[reportReturnType]
