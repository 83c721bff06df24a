"""A hierarchical VAE from modules of one's own, described by one checked object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from crystalvae.errors import ConfigError
from crystalvae.vae_module.bottlenecks.hierarchical import LadderBottleneck
from crystalvae.vae_module.bottlenecks.hierarchical_config import HierarchicalConfig
from crystalvae.vae_module.objectives.elbo import ELBO
from crystalvae.vae_module.objectives.kl_schedules import Schedule
from crystalvae.vae_module.vae_module import VAEModule


def hierarchical_vae(
    config: HierarchicalConfig,
    *,
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    latent_dim: int | None = None,
    crystal_dims: Sequence[int] | None = None,
    features: int | None = None,
    decoded: int | None = None,
    **options: Any,
) -> VAEModule:
    """Return the VAE that `config` describes, between an encoder and a decoder of crystals given as plain config.

    `latent_dim`, `crystal_dims`, `features` and `decoded` as for `LadderBottleneck`; without, they are those of the
    modules' first and last linear layers. `options` as for `VAEModule`, but for what `config` decides. The modules of
    `config` become part of the VAE. It can be saved where each of them, as `LevelMLP` does, says in an attribute
    `config` how it is built (`_target_` and arguments), and `beta_schedule` is None or a `Schedule`.
    """
    decided = {"bottleneck", "coord_loss"} & set(options)
    weights, objective = dict(options.pop("loss_weights", None) or {}), dict(options.pop("objective", None) or {})
    decided |= {f"loss_weights.{key}" for key in {"kl"} & set(weights)}
    bce = config.reconstruction_loss == "bce"
    decided |= {f"objective.{key}" for key in {"schedule", *(["element_loss"] if bce else [])} & set(objective)}
    if decided:
        raise ConfigError(f"{', '.join(sorted(decided))}: decided by the HierarchicalConfig; say it there alone")
    sizes = _Sizes(config)
    latent_dim = sizes.latent_dim if latent_dim is None else latent_dim
    crystal_dims = sizes.crystal_dims if crystal_dims is None else crystal_dims
    features = sizes.features if features is None else features
    decoded = sizes.decoded if decoded is None else decoded
    ladder = LadderBottleneck(
        latent_dim=latent_dim,
        crystal_dims=crystal_dims,
        features=features,
        decoded=decoded,
        encoders=config.encoders,
        decoders=config.decoders,
        priors=config.priors,
        depth=config.levels,
        hierarchical_kl=config.hierarchical_kl,
        wiring=config.wiring,
    )
    objective = {"_target_": f"{ELBO.__module__}.{ELBO.__name__}", **objective}
    if bce:
        objective["element_loss"] = "bce"
    module = VAEModule(
        encoder=encoder,
        decoder=decoder,
        latent_dim=latent_dim,
        bottleneck=ladder,
        coord_loss="periodic" if config.reconstruction_loss == "bce" else config.reconstruction_loss,
        loss_weights={**weights, "kl": config.kl_weight},
        objective={**objective, "schedule": _plain_schedule(config.beta_schedule)},
        **options,
    )
    parts = {"encoders": config.encoders, "decoders": config.decoders, "priors": config.priors}
    described = {
        name: None if modules is None else [_described(part) for part in modules] for name, modules in parts.items()
    }
    if not any(entry is None for entries in described.values() for entry in entries or ()):
        module.config["bottleneck"] = {
            "_target_": f"{LadderBottleneck.__module__}.{LadderBottleneck.__name__}",
            "crystal_dims": list(crystal_dims),
            "features": features,
            "decoded": decoded,
            "depth": config.levels,
            "hierarchical_kl": config.hierarchical_kl,
            "wiring": config.wiring,
            **described,
        }
    return module


class _Sizes:
    """The sizes of a hierarchy as the linear layers of its modules tell them; `ConfigError` where there are none."""

    def __init__(self, config: HierarchicalConfig) -> None:
        self._encoders, self._decoders = list(config.encoders), list(config.decoders)

    @property
    def latent_dim(self) -> int:
        return _layers("latent_dim", self._encoders[0])[-1].out_features // 2

    @property
    def crystal_dims(self) -> list[int]:
        return [_layers("crystal_dims", encoder)[-1].out_features // 2 for encoder in self._encoders[1:]]

    @property
    def features(self) -> int:
        return _layers("features", self._encoders[0])[0].in_features

    @property
    def decoded(self) -> int:
        return _layers("decoded", self._decoders[0])[-1].out_features


def _layers(name: str, module: nn.Module) -> list[nn.Linear]:
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ConfigError(f"{name}: a {type(module).__name__} without linear layers does not tell it; say it")
    return layers


def _described(module: nn.Module) -> dict[str, Any] | None:
    config = getattr(module, "config", None)
    return dict(config) if isinstance(config, Mapping) and "_target_" in config else None


def _plain_schedule(schedule: Any) -> Any:
    if not isinstance(schedule, Schedule):
        return schedule
    return {"_target_": f"{type(schedule).__module__}.{type(schedule).__name__}", **asdict(schedule)}
