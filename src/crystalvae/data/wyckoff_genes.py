"""The discrete part of a crystal, its gene: the space group, and the Wyckoff letters of each element's sites.

Free of torch. The choice of the origin and of the axes that a space group leaves open permutes its Wyckoff letters, so
one crystal has several genes that mean the same; all of them are kept, and compared by the smallest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crystalvae.data.symmetry import moyo_dataset

if TYPE_CHECKING:
    from moyopy import MoyoDataset

log = logging.getLogger(__name__)

SYMPREC = 0.1
"""Tolerance in Å of the symmetry search, the Materials Project's own."""
_VERSION = 1

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers (n,), fractional coordinates (n, 3) and lattice rows in Å (3, 3) of one crystal."""
LetterMaps = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Gene:
    """Space group (0 where none is found), and Wyckoff letters per element, in as many ways as mean the same crystal.

    `sites[i][j]` are the letters of the j-th element's orbits in alphabetical order, elements by atomic number, in the
    i-th way of writing them.
    """

    space_group: int
    sites: tuple[tuple[str, ...], ...]

    def of_elements(self, order: Sequence[int]) -> tuple[int, tuple[str, ...]]:
        """Return the gene with elements in another order: the j-th is then what was the `order[j]`-th.

        Equal for crystals of one prototype whose elements take the same places, whatever their origins.
        """
        return self.space_group, min(tuple(way[place] for place in order) for way in self.sites)


class GeneFinder:
    """Finds the genes of crystals, and remembers how each space group permutes its Wyckoff letters."""

    def __init__(self, *, symprec: float = SYMPREC) -> None:
        self.symprec = symprec
        self._maps: dict[tuple[int, str], LetterMaps] = {}

    def __call__(self, crystal: Arrays) -> Gene:
        """Return the gene of a crystal; one with space group 0 and no letters where no symmetry is found."""
        numbers = np.asarray(crystal[0])
        elements = np.unique(numbers)
        try:
            found = moyo_dataset(*crystal, self.symprec)
        except ValueError:
            return Gene(0, (("",) * len(elements),))
        orbits = np.asarray(found.orbits)
        first = np.unique(orbits)  # one atom of each orbit
        letters = [[found.wyckoffs[atom] for atom in first[numbers[first] == element].tolist()] for element in elements]
        used = "".join(sorted({letter for entry in letters for letter in entry}))
        ways = {
            tuple("".join(sorted(names[letter] for letter in entry)) for entry in letters)
            for names in self._letter_maps(found, used)
        }
        return Gene(int(found.number), tuple(sorted(ways)))

    def _letter_maps(self, found: MoyoDataset, used: str) -> LetterMaps:
        """Return what the letters in use become under each operation of the group's Euclidean normaliser."""
        key = (int(found.hall_number), used)
        if key not in self._maps:
            try:
                normaliser = found.normalizer_wyckoff_positions()
            except ValueError:  # moyo cannot tell for a crystal that is too far from its symmetry
                return ({letter: letter for letter in used},)
            given = [place.letter for place in normaliser.wyckoffs]
            images = {
                tuple(sorted(zip(given, (place.letter for place in sequence), strict=True)))
                for _, sequence in normaliser.coset_representatives
            }
            self._maps[key] = tuple(dict(image) for image in sorted(images))
        return self._maps[key]


class StoredGenes:
    """The genes of a set of crystals, found when first asked for and kept in a file of the cache.

    The file's name holds the crystals' content, so genes of other crystals are never taken for these. `path` None keeps
    them in memory alone.
    """

    def __init__(self, crystals: Sequence[Arrays], *, path: Path | None = None, symprec: float = SYMPREC) -> None:
        self._crystals, self._find = crystals, GeneFinder(symprec=symprec)
        self._genes: dict[int, Gene] = {}
        self._stored = 0
        self.path = None
        if path is not None:
            self.path = path.with_name(f"{path.name}-{_content_key(crystals, symprec)}.json")
            self._load(self.path)

    def __getitem__(self, index: int) -> Gene:
        if index not in self._genes:
            self._genes[index] = self._find(self._crystals[index])
        return self._genes[index]

    def save(self) -> None:
        """Write what was found since the last time: all of the file or nothing, and a warning where that fails."""
        if self.path is None or len(self._genes) == self._stored:
            return
        content = {str(index): [gene.space_group, gene.sites] for index, gene in sorted(self._genes.items())}
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(content), encoding="utf-8")
            partial.replace(self.path)
            self._stored = len(self._genes)
        except OSError as error:
            log.warning("could not keep the genes at %s (%s)", self.path, error)
        finally:
            partial.unlink(missing_ok=True)

    def _load(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self._genes = {
                int(index): Gene(int(number), tuple(tuple(way) for way in sites))
                for index, (number, sites) in content.items()
            }
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("the genes kept at %s cannot be read and are found anew (%s)", path, error)
        self._stored = len(self._genes)


def _content_key(crystals: Sequence[Arrays], symprec: float) -> str:
    digest = hashlib.sha256(f"{_VERSION} {symprec} {version('moyopy')}".encode())
    for crystal in crystals:
        for array in crystal:
            digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    return digest.hexdigest()[:16]
