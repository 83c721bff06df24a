"""Crystals with their symmetry made exact, as CIFs."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.symmetry import space_group_symbol
from crystalvae.data.writers import SAFE_ID, default_ids
from crystalvae.errors import ConfigError
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.symmetry.space_groups import (
    REFINED_TOLERANCE,
    check_library,
    library_version,
    symmetrized_cif,
)
from crystalvae.evaluation.validity.structure import map_valid
from crystalvae.output_dir import MANIFEST_NAME, WRITER, staged_output

log = logging.getLogger(__name__)

TOLERANCE = 0.1
"""Å, within which symmetry is looked for unless told otherwise."""
SUMMARY_NAME = "symmetry.csv"
_VERSION = 1


def write_symmetrized(
    crystals: CrystalBatch,
    output_dir: Path | str,
    *,
    runner: Runner,
    tolerance: float = TOLERANCE,
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
    results = map_valid(
        partial(symmetrized_cif, tolerance=float(tolerance)),
        crystals,
        runner=runner,
        otherwise=lambda reason: {"cif": "", "number": 0, "failure": reason},
        description="symmetrised CIFs",
        namespace=f"symmetrized_cif/{_VERSION}/{library_version('moyopy')}/{library_version('spglib')}/"
        f"{float(tolerance)}/{REFINED_TOLERANCE}",
    )
    with staged_output(output_dir, overwrite=overwrite) as folder:
        files = []
        with (folder / SUMMARY_NAME).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["id", "space_group", "symbol", "failure"])
            for name, result in zip(names, results, strict=True):
                number = result["number"]
                table.writerow([name, number or "", space_group_symbol(number) if number else "", result["failure"]])
                if result["cif"]:
                    (folder / f"{name}.cif").write_text(result["cif"], encoding="utf-8")
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


def _check_ids(names: Sequence[str], expected: int) -> None:
    if len(names) != expected or len(set(names)) < expected:
        raise ConfigError(f"ids: got {len(set(names))} different ids; expected {expected}, one per crystal")
    bad = next((name for name in names if not SAFE_ID.fullmatch(name)), None)
    if bad is not None:
        raise ConfigError(f"ids: {bad!r} is not a file name; expected letters, digits and . _ + -")
