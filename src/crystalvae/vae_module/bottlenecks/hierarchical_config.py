"""What a hierarchy of latents is made of, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from crystalvae.checks import check_choice, check_number
from crystalvae.errors import ConfigError

ReconstructionLoss = Literal["periodic", "mse", "bce"]
Wiring = Literal["direct", "chained"]


@dataclass(frozen=True, eq=False)
class HierarchicalConfig:
    """Modules of a hierarchy of `depth` latents, the lowest (level 1, entry 0) per atom, the others per crystal.

    `encoders[k]` gives mean and log-variance of level k + 1 side by side, `decoders[k]` reads its latent and what the
    decoder above gave, `priors[k]` (optional, `depth` - 1 of them) gives mean and log-variance of p(z_k+1 | z_k+2) side
    by side; `LadderBottleneck` says what each is called with. `hierarchical_kl` spreads the KL weight evenly over the
    levels, each counting 1 / `depth`; otherwise each counts in full. `wiring`: encoders read the atoms' features or
    their mean ("direct"), or what the encoder below gave ("chained"). The others are of the model as a whole, for
    `hierarchical_vae`: `kl_weight` is its `loss_weights.kl`, `reconstruction_loss` its `coord_loss` ("periodic", "mse";
    "bce": periodic, with `objective.element_loss` "bce"), `beta_schedule` its `objective.schedule`, from the step to a
    factor: it multiplies `kl_weight` and does not override it.

    Raises `ConfigError`, another message for each field, for what cannot be used.
    """

    encoders: Sequence[nn.Module] | nn.ModuleList
    decoders: Sequence[nn.Module] | nn.ModuleList
    depth: int | None = None
    priors: Sequence[nn.Module] | nn.ModuleList | None = None
    kl_weight: float = 1e-5
    reconstruction_loss: ReconstructionLoss = "periodic"
    beta_schedule: Callable[[int], float] | None = None
    hierarchical_kl: bool = True
    wiring: Wiring = "direct"

    @property
    def levels(self) -> int:
        """`depth`, which is the number of encoders where it was left out."""
        return len(self.encoders) if self.depth is None else self.depth

    def __post_init__(self) -> None:
        if self.depth is not None and (
            isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1
        ):
            raise ConfigError(f"bottleneck.depth: got {self.depth!r}; expected a whole number of levels, at least 1")
        self._check_modules("encoders", self.encoders, self.depth, "one for each of the depth levels")
        self._check_modules("decoders", self.decoders, self.levels, "one for each of the depth levels")
        if self.priors is not None:
            needed = self.levels - 1
            if not needed:
                raise ConfigError("bottleneck.priors: depth 1 has no level with another above it; expected null")
            self._check_modules("priors", self.priors, needed, "depth - 1, one for each level but the deepest")
        check_choice("bottleneck.wiring", self.wiring, get_args(Wiring))
        check_number("bottleneck.kl_weight", self.kl_weight)
        if self.reconstruction_loss not in get_args(ReconstructionLoss):
            allowed = ", ".join(map(repr, get_args(ReconstructionLoss)))
            raise ConfigError(
                f"bottleneck.reconstruction_loss: got {self.reconstruction_loss!r}; expected one of {allowed}"
            )
        if self.beta_schedule is not None and not callable(self.beta_schedule):
            raise ConfigError(
                f"bottleneck.beta_schedule: got {self.beta_schedule!r}; expected a function from the step to a factor "
                "of the KL weight, or None"
            )
        if not isinstance(self.hierarchical_kl, bool):
            raise ConfigError(f"bottleneck.hierarchical_kl: got {self.hierarchical_kl!r}; expected true or false")

    def _check_modules(self, name: str, modules: Any, count: int | None, meaning: str) -> None:
        if not isinstance(modules, (list, tuple, nn.ModuleList)):
            raise ConfigError(f"bottleneck.{name}: got a {type(modules).__name__}; expected a list of torch modules")
        if len(modules) == 0:
            wanted = "some" if count is None else count
            raise ConfigError(f"bottleneck.{name}: got an empty list; expected {wanted} torch modules: {meaning}")
        for position, module in enumerate(modules):
            if not isinstance(module, nn.Module):
                raise ConfigError(
                    f"bottleneck.{name}[{position}]: got a {type(module).__name__}; expected a torch.nn.Module"
                )
        if count is not None and len(modules) != count:
            raise ConfigError(
                f"bottleneck.{name}: got {len(modules)} modules with depth {self.levels}; expected {count}: {meaning}"
            )
