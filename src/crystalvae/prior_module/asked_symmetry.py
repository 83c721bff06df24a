"""What users ask of the symmetry of crystals, as numbers: space groups, crystal systems, Wyckoff sites."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from crystalvae.data.symmetric.space_groups import NUM_SPACE_GROUPS
from crystalvae.data.symmetry import CRYSTAL_SYSTEMS, crystal_system_indices
from crystalvae.errors import ConfigError
from crystalvae.prior_module.reachability import fixed_sites, multiplicities

_LETTERS = "abcdefghijklmnopqrstuvwxyzA"
_MOST = 64
"""Orbits of one crystal that may be asked for."""


def asked_space_groups(*, space_group: object = None, crystal_system: object = None) -> frozenset[int]:
    """Return the numbers of the space groups that a user asks for, by number and by system; empty for any.

    Raises `ConfigError` for what is no space group and no crystal system, and where the two exclude each other.
    """
    asked = frozenset(range(1, NUM_SPACE_GROUPS + 1))
    systems = crystal_system_indices(torch.arange(1, NUM_SPACE_GROUPS + 1)).tolist()
    if crystal_system is not None:
        if str(crystal_system).lower() not in CRYSTAL_SYSTEMS:
            raise ConfigError(f"crystal_system: got {crystal_system!r}; expected one of {', '.join(CRYSTAL_SYSTEMS)}")
        system = CRYSTAL_SYSTEMS.index(str(crystal_system).lower())
        asked = frozenset(group for group in asked if systems[group - 1] == system)
    if space_group is not None:
        if not str(space_group).isdigit() or not 1 <= int(str(space_group)) <= NUM_SPACE_GROUPS:
            raise ConfigError(f"space_group: got {space_group!r}; expected a number from 1 to {NUM_SPACE_GROUPS}")
        if int(str(space_group)) not in asked:
            raise ConfigError(f"space_group={space_group} is not {crystal_system}")
        asked = frozenset({int(str(space_group))})
    return frozenset() if len(asked) == NUM_SPACE_GROUPS else asked


def asked_sites(space_group: object, wyckoff: object) -> tuple[int, ...]:
    """Return the numbers of the Wyckoff sites that a user asks for, in order; () for any.

    `wyckoff` has a letter for each orbit: "a b c", "abcc" or a list. Raises `ConfigError` for sites without a
    `space_group`, that it does not have, or that hold one orbit and are asked for twice.
    """
    if wyckoff is None:
        return ()
    asked = wyckoff.split() if isinstance(wyckoff, str) else wyckoff
    if not isinstance(asked, Sequence) or not all(isinstance(part, str) for part in asked):
        raise ConfigError(f"wyckoff: got {wyckoff!r}; expected letters, such as 'a b c' or [a, b, c]")
    if space_group is None:
        raise ConfigError("wyckoff: letters are those of a space group; say which, space_group=225")
    group = int(str(space_group))
    found = re.findall(".", "".join(asked).replace(",", ""))
    there = _LETTERS[: len(multiplicities(group))]
    unknown = sorted(set(found) - set(there))
    if unknown or not found:
        raise ConfigError(
            f"wyckoff: got {' '.join(unknown) or 'no letter'}; space group {group} has {there[0]} to {there[-1]}"
        )
    if len(found) > _MOST:
        raise ConfigError(f"wyckoff: got {len(found)} orbits; expected at most {_MOST}")
    sites = tuple(sorted(there.index(letter) for letter in found))
    twice = {site for site in sites if sites.count(site) > 1 and fixed_sites(group) >> site & 1}
    if twice:
        raise ConfigError(
            f"wyckoff: {letters(tuple(twice))} of space group {group} is a single place and holds one orbit only"
        )
    return sites


def letters(sites: Sequence[int]) -> str:
    """Return the letters of sites by their numbers."""
    return " ".join(_LETTERS[site] for site in sorted(sites))
