"""What a crystal can be asked to be: classes, numbers and elements per crystal, each of which may be unknown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.data.batch import MAX_ATOMIC_NUMBER, CrystalBatch
from crystalvae.data.composition import densities, element_fractions, parse_chemical_system, parse_composition
from crystalvae.data.dataset import label_of
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

MAX_LABELS = 10_000
"""So many labels can a class of one's own have."""

Classes = Mapping[str, Sequence[str]]
"""Conditions that are classes, with the names of their labels."""
Values = Mapping[str, Float[Tensor, "B *E"]]
"""Condition name to one row per crystal: the class's position in `Classes`, the number, or one for each element 0..99.

NaN is unknown.
"""


def known_classes(own: Mapping[str, int | Sequence[str]] | None, *, key: str) -> dict[str, Sequence[str]]:
    """Return all conditions that are classes: `CLASSES`, and those of one's own with their number of labels or names.

    Labels that have no names are named by their numbers, from 0. Raises `ConfigError`, naming `key`, for what cannot
    be a class.
    """
    if own is not None and not isinstance(own, Mapping):
        raise ConfigError(f"{key}: got {own!r}; expected such as {{label: 3}} or {{phase: [alpha, beta]}}")
    own = own or {}
    check_names(key, list(own))
    return {**CLASSES, **{name: _own_labels(f"{key}.{name}", name, given) for name, given in own.items()}}


def _own_labels(key: str, name: str, given: int | Sequence[str]) -> Sequence[str]:
    if name in CLASSES or name in COMPUTED:
        raise ConfigError(f"{key}: that name is taken; expected one that is not {', '.join((*CLASSES, *COMPUTED))}")
    wrong = ConfigError(f"{key}: got {given!r:.200}; expected a number of labels or different names, 2 to {MAX_LABELS}")
    if isinstance(given, int):
        if isinstance(given, bool) or not 2 <= given <= MAX_LABELS:
            raise wrong
        return tuple(map(str, range(given)))
    if not isinstance(given, Sequence) or isinstance(given, str) or not 2 <= len(given) <= MAX_LABELS:
        raise wrong
    if not all(isinstance(label, str) for label in given) or len(set(given)) < len(given):
        raise wrong
    return tuple(given)


def condition_values(
    crystals: CrystalBatch, names: Sequence[str], *, strict: bool = True, classes: Classes = CLASSES
) -> dict[str, Tensor]:
    """Return what crystals are, for each condition.

    Where the crystals do not come with a property it is unknown; with `strict`, `ConfigError` says what there is. So it
    does for a label that is none of `classes`.
    """
    found = next((name for name in SPACE_GROUPS if name in crystals.properties), None)
    values = {}
    for name in names:
        if name in COMPUTED:
            values[name] = _computed(name, crystals)
            continue
        if name in classes and name not in CLASSES and (labels := _labels(name, crystals, classes[name])) is not None:
            values[name] = labels
            continue
        source = found if name in CLASSES else name
        if source is None or source not in crystals.properties:
            if strict:
                own = {label_of(column) or column for column in crystals.properties} - set(SPACE_GROUPS)
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


def _labels(name: str, crystals: CrystalBatch, labels: Sequence[str]) -> Tensor | None:
    """Return each crystal's position in `labels`, NaN where it has none; None where the data do not have the class.

    The data have it as numbers, or as `data.dataset` keeps words: a property `name=label` for each.
    """
    told = {column.removeprefix(f"{name}="): column for column in crystals.properties if label_of(column) == name}
    if not told:
        if name not in crystals.properties:
            return None
        numbers = crystals.properties[name].float()
        found, wrong = numbers, (numbers < 0) | (numbers >= len(labels)) | (numbers != numbers.floor())
        strange = [f"{number:g}" for number in numbers[wrong & ~numbers.isnan()].tolist()]
    else:
        positions = {label: index for index, label in enumerate(labels)}
        found = torch.full((crystals.num_graphs,), torch.nan, device=crystals.device)
        strange = []
        for label, column in told.items():
            own = crystals.properties[column] == 1
            if label in positions:
                found = found.masked_fill(own, positions[label])
            elif bool(own.any()):
                strange.append(label)
    if strange:
        allowed = f"0 to {len(labels) - 1}" if not told else _listed(labels)
        raise ConfigError(f"conditions.{name}: the data have {_listed(dict.fromkeys(strange))}; expected {allowed}")
    return found


