"""All 230 space groups as flat tensors, so that batches of crystals with different groups are handled at once."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crystalvae.data.sources import cache_root
from crystalvae.data.symmetric.space_groups import NUM_SPACE_GROUPS, space_group

log = logging.getLogger(__name__)

MAX_SITES = 27
"""Wyckoff positions that a space group has at most (Pmmm)."""
MAX_OPERATIONS = 48
_VERSION = 1


@dataclass(frozen=True, eq=False)
class SpaceGroupTables:
    """Wyckoff sites of all groups in one list, S = 1731 long: group by group, letter by letter.

    `first_site` (231,) is where each group's sites begin; entry g - 1 is that of group g. `multiplicity`, `freedom` and
    `symmetry` (a number for each symbol in `symmetries`) are per site. `mean_rotation`, `mean_translation`: see
    `WyckoffSite`. Atom k of an orbit on site s comes from its first one by x → R x + t with row `first_image[s] + k` of
    `image_rotation` and `image_translation`. `rotation` are all rotations of a group, padded with its first ones to
    48 (their average is the group's, as all orders divide 48).
    """

    first_site: Int[Tensor, "231"]
    multiplicity: Int[Tensor, "S"]
    freedom: Int[Tensor, "S"]
    symmetry: Int[Tensor, "S"]
    mean_rotation: Float[Tensor, "S 3 3"]
    mean_translation: Float[Tensor, "S 3"]
    first_image: Int[Tensor, "S"]
    image_rotation: Float[Tensor, "I 3 3"]
    image_translation: Float[Tensor, "I 3"]
    rotation: Float[Tensor, "230 48 3 3"]
    symmetries: tuple[str, ...]

    def to(self, device: torch.device | str) -> SpaceGroupTables:
        """Return the tables on another device."""
        moved = {item.name: getattr(self, item.name).to(device) for item in fields(self) if item.name != "symmetries"}
        return SpaceGroupTables(**moved, symmetries=self.symmetries)

    @property
    def group(self) -> Int[Tensor, "S"]:
        """Number of the space group of each site, from 1."""
        counts = self.first_site.diff()
        return torch.repeat_interleave(torch.arange(1, NUM_SPACE_GROUPS + 1, device=counts.device), counts)


@cache
def space_group_tables(device: torch.device | str = "cpu") -> SpaceGroupTables:
    """Return the tables; on first use they are worked out in half a minute and kept in the user's cache folder."""
    if torch.device(device).type != "cpu":
        return space_group_tables().to(device)
    with torch.device("cpu"):  # kept, and maybe asked for first where models are built without memory
        return _tables()


def _tables() -> SpaceGroupTables:
    import moyopy

    path = cache_root(None) / f"space-groups-{moyopy.__version__}-{_VERSION}.safetensors"
    if path.is_file():
        try:
            return _load(path)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            log.warning("%s: damaged (%s); working it out again", path, error)
    tables = _build()
    try:
        _save(tables, path)
    except OSError as error:
        log.warning("could not keep the space groups at %s (%s); they will be worked out again", path, error)
    return tables


def _load(path: Path) -> SpaceGroupTables:
    with safe_open(path, framework="pt") as file:
        symmetries = tuple(json.loads(file.metadata()["symmetries"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return SpaceGroupTables(**tensors, symmetries=symmetries)


def _save(tables: SpaceGroupTables, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {item.name: getattr(tables, item.name) for item in fields(tables) if item.name != "symmetries"}
    try:
        save_file(tensors, partial, metadata={"symmetries": json.dumps(tables.symmetries)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _build() -> SpaceGroupTables:
    groups = [space_group(number) for number in range(1, NUM_SPACE_GROUPS + 1)]
    sites = [site for group in groups for site in group.sites]
    symmetries = tuple(sorted({site.symmetry for site in sites}))
    counts = torch.tensor([len(group.sites) for group in groups])
    sizes = torch.tensor([site.multiplicity for site in sites])
    images = [
        (group.rotations[site.operations], group.translations[site.operations])
        for group in groups
        for site in group.sites
    ]
    rotations = [np.tile(g.rotations, (MAX_OPERATIONS // len(g.rotations), 1, 1)) for g in groups]
    return SpaceGroupTables(
        first_site=torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0))),
        multiplicity=sizes,
        freedom=torch.tensor([site.freedom for site in sites]),
        symmetry=torch.tensor([symmetries.index(site.symmetry) for site in sites]),
        mean_rotation=torch.from_numpy(np.stack([site.mean_rotation for site in sites])),
        mean_translation=torch.from_numpy(np.stack([site.mean_translation for site in sites])),
        first_image=sizes.cumsum(0) - sizes,
        image_rotation=torch.from_numpy(np.concatenate([rotation for rotation, _ in images]).astype(float)),
        image_translation=torch.from_numpy(np.concatenate([translation for _, translation in images])),
        rotation=torch.from_numpy(np.stack(rotations).astype(float)),
        symmetries=symmetries,
    )
