"""Crystal structure prediction: do candidates for given compositions find the structures that are known?"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.inputs import CrystalSet
from crystalvae.evaluation.matching.match_rate import (
    Candidates,
    Gates,
    best_per_target,
    failure_metrics,
    match_metrics,
    pair_columns,
)
from crystalvae.evaluation.matching.pairs import STRICT_TOLERANCES, TIME_LIMIT_S, TOLERANCES, match_pairs
from crystalvae.evaluation.metric import Metric, Section
from crystalvae.evaluation.parallel.runner import Runner

log = logging.getLogger(__name__)

NUMBERED = re.compile(r"(.+?)[-_.](\d+)")
"""How a candidate's id may be made of its target's: mp-1234_0, mp-1234_1, …"""
HERE = "this package"


def csp_section(
    *,
    targets: CrystalBatch,
    generated: CrystalBatch,
    candidates: Candidates,
    runner: Runner,
    ks: Sequence[int] | None = None,
    unreadable: int = 0,
    target_ids: Sequence[str] | None = None,
    timeout_s: float | None = TIME_LIMIT_S,
) -> Section:
    """Match candidates with their targets, and return match rates and RMS displacements @k for each of `ks`.

    `candidates` says of each generated crystal which target it is for and which of its candidates it is; see
    `assign`. `ks` is by default 1 and the largest number of candidates. A target
    without candidates counts as not matched.

    Raises `ConfigError` for impossible `ks`, `DataError` where there are no targets.
    """
    if len(targets) == 0:
        raise DataError("targets: expected at least one crystal to predict, got none")
    most = int(candidates.rank.max()) + 1 if len(candidates.rank) else 1
    ks = sorted({1, most} if ks is None else set(ks))
    if not ks or ks[0] < 1:
        raise ConfigError(f"ks={ks}: expected numbers of candidates of at least 1")
    known, offered = targets.to_arrays(), generated.to_arrays()
    pairs = match_pairs([known[i] for i in candidates.owner.tolist()], offered, runner=runner, timeout_s=timeout_s)
    gates = Gates.of(targets, generated)
    asked = np.unique(candidates.owner)
    metrics: dict[str, Metric] = {
        "targets": Metric(len(targets), "crystals to predict", HERE),
        "candidates": Metric(len(pairs) + unreadable, "crystals offered, unreadable ones included", HERE),
        "candidates_per_target": Metric(most, "most candidates that a target has", HERE),
        "targets_without_candidates": Metric(
            len(targets) - len(asked), "targets with no readable candidate; they count as not matched", HERE,
            better="lower",
        ),
    }  # fmt: skip
    for k in ks:
        metrics |= match_metrics(pairs, candidates, gates, k=k, ending=f"@{k}")
    metrics |= failure_metrics(pairs, unreadable)
    ids = [str(i) for i in range(len(targets))] if target_ids is None else list(target_ids)
    rms = np.array([np.nan if pair.rms is None else pair.rms for pair in pairs], dtype=float)
    best = best_per_target(rms, candidates)
    return Section(
        name="csp",
        title="Structure prediction",
        metrics=metrics,
        settings={
            "tolerances": dict(TOLERANCES),
            "strict_tolerances": dict(STRICT_TOLERANCES),
            "timeout_s": timeout_s,
            "versions": {"pymatgen-core": version("pymatgen-core")},
            **gates.settings(),
        },
        per_crystal={
            "target": [ids[i] for i in candidates.owner.tolist()],
            "rank": candidates.rank.tolist(),
            **pair_columns(pairs, gates),
        },
        distributions={"target_id": ids, "target_best_rms": [x if np.isfinite(x) else None for x in best.tolist()]},
    )


def assign(
    generated: CrystalSet, targets: CrystalSet, *, match_by: str = "id", num_candidates: int | None = None
) -> tuple[CrystalSet, Candidates]:
    """Return those generated crystals that are for a target, and for which; at most `num_candidates` for each.

    `match_by="id"`: by the target's own id, or with a number after it (mp-1234_0, mp-1234_1, …), in the order of these
    numbers, else as they come. `match_by="order"`: by place, the first `num_candidates` to the first target and so on.
    A crystal that could not be read keeps its place, and counts as no match.

    Raises `ConfigError` for another `match_by`, `DataError` where no crystal is for a target, or by order too many are.
    """
    unreadable = {entry.position: entry for entry in generated.unreadable}
    names = dict(zip(generated.positions, generated.ids, strict=True)) | {p: e.id for p, e in unreadable.items()}
    if match_by == "id":
        places = _places_by_id(names, targets.ids)
    elif match_by == "order":
        places = _places_by_order(len(names), len(targets.ids), num_candidates)
    else:
        raise ConfigError(f"match_by: got {match_by!r}; expected id or order")
    places = {p: place for p, place in places.items() if num_candidates is None or place[1] < num_candidates}
    if len(places) < len(names):
        log.warning(
            "%s: %d of %d crystals are for no target here, or beyond num_candidates, and left out",
            generated.name, len(names) - len(places), len(names),
        )  # fmt: skip
    rows = [row for row, position in enumerate(generated.positions) if position in places]
    positions = [generated.positions[row] for row in rows]
    table = np.array([places[position] for position in positions], dtype=np.int64).reshape(-1, 2)
    part = CrystalSet(
        generated.name,
        generated.crystals[rows],
        [generated.ids[row] for row in rows],
        positions,
        [entry for position, entry in unreadable.items() if position in places],
    )
    return part, Candidates(owner=table[:, 0], rank=table[:, 1], targets=len(targets.ids))


def _places_by_id(names: Mapping[int, str], target_ids: Sequence[str]) -> dict[int, tuple[int, int]]:
    """Return target and rank of each position whose name is a target's."""
    known = {name: index for index, name in enumerate(target_ids)}
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for position, name in sorted(names.items()):
        numbered = NUMBERED.fullmatch(name)
        if name in known:
            found[known[name]].append((-1, position))
        elif numbered and numbered[1] in known:
            found[known[numbered[1]]].append((int(numbered[2]), position))
    if not found:
        some = ", ".join(list(names.values())[:3])
        raise DataError(
            f"candidates: no id names a target; got {some}, …; expected {target_ids[0]} or {target_ids[0]}_0, … "
            "Give such ids, or match_by=order"
        )
    return {
        position: (owner, rank) for owner, places in found.items() for rank, (_, position) in enumerate(sorted(places))
    }


def _places_by_order(count: int, targets: int, num_candidates: int | None) -> dict[int, tuple[int, int]]:
    per_target = num_candidates or max(1, count // targets)
    if count != targets * per_target:
        raise DataError(
            f"candidates: got {count}, expected {targets} targets x {per_target} = {targets * per_target}. Set "
            "num_candidates to how many there are for each target, or match_by=id"
        )
    return {position: divmod(position, per_target) for position in range(count)}