def _listed(labels: Iterable[str]) -> str:
    every = list(labels)
    return ", ".join(every[:20]) + (f" … {every[-1]}" if len(every) > 20 else "")


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


def condition_ranges(values: Values, classes: Classes = CLASSES) -> dict[str, list[float]]:
    """Return the least and the largest known value of each condition that is a number."""
    known = {
        name: given[~given.isnan()] for name, given in values.items() if name not in classes and name not in ELEMENTS
    }
    return {name: [float(given.min()), float(given.max())] for name, given in known.items() if len(given)}


def told(crystals: CrystalBatch, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the conditions of these names that crystals carry; unknown where they carry none."""
    carried, count = crystals.conditions, crystals.num_graphs
    return {name: carried[name] if name in carried else unknown(name, count).to(crystals.device) for name in names}


def asked_values(
    asked: Mapping[str, object], names: Sequence[str], count: int, *, classes: Classes = CLASSES
) -> dict[str, Tensor]:
    """Return what a user asks for of `count` crystals; conditions not named are unknown.

    Classes are given by name ("cubic") or, for space groups, by number; those of one's own by name, by position from 0
    or as one-hot rows (B, C) or (C,); a chemical system as "Li-Mn-O", a composition as a formula. A list, an array or a
    tensor gives one request per crystal, None or NaN among them for nothing. Raises `ConfigError` for a condition that
    the model was not trained on and for an unknown class, listing what there is.
    """
    values = {name: unknown(name, count) for name in names}
    for name, value in asked.items():
        if value is None:
            continue
        if name not in values:
            known = ", ".join(names) or "none"
            raise ConfigError(f"conditions.{name}: the model was not trained on it; it knows {known}")
        given = value.tolist() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value
        if isinstance(given, (list, tuple)) and not (len(given) != count and _is_one_hot(name, given, classes)):
            _check_length(name, given, count)
            for row, entry in enumerate(given):
                if entry is not None and entry == entry:  # noqa: PLR0124  NaN
                    values[name][row] = _asked(name, entry, classes)
        else:
            values[name][:] = _asked(name, given, classes)
    return values


def _is_one_hot(name: str, value: object, classes: Classes) -> bool:
    return name in classes and name not in CLASSES and _one_hot(value, len(classes[name])) is not None


def _one_hot(value: object, length: int) -> int | None:
    """Return where the 1 of a one-hot row of this length stands; None for anything else."""
    if not isinstance(value, (list, tuple)) or len(value) != length or not all(entry in (0, 1) for entry in value):
        return None
    return list(value).index(1) if sum(value) == 1 else None


def _check_length(name: str, values: Sequence[object], count: int) -> None:
    if len(values) != count:
        raise ConfigError(
            f"conditions.{name}: got {len(values)} values for {count} crystals; expected one each, or one value"
        )


def _asked(name: str, value: object, classes: Classes) -> Tensor:
    key = f"conditions.{name}"
    if name in CLASSES:
        if str(value).lower() not in CLASSES[name]:
            allowed = ", ".join(CLASSES[name]) if len(CLASSES[name]) < 20 else "1 to 230"
            raise ConfigError(f"{key}: got {value!r}; expected one of {allowed}")
        return torch.tensor(float(CLASSES[name].index(str(value).lower())))
    if name in classes:
        return torch.tensor(float(_label(key, value, classes[name])))
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


def _label(key: str, value: object, labels: Sequence[str]) -> int:
    if value in labels:
        return labels.index(value)
    hot = _one_hot(value, len(labels))
    if hot is not None:
        return hot
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if number.is_integer() and 0 <= number < len(labels):
            return int(number)
    raise ConfigError(f"{key}: got {value!r}; expected one of {_listed(labels)}, or a position from 0")


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
