"""Single prototypes of the AFLOW library, found by any of their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crystalvae.errors import ConfigError

if TYPE_CHECKING:
    from pymatgen.core import Structure


def find_prototype(name: str) -> Structure:
    """Return the crystal that a prototype is named after, in its primitive cell.

    `name` is its AFLOW label (`AB_cF8_225_a_b`), Strukturbericht symbol (`B1`), mineral (`Halite, Rock Salt`) or
    formula (`NaCl`). Raises `ConfigError` where there is none of this name, or several.
    """
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    wanted = name.strip().casefold()
    found = [entry for entry in AFLOW_PROTOTYPE_LIBRARY if wanted in _names(entry)]
    if not found:
        raise ConfigError(
            f"prototype: pymatgen's AFLOW library has none named {name!r}; expected an AFLOW label (A_cF4_225_a), a "
            "Strukturbericht symbol (A1), a mineral (Copper) or a formula (Cu)"
        )
    if len(found) > 1:
        labels = ", ".join(sorted(entry["tags"]["aflow"] for entry in found))
        raise ConfigError(f"prototype: {len(found)} are named {name!r}; say which: {labels}")
    return found[0]["snl"].structure.get_primitive_structure()


def _names(entry: dict[str, Any]) -> set[str]:
    names = [entry["tags"][kind] for kind in ("aflow", "strukturbericht", "mineral")]
    names.append(entry["snl"].structure.composition.reduced_formula)
    return {name.casefold() for name in names if name and name != "None"}
