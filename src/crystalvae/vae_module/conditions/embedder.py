"""Conditions as vectors, one per crystal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.data.batch import MAX_ATOMIC_NUMBER
from crystalvae.errors import ConfigError
from crystalvae.vae_module.conditions.values import CLASSES, ELEMENTS, Classes, Values, check_names


class ConditionEmbedder(nn.Module):
    """Sum of one vector per condition: an embedding of the class, or a network on the standardised number(s).

    Each condition has a learned vector for "unknown". `mean` and `std` are those of the training set; what is given for
    each element is taken as it is. `classes` are all conditions that are classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, names: Sequence[str], d_model: int, classes: Classes = CLASSES) -> None:
        super().__init__()
        check_names("conditions", names)
        self.names, self.classes = list(names), classes
        self.embedders = nn.ModuleDict()
        for name in self.names:
            if name in classes:
                self.embedders[name] = nn.Embedding(len(classes[name]), d_model)
            else:
                inputs = MAX_ATOMIC_NUMBER + 1 if name in ELEMENTS else 1
                layers = (nn.Linear(inputs, d_model), nn.SiLU(), nn.Linear(d_model, d_model))
                self.embedders[name] = nn.Sequential(*layers)
        # Without conditions it is empty and takes part in no gradient, which DDP would wait for.
        self.unknown = nn.Parameter(torch.zeros(len(self.names), d_model), requires_grad=bool(self.names))
        self.register_buffer("mean", torch.zeros(len(self.names)))
        self.register_buffer("std", torch.ones(len(self.names)))

    def fit(self, values: Values) -> None:
        """Take over the mean and standard deviation of the known numbers."""
        for index, name in enumerate(self.names):
            if name in self.classes or name in ELEMENTS:
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
            if name in self.classes:
                vectors = self.embedders[name](filled.long())
            elif name in ELEMENTS:
                missing = missing.any(dim=-1)
                vectors = self.embedders[name](filled)
            else:
                vectors = self.embedders[name](((filled - self.mean[index]) / self.std[index])[:, None])
            total = total + torch.where(missing[:, None], self.unknown[index], vectors)
        return total
