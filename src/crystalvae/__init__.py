"""crystalvae: a continuous latent space of inorganic crystals.

Names are imported when they are first used, so that `import crystalvae` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystalvae.commands.in_python import build_decoder, build_encoder, embed, evaluate, reconstruct, sample
    from crystalvae.data.batch import CrystalBatch
    from crystalvae.data.readers import read_crystals
    from crystalvae.prior_module.latent_prior import LatentPrior
    from crystalvae.vae_module.distribution import DiagonalGaussianDistribution
    from crystalvae.vae_module.vae_module import VAEModule

    __version__: str

_HOMES = {
    "CrystalBatch": "data.batch",
    "DiagonalGaussianDistribution": "vae_module.distribution",
    "LatentPrior": "prior_module.latent_prior",
    "VAEModule": "vae_module.vae_module",
    "build_decoder": "commands.in_python",
    "build_encoder": "commands.in_python",
    "embed": "commands.in_python",
    "evaluate": "commands.in_python",
    "read_crystals": "data.readers",
    "reconstruct": "commands.in_python",
    "sample": "commands.in_python",
}
"""Public names, and the module each stands in."""

__all__ = [
    "CrystalBatch",
    "DiagonalGaussianDistribution",
    "LatentPrior",
    "VAEModule",
    "__version__",
    "build_decoder",
    "build_encoder",
    "embed",
    "evaluate",
    "read_crystals",
    "reconstruct",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from crystalvae.files import package_version

        return package_version("crystalvae") or "0+unknown"  # a checkout that is not installed
    if name not in _HOMES:
        raise AttributeError(f"module 'crystalvae' has no attribute {name!r}")
    return getattr(import_module(f"crystalvae.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
