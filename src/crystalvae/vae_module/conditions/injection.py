"""Conditional VAEs: encoders and decoders of any family, conditioned on what a crystal is or should be.

What is told travels with the crystals (`CrystalBatch.conditions`); of crystals that carry nothing nothing is known, so
a conditional model is an unconditional one wherever nobody asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.build import build
from crystalvae.checks import check_choice, check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.conditions.embedder import ConditionEmbedder
from crystalvae.vae_module.conditions.values import (
    CLASSES,
    Classes,
    asked_values,
    check_names,
    condition_values,
    drop_conditions,
    known_classes,
    told,
)
from crystalvae.vae_module.layers.modulation import Concatenation, Modulation

Injection = Literal["adaptive_norm", "concat"]
Part = Literal["encoder", "decoder"]


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Which conditions a VAE is given, where, and how.

    `names` as `vae_module.conditions.values` knows them; `classes`: those of one's own that are classes, with their
    number of labels or the labels' names; `injection` into the `encoder`, the `decoder` or both:
    "adaptive_norm", by all of its layer norms, and for the decoder its input as well, or "concat", by concatenation
    with the encoder's output and the decoder's input. `d_model` numbers embed the conditions of a crystal; `dropout`
    {all, each}: in training all of a crystal's conditions are unknown with one probability, else each with another.
    Without names it changes nothing.
    """

    names: Sequence[str] = ()
    classes: Mapping[str, int | Sequence[str]] | None = None
    injection: Injection = "adaptive_norm"
    encoder: bool = True
    decoder: bool = True
    d_model: int = 64
    dropout: Mapping[str, float] = field(default_factory=lambda: {"all": 0.2, "each": 0.0})

    def __post_init__(self) -> None:
        check_names("condition.names", self.names)
        if strange := [name for name in self.known_classes if name not in CLASSES and name not in self.names]:
            raise ConfigError(f"condition.classes: {', '.join(strange)}: not among condition.names")
        check_choice("condition.injection", self.injection, get_args(Injection))
        check_count("condition.d_model", self.d_model)
        for key in ("encoder", "decoder"):
            check_choice(f"condition.{key}", getattr(self, key), (True, False))
        if not (self.encoder or self.decoder):
            raise ConfigError("condition: got encoder=false and decoder=false; expected at least one of them true")
        if not isinstance(self.dropout, Mapping):
            raise ConfigError(f"condition.dropout: got {self.dropout!r}; expected {{all: …, each: …}}")
        for key, value in self.dropout.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value <= 1.0
            if key not in {"all", "each"} or not number:
                raise ConfigError(f"condition.dropout.{key}: got {value!r}; expected all and each, shares in [0, 1]")

    @classmethod
    def of(cls, config: Mapping[str, Any] | None) -> Conditioning:
        """Build from plain config; null stands for no conditions."""
        if config is None:
            return cls()
        allowed = [entry.name for entry in fields(cls)]
        for key in config:
            if key not in allowed:
                raise ConfigError(f"condition.{key}: unknown; expected some of {', '.join(allowed)}")
        names, classes = config.get("names") or (), config.get("classes") or {}
        if not names and not classes:
            raise ConfigError("condition.names: got none; expected a list such as [crystal_system], or condition=none")
        known_classes(classes, key="condition.classes")
        check_names("condition.names", names)
        return cls(**{**config, "names": [*names, *(name for name in classes if name not in names)]})

    @cached_property
    def known_classes(self) -> Classes:
        """All conditions that are classes, with the names of their labels."""
        return known_classes(self.classes, key="condition.classes")

    def tells(self, part: Part) -> bool:
        """Say whether the encoder, or the decoder, is given conditions."""
        return bool(self.names) and getattr(self, part)

    def width(self, part: Part) -> int | None:
        """Return the `d_condition` that the encoder, or the decoder, has to be built with; None for none."""
        return self.d_model if self.tells(part) and self.injection == "adaptive_norm" else None

    def build(self, part: Part, config: Any, **arguments: Any) -> Any:
        """Build the encoder or the decoder; `ConfigError` where it has no layer norms that conditions could adapt."""
        width = self.width(part)
        if width is None:
            return build(part, config, **arguments)
        try:
            return build(part, config, d_condition=width, **arguments)
        except ConfigError as error:
            if "unexpected keyword argument 'd_condition'" not in str(error):
                raise
            raise ConfigError(f"condition.injection: this {part} has no layer norm to adapt; set concat") from error

    def part(self, part: Part, d_model: int) -> PartConditions | None:
        """Return what gives conditions to encoder or decoder, `d_model` numbers per atom; None where it takes none."""
        return PartConditions(self, part=part, d_model=d_model) if self.tells(part) else None

    # ---- what crystals are told --------------------------------------------------------------------------------------

    def values(self, crystals: CrystalBatch, *, strict: bool = True) -> dict[str, Tensor]:
        """Return what crystals are: `condition_values`."""
        return condition_values(crystals, self.names, strict=strict, classes=self.known_classes)

    def known(self, crystals: CrystalBatch) -> CrystalBatch:
        """Return crystals that carry what they are; those that carry conditions already keep them."""
        if not self.names or crystals.conditions:
            return crystals
        return crystals.replace(conditions=self.values(crystals, strict=False))

    def dropped(self, crystals: CrystalBatch, batch: TrainingBatch, generator: torch.Generator) -> CrystalBatch:
        """Return a training batch's crystals that carry what they are, but for what is dropped at random."""
        if not self.names:
            return crystals
        draws = torch.rand(batch.total_crystals, len(self.names) + 1, generator=generator, device=crystals.device)
        shares = {"all": 0.0, "each": 0.0, **self.dropout}
        values = drop_conditions(
            self.values(crystals),
            batch.per_crystal(draws),
            drop_all=shares["all"],
            drop_each=shares["each"],
        )
        return crystals.replace(conditions=values)

    def asked(self, crystals: CrystalBatch, conditions: Mapping[str, object]) -> CrystalBatch:
        """Return crystals that carry what a user asks for, and nothing else; `ConfigError` as `asked_values`."""
        if not self.names:
            raise ConfigError(f"conditions: got {', '.join(conditions)}; this model was trained without any")
        values = asked_values(conditions, self.names, len(crystals), classes=self.known_classes)
        if not self.decoder and any(value is not None for value in conditions.values()):
            raise ConfigError("conditions: this model's decoder takes none (condition.decoder=false)")
        return crystals.replace(conditions={name: value.to(crystals.device) for name, value in values.items()})


