"""What a VAE says of crystals that pass through it: one typed result that can also be read as a mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from jaxtyping import Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.bottlenecks.base import Posterior
from crystalvae.vae_module.decoders.heads import DecodedCrystals


@dataclass(frozen=True, eq=False)
class VAEOutput(Mapping[str, Any]):
    """What became of crystals: `output.z` and `output["z"]` are the same.

    `mean` and `log_var` are those of the `posterior`; `log_var` is None where the latent is certain (a codebook). `z`
    was decoded to `decoded` (logits, coordinates, cell), of which `reconstruction` holds the likeliest crystals.
    """

    reconstruction: CrystalBatch
    mean: Float[Tensor, "N L"]
    log_var: Float[Tensor, "N L"] | None
    z: Float[Tensor, "N L"]
    posterior: Posterior
    decoded: DecodedCrystals

    def __getitem__(self, name: str) -> Any:
        if name not in self._names():
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    @classmethod
    def _names(cls) -> list[str]:
        return [entry.name for entry in fields(cls)]
