"""What a crystal can be asked to be: classes, numbers and elements per crystal, each of which may be unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.data.batch import MAX_ATOMIC_NUMBER, CrystalBatch
from crystalvae.data.composition import densities, element_fractions, parse_chemical_system, parse_composition
from crystalvae.data.symmetry import CRYSTAL_SYSTEMS, crystal_system_indices
from crystalvae.errors import ConfigError

CLASSES = {"crystal_system": CRYSTAL_SYSTEMS, "space_group": tuple(str(number) for number in range(1, 231))}
"""Conditions that are classes, read from the property that holds the space group."""
ELEMENTS = ("chemical_system", "composition")
"""Conditions with a number for each element: 1 where it is in the crystal, or its share of the atoms."""
COMPUTED = (*ELEMENTS, "density")
"""Conditions that are computed from the crystal itself (density in g/cm^3); all others are numbers of the data set."""
SPACE_GROUPS = ("space_group", "spacegroup_number")
"""Properties that hold it: as `canonical` found it, and as the data set says it."""

Values = Mapping[str, Float[Tensor, "B *E"]]
"""Condition name to one row per crystal: the class's position in `CLASSES`, the number, or one for each element 0..99.

NaN is unknown.
"""


def condition_values(crystals: CrystalBatch, names: Sequence[str], *, strict: bool = True) -> dict[str, Tensor]:
    """Return what crystals are, for each condition.

    Where the crystals do not come with a property it is unknown; with `strict`, `ConfigError` says what there is.
    """
    found = next((name for name in SPACE_GROUPS if name in crystals.properties), None)
    values = {}
    for name in names:
        if name in COMPUTED:
            values[name] = _computed(name, crystals)
            continue
        source = found if name in CLASSES else name
        if source is None or source not in crystals.properties:
            if strict:
                own = {*crystals.properties} - set(SPACE_GROUPS)
                known = sorted({*(CLASSES if found else ()), *COMPUTED, *own})
                raise ConfigError(f"conditions: the data have no {name!r}; expected some of {', '.join(known)}")
            values[name] = unknown(name, crystals.num_graphs).to(crystals.device)
            continue
        given = crystals.properties[source].float()
        if name in CLASSES:
            system = crystal_system_indices(given).float()
            number = system if name == "crystal_system" else given - 1
            given = number.masked_fill(system < 0, torch.nan)
        values[name] = given
    return values


def _computed(name: str, crystals: CrystalBatch) -> Tensor:
    if name == "density":
        return densities(crystals)
    fractions = element_fractions(crystals)
    if name == "composition":
        return fractions
    return torch.where(fractions.isnan(), fractions, (fractions > 0).to(fractions.dtype))


def unknown(name: str, count: int) -> Tensor:
    """Return the values of a condition that is unknown for all of `count` crystals."""
    return torch.full((count, MAX_ATOMIC_NUMBER + 1) if name in ELEMENTS else (count,), torch.nan)


def told(crystals: CrystalBatch, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the conditions of these names that crystals carry; unknown where they carry none."""
    carried, count = crystals.conditions, crystals.num_graphs
    return {name: carried[name] if name in carried else unknown(name, count).to(crystals.device) for name in names}


def asked_values(asked: Mapping[str, object], names: Sequence[str], count: int) -> dict[str, Tensor]:
    """Return what a user asks for of `count` crystals; conditions not named are unknown.

    Classes are given by name ("cubic") or, for space groups, by number; a chemical system as "Li-Mn-O", a composition
    as a formula. A list gives one request per crystal, None among them for nothing. Raises `ConfigError` for a
    condition that the model was not trained on and for an unknown class, listing what there is.
    """
    values = {name: unknown(name, count) for name in names}
    for name, value in asked.items():
        if value is None:
            continue
        if name not in values:
            known = ", ".join(names) or "none"
            raise ConfigError(f"conditions.{name}: the model was not trained on it; it knows {known}")
        if isinstance(value, (list, tuple)):
            _check_length(name, value, count)
            for row, entry in enumerate(value):
                if entry is not None:
                    values[name][row] = _asked(name, entry)
        else:
            values[name][:] = _asked(name, value)
    return values


def _check_length(name: str, values: Sequence[object], count: int) -> None:
    if len(values) != count:
        raise ConfigError(
            f"conditions.{name}: got {len(values)} values for {count} crystals; expected one each, or one value"
        )


def _asked(name: str, value: object) -> Tensor:
    key = f"conditions.{name}"
    if name in CLASSES:
        if str(value).lower() not in CLASSES[name]:
            allowed = ", ".join(CLASSES[name]) if len(CLASSES[name]) < 20 else "1 to 230"
            raise ConfigError(f"{key}: got {value!r}; expected one of {allowed}")
        return torch.tensor(float(CLASSES[name].index(str(value).lower())))
    if name in ELEMENTS:
        if not isinstance(value, str):
            example = "symbols such as Li-Mn-O" if name == "chemical_system" else "a formula such as LiFePO4"
            raise ConfigError(f"{key}: got {value!r}; expected {example}")
        parse = parse_chemical_system if name == "chemical_system" else parse_composition
        amounts = torch.bincount(torch.tensor(parse(value, key=key)), minlength=MAX_ATOMIC_NUMBER + 1).float()
        return amounts / amounts.sum() if name == "composition" else amounts
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{key}: got {value!r}; expected a number")
    return torch.tensor(float(value))


def check_names(key: str, names: Sequence[str]) -> None:
    """Raise `ConfigError` unless `names` is a list of different names that conditions can have."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"{key}: got {names!r}; expected a list of names such as [crystal_system]")
    for name in names:
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):  # they name modules
            raise ConfigError(f"{key}: got {name!r}; expected the name of a class or a property")
    if len(set(names)) < len(names):
        raise ConfigError(f"{key}: got {', '.join(names)}; expected each once")


def drop_conditions(values: Values, draws: Float[Tensor, "B C"], *, drop_all: float, drop_each: float) -> Values:
    """Make conditions unknown at random: all of a crystal's with one probability, else each with another.

    `draws` are uniform in [0, 1), C = number of conditions + 1.
    """
    whole = draws[:, 0] < drop_all
    dropped = {}
    for index, (name, given) in enumerate(values.items()):
        gone = whole | (draws[:, index + 1] < drop_each)
        dropped[name] = given.masked_fill(gone.view(-1, *[1] * (given.ndim - 1)), torch.nan)
    return dropped