class PartConditions(nn.Module):
    """What tells an encoder or a decoder conditions: their embedding, and what mixes them with the part's tokens.

    Those are the encoder's output or the decoder's input. An encoder whose norms adapt has nothing to mix.
    """

    def __init__(self, conditioning: Conditioning, *, part: Part, d_model: int) -> None:
        super().__init__()
        self.embedder = ConditionEmbedder(
            names=conditioning.names, d_model=conditioning.d_model, classes=conditioning.known_classes
        )
        self.adapts = conditioning.injection == "adaptive_norm"
        sizes = {"d_model": d_model, "d_condition": conditioning.d_model}
        self.injection: Concatenation | Modulation | None = None
        if not self.adapts:
            self.injection = Concatenation(**sizes)
        elif part == "decoder":
            self.injection = Modulation(**sizes)

    def embed(self, crystals: CrystalBatch) -> Float[Tensor, "B C"]:
        """Return one vector per crystal of what it carries."""
        return self.embedder(told(crystals, self.embedder.names), crystals.num_graphs)

    def mix(self, tokens: Float[Tensor, "N D"], condition: Float[Tensor, "B C"], batch: Tensor) -> Float[Tensor, "N D"]:
        """Return tokens that know the conditions of their crystals."""
        return tokens if self.injection is None else self.injection(tokens, condition.index_select(0, batch))

    def arguments(self, condition: Float[Tensor, "B C"]) -> dict[str, Tensor]:
        """Return what the part itself is called with beside its input."""
        return {"condition": condition} if self.adapts else {}
