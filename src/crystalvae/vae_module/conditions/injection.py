"""Conditional VAEs: encoders and decoders of any family, told what a crystal is or shall be.

What is told travels with the crystals, as properties under `PREFIX` (`tell`, `told`); crystals that were told nothing
are crystals of which nothing is known, so a conditional model is an unconditional one wherever nobody asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystalvae.checks import check_choice, check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.conditions.values import (
    ConditionEmbedder,
    Values,
    asked_values,
    check_names,
    condition_values,
    drop_conditions,
    unknown,
)
from crystalvae.vae_module.decoders.heads import DecodedCrystals

Injection = Literal["adaptive_norm", "concat"]
PREFIX = "condition/"


def tell(crystals: CrystalBatch, values: Values) -> CrystalBatch:
    """Return crystals that encoders and decoders are told these conditions of, and no others."""
    kept = {name: value for name, value in crystals.properties.items() if not name.startswith(PREFIX)}
    told_now = {PREFIX + name: value.to(crystals.device) for name, value in values.items()}
    return crystals.replace(properties={**kept, **told_now})


def told(crystals: CrystalBatch, names: Sequence[str]) -> dict[str, Tensor]:
    """Return what crystals were told; unknown where nothing was."""
    return {
        name: crystals.properties[PREFIX + name]
        if PREFIX + name in crystals.properties
        else unknown(name, len(crystals))
        for name in names
    }


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Which conditions a VAE is told, where, and how.

    `names` as `vae_module.conditions.values` knows them; `injection` into the `encoder`, the `decoder` or both, by
    "adaptive_norm" or "concat" (see `ConditionedEncoder`, `ConditionedDecoder`); `d_model` numbers embed the conditions
    of a crystal; `dropout` {all, each}: in training all of a crystal's conditions are unknown with one probability,
    else each with another. Without names it changes nothing.
    """

    names: Sequence[str] = ()
    injection: Injection = "adaptive_norm"
    encoder: bool = True
    decoder: bool = True
    d_model: int = 64
    dropout: Mapping[str, float] = field(default_factory=lambda: {"all": 0.2, "each": 0.0})

    def __post_init__(self) -> None:
        check_names("condition.names", self.names)
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
        if not config.get("names"):
            raise ConfigError("condition.names: got none; expected a list such as [crystal_system], or condition=none")
        return cls(**config)

    def wrap_encoder(self, encoder: nn.Module) -> nn.Module:
        """Return the encoder, told the conditions where `encoder` says so."""
        return ConditionedEncoder(encoder, self) if self.names and self.encoder else encoder

    def wrap_decoder(self, decoder: nn.Module) -> nn.Module:
        """Return the decoder, told the conditions where `decoder` says so."""
        return ConditionedDecoder(decoder, self) if self.names and self.decoder else decoder

    def fit(self, module: nn.Module, crystals: CrystalBatch) -> None:
        """Take over the training set's statistics; `ConfigError` where it does not have a condition."""
        values = condition_values(crystals, self.names)
        for part in module.modules():
            if isinstance(part, Conditioned):
                part.embedder.fit(values)

    def known(self, crystals: CrystalBatch) -> CrystalBatch:
        """Tell crystals what they are; those that were told something already keep it."""
        if not self.names or any(name.startswith(PREFIX) for name in crystals.properties):
            return crystals
        return tell(crystals, condition_values(crystals, self.names, strict=False))

    def dropped(self, crystals: CrystalBatch, batch: TrainingBatch, generator: torch.Generator) -> CrystalBatch:
        """Tell a training batch what it is, but for what is dropped at random."""
        if not self.names:
            return crystals
        draws = torch.rand(batch.total_crystals, len(self.names) + 1, generator=generator, device=crystals.device)
        values = condition_values(crystals, self.names)
        shares = {"all": 0.0, "each": 0.0, **self.dropout}
        draws = batch.per_crystal(draws)
        return tell(crystals, drop_conditions(values, draws, drop_all=shares["all"], drop_each=shares["each"]))

    def asked(self, crystals: CrystalBatch, conditions: Mapping[str, object]) -> CrystalBatch:
        """Tell crystals what a user asks for, and nothing else; `ConfigError` as `asked_values`."""
        if not self.names:
            raise ConfigError(f"conditions: got {', '.join(conditions)}; this model was trained without any")
        values = asked_values(conditions, self.names, len(crystals))
        if not self.decoder and any(value is not None for value in conditions.values()):
            raise ConfigError("conditions: this model's decoder is told none (condition.decoder=false)")
        return tell(crystals, values)


# ---- injection -------------------------------------------------------------------------------------------------------


_CONTEXT: ContextVar[tuple[Tensor, Tensor]] = ContextVar("conditions of the crystals that are being processed")


@contextmanager
def _context(vectors: Float[Tensor, "B C"], batch: Int[Tensor, "N"]) -> Iterator[None]:
    token = _CONTEXT.set((vectors, batch))
    try:
        yield
    finally:
        _CONTEXT.reset(token)


