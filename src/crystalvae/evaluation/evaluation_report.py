"""What an evaluation found, and the same as plain data."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import DataError
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.metric import Metric, Section
from crystalvae.evaluation.speed import describe_machine
from crystalvae.files import installed_versions

Kind = Literal["reconstruction", "csp", "generation"]
FORMAT_VERSION = 1
PACKAGES = (
    "crystalvae", "torch", "numpy", "pandas", "scipy", "ase", "pymatgen", "pymatgen-core", "spglib", "moyopy", "SMACT",
    "matminer", "chgnet", "joblib",
)  # fmt: skip


def this_command() -> str:
    """Return the command that this process was started with."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], **installed_versions(PACKAGES)}


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationReport:
    """The parts of one evaluation, with what they are about.

    `reference` and `train` are what was compared with. Where there were targets, `targets` and `predictions` are
    pairs, crystal i with crystal i, `predictions` in the order of `generated`. `seconds` is the time each part took;
    `extra` stands in the JSON as it is.

    Raises `DataError` for targets and predictions that do not pair up.
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
    command: str = field(default_factory=this_command)
    machine: Mapping[str, object] = field(default_factory=describe_machine)
    versions: Mapping[str, str] = field(default_factory=_versions)
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {"targets": self.targets, "predictions": self.predictions}
        counts = {name: len(crystals) for name, crystals in given.items() if crystals is not None}
        if len(counts) == 1:
            raise DataError(f"targets and predictions go together, got {next(iter(counts))} only: give both")
        if counts and set(counts.values()) != {len(self.generated.crystals)}:
            raise DataError(
                f"predictions: expected one for each of {counts['targets']} targets, in the order of the "
                f"{len(self.generated.crystals)} generated crystals, got {counts['predictions']}"
            )

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

    def columns(self) -> dict[str, Sequence[object]]:
        """Return the values per crystal by the column's name; of several parts that have one, the first part's."""
        result: dict[str, Sequence[object]] = {}
        for section in self.sections:
            for name, values in section.per_crystal.items():
                result.setdefault(name, values)
        return result

    def distributions(self, name: str) -> Mapping[str, Any]:
        """Return what is to be drawn of a part; nothing where it was not worked out."""
        return next((section.distributions for section in self.sections if section.name == name), {})

    def inputs(self) -> dict[str, CrystalSet | None]:
        """Return what was judged and compared, by its role."""
        return {"generated": self.generated, "reference": self.reference, "train": self.train}

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain data for JSON, numbers that are not finite as None."""
        metrics = self.metrics()
        content: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "name": self.generated.name,
            "command": self.command,
            "seed": self.seed,
            "machine": self.machine,
            "versions": self.versions,
            "seconds": self.seconds,
            "inputs": {role: None if entry is None else entry.to_dict() for role, entry in self.inputs().items()},
            **self.extra,
            "metrics": {name: metric.value for name, metric in metrics.items()},
            "definitions": {name: metric.definition for name, metric in metrics.items()},
            "sections": [_section(section) for section in self.sections],
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


def _section(section: Section) -> dict[str, object]:
    content: dict[str, object] = {
        "name": section.name,
        "title": section.title,
        "skipped": section.skipped,
        "settings": section.settings,
        "metrics": {name: asdict(metric) for name, metric in section.metrics.items()},
        "distributions": section.distributions,
    }
    if section.references:
        content["references"] = {
            reference: {name: asdict(metric) for name, metric in metrics.items()}
            for reference, metrics in section.references.items()
        }
    return content


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
