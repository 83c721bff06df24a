"""What the page shows, put together from an evaluation's report: texts for the template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from crystalvae.data.dataset import SkippedRow
from crystalvae.data.view.scene import Scene, look
from crystalvae.evaluation.evaluation_report import EvaluationReport, Kind, plain_data
from crystalvae.evaluation.metric import Section
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

TITLES: Mapping[Kind, str] = {
    "reconstruction": "Reconstruction",
    "csp": "Crystal structure prediction",
    "generation": "De novo generation",
}
MOST_UNREADABLE = 20


@dataclass(frozen=True)
class MetricRow:
    """A metric as a row of a table, everything written out; `references` are the values of what stands beside it."""

    name: str
    title: str
    value: str
    references: list[str]
    arrow: str
    count: str
    definition: str
    source: str
    published: list[tuple[str, str]]
    published_table: str


@dataclass(frozen=True)
class SectionView:
    """A section of the report, with settings as pairs of texts; `references` names what stands beside the model."""

    name: str
    title: str
    skipped: str
    references: list[str]
    rows: list[MetricRow]
    settings: list[tuple[str, str]]


@dataclass(frozen=True)
class InputRow:
    """A set of crystals that was judged or compared: `unreadable` are the first of those that could not be read."""

    role: str
    name: str
    count: str
    unreadable: Sequence[SkippedRow]
    unreadable_count: int


def name_of(report: EvaluationReport) -> str:
    """Return a short name of what was evaluated: of a path its last part."""
    name = report.generated.name or "evaluation"
    return PurePath(name).name or name


def heading_of(report: EvaluationReport) -> str:
    """Return the page's title: the kind of evaluation and the name, or the name alone where that says the kind."""
    name, kind = name_of(report), TITLES[report.kind]
    return name[:1].upper() + name[1:] if kind.lower() in name.lower() else f"{kind}: {name}"


def section_views(report: EvaluationReport) -> list[SectionView]:
    """Return the sections with their metrics, each beside what was published of it."""
    tables = published_numbers().for_kind(report.kind)
    known = report.metrics()
    return [
        SectionView(
            name=section.name,
            title=section.title,
            skipped=section.skipped,
            references=list(section.references),
            rows=[_metric_row(section, name, tables, known) for name in section.metrics],
            settings=[(key.replace("_", " "), write_setting(value)) for key, value in section.settings.items()],
        )
        for section in report.sections
    ]


def headlines(report: EvaluationReport) -> list[tuple[str, str, str, str]]:
    """Return title, value, arrow and metric's name of what stands at the top of the page."""
    metrics = {name: metric for name, metric in report.metrics().items() if plain_data(metric.value) is not None}
    names = [name for name in HEADLINES[report.kind] if name in metrics]
    if any(name.endswith("@1") for name in names):
        names = [name for name in names if f"{name}@1" not in names]
    return [
        (
            label(name),
            write_number(metrics[name].value, metrics[name].unit),
            ARROWS.get(metrics[name].better, ""),
            name,
        )
        for name in names[:MOST_HEADLINES]
    ]


def input_rows(report: EvaluationReport) -> list[InputRow]:
    """Return what was compared: role, name, number of crystals, and the unreadable ones with their reasons."""
    return [
        InputRow(
            role=role,
            name=crystals.name,
            count=write_number(crystals.total),
            unreadable=crystals.unreadable[:MOST_UNREADABLE],
            unreadable_count=len(crystals.unreadable),
        )
        for role, crystals in report.inputs().items()
        if crystals is not None
    ]


def facts_of_run(report: EvaluationReport) -> list[tuple[str, str]]:
    """Return how the run can be repeated: command, seed, time, machine, versions, and what else the report says."""
    rows: dict[str, object] = {
        "command": report.command,
        "seed": report.seed,
        "time": " · ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items()),
        "machine": report.machine,
        "versions": report.versions,
        **{name: value for name, value in report.extra.items() if name != "config"},
    }
    return written_facts(rows)


def written_facts(rows: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return facts with their names, each in one line; those that are None are left out."""
    result = []
    for name, value in rows.items():
        if isinstance(value, Mapping):
            known = {key: entry for key, entry in value.items() if entry is not None}
            text = " · ".join(f"{key.replace('_', ' ')} {write_setting(entry)}" for key, entry in known.items())
            result.append((name.replace("_", " "), text))
        elif value is not None:
            result.append((name.replace("_", " "), write_setting(value)))
    return result


def viewer_data(groups: Sequence[Group]) -> dict[str, object]:
    """Return what the page's script draws: groups of cases with scenes and CIFs, elements' colours and radii."""
    return {
        **look(panel.scene for group in groups for case in group.cases for panel in case.panels),
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


def write_setting(value: object) -> str:
    """Return a setting in one line."""
    value = plain_data(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {write_setting(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(write_setting(entry) for entry in value) or "none"
    if value is None or value == "":
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metric_row(section: Section, name: str, tables: Sequence[PublishedTable], known: Collection[str]) -> MetricRow:
    metric = section.metrics[name]
    others = [metrics.get(name) for metrics in section.references.values()]
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
    return MetricRow(
        name=name,
        title=label(name),
        value=write_number(metric.value, metric.unit),
        references=["" if other is None else write_number(other.value, other.unit) for other in others],
        arrow=ARROWS.get(metric.better, ""),
        count="" if metric.count is None else write_number(metric.count),
        definition=typeset(metric.definition),
        source=metric.source,
        published=numbers,
        published_table=found[0].name if found else "",
    )
