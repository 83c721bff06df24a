"""What a crystal can be asked to be: classes and numbers per crystal, each of which may be unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from src.data.batch import CrystalBatch
from src.data.canonical import CRYSTAL_SYSTEMS, crystal_system
from src.errors import ConfigError

CLASSES = {"crystal_system": CRYSTAL_SYSTEMS, "space_group": tuple(str(number) for number in range(1, 231))}
"""Conditions that are classes, derived from the space group that `canonical` finds; all others are numbers."""

Values = Mapping[str, Float[Tensor, "B"]]
"""Condition name to one value a crystal: the class's position in `CLASSES`, or the number itself; NaN is unknown."""


def condition_values(crystals: CrystalBatch, names: Sequence[str]) -> dict[str, Float[Tensor, "B"]]:
    """Return what crystals are, for each condition; `ConfigError` where the data set does not have it."""
    values = {}
    for name in names:
        source = "space_group" if name in CLASSES else name
        if source not in crystals.properties:
            known = sorted(
                {*CLASSES, *crystals.properties} if "space_group" in crystals.properties else crystals.properties
            )
            raise ConfigError(f"conditions: the data have no {name!r}; expected some of {', '.join(known)}")
        given = crystals.properties[source].float()
        if name == "crystal_system":
            system = crystal_system(given).float()
            given = torch.where(system < 0, torch.full_like(system, torch.nan), system)
        elif name == "space_group":
            given = given - 1
        values[name] = given
    return values


def asked_values(asked: Mapping[str, object], names: Sequence[str], count: int) -> dict[str, Float[Tensor, "B"]]:
    """Return what a user asks for, the same for all of `count` crystals; conditions not named are unknown.

    Classes are given by name ("cubic") or, for space groups, by number. Raises `ConfigError` for a condition that the
    model was not trained on and for an unknown class, listing what there is.
    """
    values = {name: torch.full((count,), torch.nan) for name in names}
    for name, value in asked.items():
        if value is None:
            continue
        if name not in values:
            known = ", ".join(names) or "none"
            raise ConfigError(f"conditions.{name}: the model was not trained on it; it knows {known}")
        if name in CLASSES:
            if str(value).lower() not in CLASSES[name]:
                allowed = ", ".join(CLASSES[name]) if len(CLASSES[name]) < 20 else "1 to 230"
                raise ConfigError(f"conditions.{name}: got {value!r}; expected one of {allowed}")
            values[name][:] = CLASSES[name].index(str(value).lower())
        else:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"conditions.{name}: got {value!r}; expected a number")
            values[name][:] = value
    return values


class ConditionEmbedder(nn.Module):
    """Sum of one vector a condition: an embedding of the class, or a small network on the standardised number.

    Each condition has a learned vector for "unknown". `mean` and `std` are those of the training set.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, names: Sequence[str], d_model: int) -> None:
        super().__init__()
        self.names = list(names)
        self.embedders = nn.ModuleDict()
        for name in self.names:
            if name in CLASSES:
                self.embedders[name] = nn.Embedding(len(CLASSES[name]), d_model)
            else:
                self.embedders[name] = nn.Sequential(nn.Linear(1, d_model), nn.SiLU(), nn.Linear(d_model, d_model))
        # Without conditions it is empty and takes part in no gradient, which DDP would wait for.
        self.unknown = nn.Parameter(torch.zeros(len(self.names), d_model), requires_grad=bool(self.names))
        self.register_buffer("mean", torch.zeros(len(self.names)))
        self.register_buffer("std", torch.ones(len(self.names)))

    def fit(self, values: Values) -> None:
        """Take over the mean and standard deviation of the known numbers."""
        for index, name in enumerate(self.names):
            if name in CLASSES:
                continue
            known = values[name][~values[name].isnan()]
            if len(known) < 2:
                raise ConfigError(f"conditions: {name!r} has {len(known)} known values in the training set")
            self.mean[index], self.std[index] = known.mean(), known.std().clamp_min(1e-6)

    def forward(self, values: Values, count: int) -> Float[Tensor, "B D"]:
        """Embed the conditions of `count` crystals."""
        total = self.unknown.new_zeros(count, self.unknown.shape[1])
        for index, name in enumerate(self.names):
            given = values[name].to(total.device)
            missing = given.isnan()
            filled = torch.nan_to_num(given)
            if name in CLASSES:
                vectors = self.embedders[name](filled.long())
            else:
                vectors = self.embedders[name](((filled - self.mean[index]) / self.std[index])[:, None])
            total = total + torch.where(missing[:, None], self.unknown[index], vectors)
        return total


def drop_conditions(values: Values, draws: Float[Tensor, "B C"], *, drop_all: float, drop_each: float) -> Values:
    """Make conditions unknown at random: all of a crystal's with one probability, else each with another.

    `draws` are uniform in [0, 1), C = number of conditions + 1.
    """
    whole = draws[:, 0] < drop_all
    return {
        name: given.masked_fill(whole | (draws[:, index + 1] < drop_each), torch.nan)
        for index, (name, given) in enumerate(values.items())
    }