class AdaptiveLayerNorm(nn.LayerNorm):
    """A layer norm over flat tokens whose gain and bias depend on the conditions of each atom's crystal.

    LN(x) · (1 + scale(c)) + shift(c) with LN's own gain and bias kept; scale and shift are linear in SiLU(c) and start
    at 0. Source: Peebles & Xie, "Scalable diffusion models with transformers" (2023), section 3.2, without its gates.
    """

    def __init__(self, norm: nn.LayerNorm, *, d_condition: int) -> None:
        super().__init__(list(norm.normalized_shape), eps=norm.eps, elementwise_affine=norm.elementwise_affine)
        self.weight, self.bias = norm.weight, norm.bias
        self.modulation = Modulation(d_model=norm.normalized_shape[-1], d_condition=d_condition)

    def forward(self, input: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:  # noqa: A002  torch's name
        """Normalise and modulate."""
        return self.modulation(super().forward(input))


class Modulation(nn.Module):
    """x · (1 + scale(c)) + shift(c) (FiLM, Perez et al. 2018, eq. 2), both linear in SiLU(c) and 0 to begin with."""

    def __init__(self, *, d_model: int, d_condition: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_condition, 2 * d_model)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Modulate flat tokens by the conditions of their crystals."""
        vectors, batch = _CONTEXT.get()
        if tokens.shape[:-1] != batch.shape:
            raise ValueError(f"conditions: got tokens {tuple(tokens.shape)}; expected one row for {len(batch)} atoms")
        scale, shift = self.linear(F.silu(vectors)).index_select(0, batch).chunk(2, dim=-1)
        return tokens * (1 + scale) + shift


class Concatenation(nn.Module):
    """x + W₂ SiLU(W₁ [x, c]): the conditions beside the tokens, taken back to their width; W₂ starts at 0."""

    def __init__(self, *, d_model: int, d_condition: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(d_model + d_condition, d_model)
        self.linear2 = nn.Linear(d_model, d_model)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Mix flat tokens with the conditions of their crystals."""
        vectors, batch = _CONTEXT.get()
        both = torch.cat((tokens, vectors.index_select(0, batch).to(tokens.dtype)), dim=-1)
        return tokens + self.linear2(F.silu(self.linear1(both)))


def _adapt(module: nn.Module, *, d_condition: int) -> int:
    """Make every layer norm inside a module adaptive; returns how many there were."""
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.LayerNorm):
            setattr(module, name, AdaptiveLayerNorm(child, d_condition=d_condition))
            count += 1
        else:
            count += _adapt(child, d_condition=d_condition)
    return count


class Conditioned(nn.Module):
    """What conditional encoders and decoders share: the part, the conditions' embedding, and their injection."""

    def __init__(self, kind: str, part: nn.Module, conditioning: Conditioning) -> None:
        super().__init__()
        self.d_model = int(cast("Any", part).d_model)
        sizes = {"d_model": self.d_model, "d_condition": conditioning.d_model}
        self.embedder = ConditionEmbedder(names=conditioning.names, d_model=conditioning.d_model)
        self.injection: nn.Module = nn.Identity()  # of an encoder whose norms adapt
        if conditioning.injection == "concat":
            self.injection = Concatenation(**sizes)
        elif kind == "decoder":
            self.injection = Modulation(**sizes)
        if conditioning.injection == "adaptive_norm" and _adapt(part, d_condition=conditioning.d_model) == 0:
            raise ConfigError(f"condition.injection: this {kind} has no layer norm to adapt; set concat")
        self.part = part

    def context(self, crystals: CrystalBatch) -> AbstractContextManager[None]:
        """Return a context in which the injections see what the crystals were told."""
        return _context(self.embedder(told(crystals, self.embedder.names), crystals.num_graphs), crystals.batch)


class ConditionedEncoder(Conditioned):
    """Any encoder, told conditions: by all of its layer norms, or by concatenation with its output."""

    def __init__(self, encoder: nn.Module, conditioning: Conditioning) -> None:
        super().__init__("encoder", encoder, conditioning)

    def forward(self, crystals: CrystalBatch) -> Float[Tensor, "N D"]:
        """Return one hidden vector of `d_model` numbers an atom."""
        with self.context(crystals):
            return self.injection(self.part(crystals))


class ConditionedDecoder(Conditioned):
    """Any decoder, told conditions: by modulating its input and all layer norms, or by concatenation with its input."""

    def __init__(self, decoder: nn.Module, conditioning: Conditioning) -> None:
        super().__init__("decoder", decoder, conditioning)
        self.atom_type_predict = bool(cast("Any", decoder).atom_type_predict)
        self.atom_type_input = bool(cast("Any", decoder).atom_type_input)

    def forward(self, tokens: Float[Tensor, "N D"], crystals: CrystalBatch) -> DecodedCrystals:
        """Decode hidden vectors of crystals of known atom counts."""
        with self.context(crystals):
            return self.part(self.injection(tokens), crystals)


def matching_names(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under a model's own names where it tells its encoder or decoder conditions and they did not.

    Or the other way round: so a conditional model starts from an unconditional one, and back.
    """
    renamed = {}
    for name, value in weights.items():
        inside = re.sub(r"^vae\.(encoder|decoder)\.", r"vae.\1.part.", name)
        outside = re.sub(r"^vae\.(encoder|decoder)\.part\.", r"vae.\1.", name)
        renamed[next((entry for entry in (name, inside, outside) if entry in own), name)] = value
    return renamed
