"""Candidates for given targets: which crystal is for which target, and which of its candidates it is."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from crystalvae.errors import ConfigError, DataError
from crystalvae.evaluation.inputs import CrystalSet

log = logging.getLogger(__name__)

NUMBERED = re.compile(r"(.+?)[-_.](\d+)")
"""How a candidate's id may be made of its target's: mp-1234_0, mp-1234_1, …"""


@dataclass(frozen=True, eq=False)
class Candidates:
    """M predictions for T targets.

    `owner` is the target of each, `rank` its place among the target's candidates, from 0. A place may be empty: a
    crystal that could not be read is no match.
    """

    owner: Int[np.ndarray, "M"]
    rank: Int[np.ndarray, "M"]
    targets: int

    @classmethod
    def one_each(cls, targets: int) -> Candidates:
        """Return one prediction for each target, in the targets' order."""
        return cls(owner=np.arange(targets), rank=np.zeros(targets, dtype=np.int64), targets=targets)

    @property
    def most(self) -> int:
        """The largest number of candidates that a target has; 1 where there are none."""
        return int(self.rank.max()) + 1 if len(self.rank) else 1


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
            "%s: left out %d of %d crystals, whose ids name no target or which are beyond num_candidates",
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
