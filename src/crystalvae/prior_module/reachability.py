"""Which Wyckoff sites can come next, so that multiplicities can still add up: exact, for any space group.

Sets of sites and of sums are whole numbers used as bit sets. A site without free coordinates holds one orbit at most;
any other as many as one likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from crystalvae.data.symmetric.tables import space_group_tables

Needs = tuple[int, ...]


@cache
def multiplicities(group: int) -> tuple[int, ...]:
    """Return the number of atoms in an orbit on each site of a space group."""
    tables = space_group_tables()
    first, last = tables.first_site[group - 1 : group + 1].tolist()
    return tuple(tables.multiplicity[first:last].tolist())


@cache
def fixed_sites(group: int) -> int:
    """Return the set of sites of a space group that have no free coordinate."""
    tables = space_group_tables()
    first, last = tables.first_site[group - 1 : group + 1].tolist()
    return sum(1 << site for site, freedom in enumerate(tables.freedom[first:last].tolist()) if freedom == 0)


def occupied(group: int, used: int, site: int) -> int:
    """Return the set `used` of sites that are full, after an orbit was put on `site`."""
    return used | (1 << site) & fixed_sites(group)


@cache
def sums(group: int, used: int, lowest: int, at_least: int, largest: int) -> int:
    """Return the set of numbers of atoms up to `largest` that at least so many orbits can have together.

    Orbits are on sites from `lowest` on that are not in `used`.
    """
    everything = (2 << largest) - 1
    counted = [1] + [0] * at_least  # sums of exactly 0, 1, … orbits, the last of all that are at least so many
    for site, size in enumerate(multiplicities(group)):
        if site < lowest or used >> site & 1:
            continue
        repeats = 1 if fixed_sites(group) >> site & 1 else largest // size
        for _ in range(repeats):
            before = list(counted)
            if at_least == 0:
                counted[0] |= counted[0] << size & everything
            else:
                for number in range(at_least):
                    counted[number + 1] |= before[number] << size & everything
                counted[at_least] |= before[at_least] << size & everything
            if counted == before:
                break
    return counted[at_least]


def _limit(number: int) -> int:
    """Return a limit for sums that serves many numbers, so that few sets are worked out."""
    return max(32, 1 << number.bit_length())


@cache
def next_sites(group: int, used: int, lowest: int, left: int, later: int, more: bool) -> int:
    """Return the set of sites for the next orbit of an element, from `lowest` on, `left` atoms being left over.

    `later` elements must come after this one, and where `more` others may.
    """
    allowed = 0
    for site, size in enumerate(multiplicities(group)):
        if site < lowest or used >> site & 1 or size > left:
            continue
        after = occupied(group, used, site)
        start = 0 if more or later else site
        if sums(group, after, start, later, _limit(left)) >> (left - size) & 1:
            allowed |= 1 << site
    return allowed


@cache
def next_sites_of_formula(group: int, used: int, lowest: int, needs: Needs) -> int:
    """Return the set of sites for the next orbit of an element that needs `needs[0]` more atoms, from `lowest` on.

    The other `needs` are those of the elements that come later, in any order.
    """
    allowed = 0
    for site, size in enumerate(multiplicities(group)):
        if site < lowest or used >> site & 1 or size > needs[0]:
            continue
        if fits(group, occupied(group, used, site), site, (needs[0] - size, *needs[1:])):
            allowed |= 1 << site
    return allowed


@cache
def fits(group: int, used: int, lowest: int, needs: Needs) -> bool:
    """Return whether elements can have exactly `needs` atoms each, the first one on sites from `lowest` on."""
    later = tuple(sorted(needs[1:]))
    if needs[0] == 0:
        return not later or fits(group, used, 0, later)
    if not later:
        return bool(sums(group, used, lowest, 0, _limit(needs[0])) >> needs[0] & 1)
    return any(fits(group, used | taken, 0, later) for taken in _ways(group, used, lowest, needs[0]))


@cache
def _ways(group: int, used: int, lowest: int, need: int) -> frozenset[int]:
    """Return which sites without freedom one element can take for itself, one choice of each number of each size.

    Sites of one size are as good as each other for the elements that follow, which have all of them to choose from.
    """
    everything = fixed_sites(group)
    free = sums(group, used | everything, lowest, 0, _limit(need))
    sizes: dict[int, list[int]] = {}
    for site, size in enumerate(multiplicities(group)):
        if site >= lowest and everything >> site & 1 and not used >> site & 1:
            sizes.setdefault(size, []).append(site)
    choices = [(0, 0)]
    for size, sites in sizes.items():
        grown = []
        for taken, total in choices:
            chosen = taken
            grown.append((taken, total))
            for count, site in enumerate(sites, start=1):
                chosen |= 1 << site
                if total + count * size <= need:
                    grown.append((chosen, total + count * size))
        choices = grown
    return frozenset(taken for taken, total in choices if free >> (need - total) & 1)


def sites_left(sites: tuple[int, ...], taken: Sequence[int]) -> tuple[int, ...]:
    """Return sites, each as often as it is asked for, without those that are taken; in order."""
    left = list(sites)
    for site in taken:
        if site in left:
            left.remove(site)
    return tuple(left)


def sites_fit(left: tuple[int, ...], lowest: int, later: int, *, more: bool) -> bool:
    """Return whether the sites left, in order, can be shared out, the element at hand taking some from `lowest` on.

    `later` elements must follow, with a site each; only where there is `more` can there be any.
    """
    if len(left) < later:
        return False
    return more or not left or left[0] >= lowest


@cache
def sites_fit_formula(group: int, left: tuple[int, ...], lowest: int, needs: Needs) -> bool:
    """Return whether the sites left can hold exactly `needs` atoms of each element, the first from `lowest` on."""
    if not needs:
        return not left
    if needs[0] == 0:
        return sites_fit_formula(group, left, 0, needs[1:])
    sizes = multiplicities(group)
    return any(
        sites_fit_formula(group, sites_left(left, [site]), site, (needs[0] - sizes[site], *needs[1:]))
        for site in set(left)
        if site >= lowest and sizes[site] <= needs[0]
    )
