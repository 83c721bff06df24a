"""Symmetry of generated crystals: space groups and crystal systems against those of a reference."""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.symmetry import CRYSTAL_SYSTEMS, crystal_system
from crystalvae.data.writers import SAFE_ID, default_ids
from crystalvae.errors import ConfigError
from crystalvae.evaluation.metric import Metric, Section
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.symmetry.space_groups import (
    REFINED_TOLERANCE,
    Library,
    check_library,
    library_version,
    space_group_symbol,
    space_groups,
    symmetrized_cif,
    tolerance_name,
)
from crystalvae.evaluation.validity.structure import describe
from crystalvae.output_dir import MANIFEST_NAME, WRITER, staged_output

log = logging.getLogger(__name__)

TOLERANCES = (0.1, 0.01)
"""Å; 0.1 is what codes for generated crystals use mostly, 0.01 is what pymatgen's `SpacegroupAnalyzer` begins with."""
SUMMARY_NAME = "symmetry.csv"
_VERSION = 1
_SOURCE = "International Tables for Crystallography A; search by {library}"


def symmetry_section(
    *,
    generated: CrystalBatch,
    reference: CrystalBatch,
    runner: Runner,
    tolerances: Sequence[float] = TOLERANCES,
    library: Library = "moyopy",
    unreadable: int = 0,
) -> Section:
    """Compare the space groups and crystal systems of generated crystals with the reference's, at each tolerance (Å).

    Only structurally valid crystals are searched (`validity.structure.describe`); the others, and those in which
    the library finds no group, count as having none: they are neither P1 nor part of the distributions. So do the
    `unreadable` crystals that were generated besides.

    Per crystal, for a tolerance of 0.1: `space_group_0.1` (its number, None where there is none).
    """
    found = find_space_groups(generated, runner=runner, tolerances=tolerances, library=library)
    expected = find_space_groups(
        reference, runner=runner, tolerances=tolerances, library=library, description="space groups of the reference"
    )
    metrics: dict[str, Metric] = {}
    distributions: dict[str, object] = {}
    columns: dict[str, Sequence[object]] = {}
    for position, tolerance in enumerate(tolerances):
        name = tolerance_name(tolerance)
        ours, theirs = found[:, position], expected[:, position]
        metrics.update(
            _metrics(np.concatenate((ours, np.zeros(unreadable, dtype=np.int64))), theirs, tolerance, library)
        )
        columns[f"space_group_{name}"] = [int(number) or None for number in ours]
        distributions[f"space_group_{name}"] = {
            "generated": _counted(ours[ours > 0].tolist()),
            "reference": _counted(theirs[theirs > 0].tolist()),
        }
        distributions[f"crystal_system_{name}"] = {
            "generated": {system: _systems(ours).get(system, 0) for system in CRYSTAL_SYSTEMS},
            "reference": {system: _systems(theirs).get(system, 0) for system in CRYSTAL_SYSTEMS},
        }
    numbers = sorted({int(number) for number in np.concatenate((found, expected)).ravel()} - {0})
    distributions["space_group_symbols"] = {str(number): space_group_symbol(number) for number in numbers}
    return Section(
        name="symmetry",
        title="Symmetry",
        metrics=metrics,
        settings={"tolerances": list(tolerances), "library": library_version(library)},
        per_crystal=columns,
        distributions=distributions,
    )


def find_space_groups(
    crystals: CrystalBatch,
    *,
    runner: Runner,
    tolerances: Sequence[float] = TOLERANCES,
    library: Library = "moyopy",
    description: str = "space groups",
) -> np.ndarray:
    """Return space group numbers (crystals, tolerances), 0 for crystals that are not valid or in which none is found.

    Raises `ConfigError` for an unknown or missing library and for impossible tolerances.
    """
    check_library(library, tolerances)
    valid = describe(crystals)["valid"].to_numpy(dtype=bool)
    arrays = crystals.to_arrays()
    lengths = tuple(float(value) for value in tolerances)
    found = runner.map(
        partial(space_groups, library=library, tolerances=lengths),
        [arrays[i] for i in np.flatnonzero(valid)],
        description=description,
        namespace=f"space_groups/{_VERSION}/{library_version(library)}/{lengths}",
        chunk=64,
    )
    result = np.zeros((len(crystals), len(lengths)), dtype=np.int64)
    if found:
        result[valid] = np.array(found, dtype=np.int64)
    return result


