"""What an evaluation found: shown as tables, and written as JSON and as a page for the browser."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import OutputError
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.metric import Metric, Section
from crystalvae.evaluation.speed import describe_machine
from crystalvae.files import installed_versions, write_text

if TYPE_CHECKING:
    from rich.console import RenderableType

Kind = Literal["reconstruction", "csp", "generation"]
FORMAT_VERSION = 1
JSON_NAME = "evaluation.json"
PACKAGES = (
    "crystalvae", "torch", "numpy", "pandas", "scipy", "ase", "pymatgen", "pymatgen-core", "spglib", "moyopy", "SMACT",
    "matminer", "chgnet", "joblib",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationReport:
    """The parts of one evaluation, with what they are about.

    `reference` and `train` are what was compared with. Where there were targets, `targets` and `predictions` are
    pairs, crystal i with crystal i, `predictions` in the order of `generated`. `extra` stands in the JSON as it is.
    """

    kind: Kind
    generated: CrystalSet
    reference: CrystalSet
    sections: Sequence[Section]
    seconds: Mapping[str, float]
    seed: int
    train: CrystalSet | None = None
    targets: CrystalBatch | None = None
    predictions: CrystalBatch | None = None
    device: str = "cpu"
    extra: Mapping[str, object] = field(default_factory=dict)

    def metrics(self) -> dict[str, Metric]:
        """Return all metrics by name; one whose name an earlier part has used is given its part's in front."""
        result: dict[str, Metric] = {}
        for section in self.sections:
            for name, metric in section.metrics.items():
                result[f"{section.name}.{name}" if name in result else name] = metric
        return result

    def section(self, name: str) -> Section:
        """Return one part by name; `KeyError` where it was not worked out."""
        return {section.name: section for section in self.sections}[name]

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain data for JSON, numbers that are not finite as None."""
        metrics = self.metrics()
        inputs = {"generated": self.generated, "reference": self.reference, "train": self.train}
        content: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "name": self.generated.name,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "seed": self.seed,
            "machine": describe_machine(self.device),
            "versions": {"python": sys.version.split()[0], **installed_versions(PACKAGES)},
            "seconds": dict(self.seconds),
            "inputs": {role: None if entry is None else entry.to_dict() for role, entry in inputs.items()},
            **self.extra,
            "metrics": {name: metric.value for name, metric in metrics.items()},
            "definitions": {name: metric.definition for name, metric in metrics.items()},
            "sections": [
                {
                    "name": section.name,
                    "title": section.title,
                    "skipped": section.skipped,
                    "settings": section.settings,
                    "metrics": {name: asdict(metric) for name, metric in section.metrics.items()},
                    "distributions": section.distributions,
                }
                for section in self.sections
            ],
            "per_crystal": {
                "id": list(self.generated.ids),
                **{
                    f"{section.name}.{name}": list(values)
                    for section in self.sections
                    for name, values in section.per_crystal.items()
                },
            },
        }
        return {key: plain_data(value) for key, value in content.items()}

    def write(self, output_dir: Path | str, *, html: bool = True) -> list[Path]:
        """Write `evaluation.json` and, with `html`, `report.html` into a folder; returns their paths.

        Each file is whole or not there. Raises `OutputError` where they cannot be written.
        """
        folder = Path(output_dir).expanduser()
        content = self.to_dict()
        paths = [write_json(content, folder / JSON_NAME)]
        if html:
            from crystalvae.evaluation.report import write_html_report

            paths.append(
                write_html_report(
                    content,
                    generated=self.generated.crystals,
                    reference=self.reference.crystals,
                    targets=self.targets,
                    predictions=self.predictions,
                    output_dir=folder,
                )
            )
        return paths


def write_json(content: Mapping[str, object], path: Path) -> Path:
    """Write JSON, whole or not at all, and return the path; `OutputError` where it cannot be written."""
    try:
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}. Give another output_dir") from error
    return path


def plain_data(value: object) -> object:
    """Return data as JSON can hold it: arrays as lists, keys as text, numbers that are not finite as None."""
    if isinstance(value, np.ndarray):
        return plain_data(value.tolist())
    if isinstance(value, np.generic):
        return plain_data(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain_data(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_data(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


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
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("definition")
        for name, metric in section.metrics.items():
            table.add_row(name, format_value(metric), escape(metric.definition))
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