def write_symmetrized(
    crystals: CrystalBatch,
    output_dir: Path | str,
    *,
    runner: Runner,
    tolerance: float = TOLERANCES[0],
    ids: Sequence[str] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write each crystal with its symmetry made exact, as `<id>.cif` in a folder of their own; returns the CIFs.

    The cell is the conventional one of the space group found at `tolerance` (Å), so atoms may be more than before. A
    table, `symmetry.csv`, has id, space group, symbol and, where a crystal has no file, the reason.

    Raises `OutputError` as `staged_output` does, `ConfigError` for ids that are no file names and for the tolerance.
    """
    check_library("moyopy", [tolerance])
    names = default_ids(len(crystals)) if ids is None else list(ids)
    _check_ids(names, len(crystals))
    facts = describe(crystals)
    valid = facts["valid"].to_numpy(dtype=bool)
    arrays = crystals.to_arrays()
    texts = runner.map(
        partial(symmetrized_cif, tolerance=float(tolerance)),
        [arrays[i] for i in np.flatnonzero(valid)],
        description="symmetrised CIFs",
        namespace=f"symmetrized_cif/{_VERSION}/{library_version('moyopy')}/{library_version('spglib')}/"
        f"{float(tolerance)}/{REFINED_TOLERANCE}",
    )
    results: list[Mapping[str, object]] = [{"cif": "", "number": 0, "failure": reason} for reason in facts["reason"]]
    for index, result in zip(np.flatnonzero(valid), texts, strict=True):
        results[index] = result
    with staged_output(output_dir, overwrite=overwrite) as folder:
        files = []
        with (folder / SUMMARY_NAME).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["id", "space_group", "symbol", "failure"])
            for name, result in zip(names, results, strict=True):
                number = int(str(result["number"]))
                table.writerow([name, number or "", space_group_symbol(number) if number else "", result["failure"]])
                if result["cif"]:
                    (folder / f"{name}.cif").write_text(str(result["cif"]), encoding="utf-8")
                    files.append(f"{name}.cif")
        manifest = {
            "written_by": WRITER,
            "complete": True,
            "crystals": len(crystals),
            "info": {"symmetrised": True, "tolerance": tolerance, "library": library_version("moyopy")},
            "files": [*files, SUMMARY_NAME, MANIFEST_NAME],
        }
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    missing = len(crystals) - len(files)
    if missing:
        log.warning("%d of %d crystals have no symmetrised CIF; %s says why", missing, len(crystals), SUMMARY_NAME)
    return [Path(output_dir) / name for name in files]


def _metrics(ours: np.ndarray, theirs: np.ndarray, tolerance: float, library: Library) -> dict[str, Metric]:
    name, source = tolerance_name(tolerance), _SOURCE.format(library=library_version(library))
    jensen_shannon = "Lin 1991, doi:10.1109/18.61115"
    with_group, reference_with_group = ours[ours > 0], theirs[theirs > 0]
    divergence = (
        "Jensen–Shannon divergence in bits, 0 for equal and 1 for disjoint distributions, of the {} of generated "
    )
    divergence += f"and reference crystals that have a space group at {name} Å"
    at = f"at a tolerance of {name} Å"
    return {
        f"p1_{name}": Metric(
            _share(with_group == 1),
            f"share in P1 among the generated crystals that have a space group {at}",
            source, "share", "neither", len(with_group),
        ),
        f"p1_reference_{name}": Metric(
            _share(reference_with_group == 1),
            f"share in P1 among the reference crystals that have a space group {at}",
            source, "share", "neither", len(reference_with_group),
        ),
        f"no_space_group_{name}": Metric(
            _share(ours == 0),
            f"share of all generated crystals without a space group {at}: unreadable, structurally invalid, or none "
            "was found",
            source, "share", "lower", len(ours),
        ),
        f"distinct_space_groups_{name}": Metric(
            len(np.unique(with_group)),
            f"number of different space groups among the generated crystals {at}",
            source, "", "neither", len(with_group),
        ),
        f"space_group_js_{name}": Metric(
            _jensen_shannon(_counted(with_group.tolist()), _counted(reference_with_group.tolist())),
            divergence.format("space groups"), jensen_shannon, "", "lower", len(with_group),
        ),
        f"crystal_system_js_{name}": Metric(
            _jensen_shannon(_systems(ours), _systems(theirs)),
            divergence.format("crystal systems"), jensen_shannon, "", "lower", len(with_group),
        ),
    }  # fmt: skip


def _share(mask: np.ndarray) -> float | None:
    return float(mask.mean()) if len(mask) else None


def _counted(values: Sequence[object]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items(), key=lambda entry: entry[0])}  # pyright: ignore[reportCallIssue, reportArgumentType]


def _systems(numbers: np.ndarray) -> dict[str, int]:
    return dict(Counter(crystal_system(int(number)) for number in numbers[numbers > 0]))


def _jensen_shannon(first: Mapping[str, int], second: Mapping[str, int]) -> float | None:
    from scipy.stats import entropy

    if not first or not second:
        return None
    names = sorted(set(first) | set(second))
    p, q = (np.array([counts.get(name, 0) for name in names], dtype=float) for counts in (first, second))
    p, q = p / p.sum(), q / q.sum()
    mean = (p + q) / 2
    return float((entropy(p, mean, base=2) + entropy(q, mean, base=2)) / 2)


def _check_ids(names: Sequence[str], expected: int) -> None:
    if len(names) != expected or len(set(names)) < expected:
        raise ConfigError(f"ids: got {len(set(names))} different ids; expected {expected}, one a crystal")
    bad = next((name for name in names if not SAFE_ID.fullmatch(name)), None)
    if bad is not None:
        raise ConfigError(f"ids: {bad!r} is no file name; expected letters, digits and . _ + -")
