"""Latent-space operations as methods of the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.data.augmentation import Augmentation
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import CrystalDataset
from crystalvae.errors import ConfigError
from crystalvae.vae_module.conditions.injection import Conditioning
from crystalvae.vae_module.distribution import normal_noise
from crystalvae.vae_module.latent_space import interpolation
from crystalvae.vae_module.latent_space.embedding import embed
from crystalvae.vae_module.latent_space.index import EmbeddingIndex, Neighbours, model_key
from crystalvae.vae_module.latent_space.inputs import to_crystal, to_crystals
from crystalvae.vae_module.latent_space.interpolation import Mode
from crystalvae.vae_module.latent_space.latents import reconstruct
from crystalvae.vae_module.latent_space.maps import Method, draw_map, project
from crystalvae.vae_module.vae import CrystalVAE

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


class LatentOperations(L.LightningModule):
    """What a model with a `CrystalVAE` offers beyond encoding and decoding.

    Crystals may be given as `CrystalBatch`, PyG batch, pymatgen structures or ASE atoms, one or a list, and are taken
    as they are: reduce cells first where the model was trained on reduced ones (`data.readers` does). Unless said
    otherwise, a `CrystalBatch` comes back, whose `properties` tell what belongs to each crystal, and which
    `latent_space.series.write_series` writes as CIFs or as a trajectory. Gradients are off, the model as it is.

    A conditional model reconstructs and walks knowing what the given crystals are; embeddings are made without, so that
    they do not depend on what happens to be known of a crystal.
    """

    vae: CrystalVAE
    augmentation: Augmentation
    condition: Conditioning
    sample: Any
    _index: EmbeddingIndex | None = None

    @property
    def any_origin(self) -> bool:
        """Whether the model was trained with crystals at any origin, so that origins may be shifted."""
        return self.augmentation.translate

    def taken(self, name: str, structures: Any, *, single: bool = False) -> CrystalBatch:
        """Return crystals in any of the forms above as a batch on the model's device; `name` is for errors."""
        return (to_crystal if single else to_crystals)(name, structures).to(self.device)

    def reparameterize(
        self, mean: Float[Tensor, "N L"], logvar: Float[Tensor, "N L"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "N L"]:
        """Draw z = μ + exp(½ log σ²) ε with ε from N(0, I); with gradients to both (Kingma & Welling 2014, 2.4)."""
        if mean.shape != logvar.shape:
            raise ConfigError(f"logvar: got shape {tuple(logvar.shape)}; expected that of mean, {tuple(mean.shape)}")
        return mean + torch.exp(0.5 * logvar) * normal_noise(mean.shape, mean.device, generator).to(mean)

    def generate(self, batch: CrystalBatch | int, **options: Any) -> Any:
        """Sample crystals: another name of `sample`, with its options."""
        return self.sample(batch, **options)

    def reconstruct_structures(
        self,
        structures: CrystalBatch | Structure | Atoms | Sequence[Structure] | Sequence[Atoms],
        deterministic: bool = True,
        *,
        generator: torch.Generator | None = None,
        batch_size: int = 512,
    ) -> list[Structure]:
        """Encode, decode, and return pymatgen structures: of the posterior's mode, else of a draw from it."""
        made = reconstruct(
            self.vae,
            self.condition.known(self.taken("structures", structures)),
            deterministic=deterministic,
            generator=generator,
            batch_size=batch_size,
        )
        return made.to_structure()

    def embed(
        self,
        structures: CrystalBatch | Structure | Atoms | Sequence[Structure] | Sequence[Atoms],
        *,
        batch_size: int = 512,
    ) -> Float[Tensor, "B D"]:
        """Return one vector a crystal, which depends on neither origin nor order of atoms: see `embedding.embed`."""
        crystals = self.taken("structures", structures)
        return embed(self.vae, crystals, every_origin=self.any_origin, batch_size=batch_size)

    def interpolate(
        self,
        a: CrystalBatch | Structure | Atoms,
        b: CrystalBatch | Structure | Atoms,
        steps: int,
        mode: Mode = "linear",
    ) -> CrystalBatch:
        """Return `steps` crystals on the way from a to b, both included; see `interpolation.interpolate`."""
        one, other = (self.condition.known(self.taken(name, c, single=True)) for name, c in (("a", a), ("b", b)))
        return interpolation.interpolate(self.vae, one, other, steps=steps, mode=mode, shift_origin=self.any_origin)

    def latent_traversal(
        self,
        structure: CrystalBatch | Structure | Atoms,
        dim: int,
        range: tuple[float, float] = (-3.0, 3.0),  # noqa: A002  the name that VAE libraries have for it
        steps: int = 7,
        *,
        atom: int | None = None,
    ) -> CrystalBatch:
        """Return crystals in which latent number `dim` is moved by offsets in `range`; see `interpolation.traverse`."""
        crystal = self.condition.known(self.taken("structure", structure, single=True))
        return interpolation.traverse(self.vae, crystal, dim=dim, limits=range, steps=steps, atom=atom)

    def build_index(
        self, dataset: CrystalDataset, *, cache_dir: Path | str | None = None, batch_size: int = 512
    ) -> EmbeddingIndex:
        """Embed a data set for `nearest`, which uses the index built last; with `cache_dir` it is kept on disk."""
        self._index = EmbeddingIndex.build(
            self.vae, dataset, every_origin=self.any_origin, batch_size=batch_size, cache_dir=cache_dir
        )
        return self._index

    def nearest(
        self, structure: CrystalBatch | Structure | Atoms, k: int = 5, *, index: EmbeddingIndex | None = None
    ) -> Neighbours:
        """Return the `k` crystals whose embeddings are nearest, from `index` or the one that `build_index` made.

        Raises `ConfigError` where there is none, or it was made with other weights than the model has now.
        """
        index = self._index if index is None else index
        if index is None:
            raise ConfigError(
                "nearest: no index to search; make one of the training set, as in "
                'vae.build_index(MP20().load("train")), or give index='
            )
        if index.model != model_key(self.vae):
            raise ConfigError("nearest: the index was made with other weights than this model's; build it again")
        crystal = self.taken("structure", structure, single=True)
        vector = embed(self.vae, crystal, every_origin=index.every_origin)
        return index.nearest(vector[0], k)

    def latent_map(
        self,
        structures: CrystalBatch | CrystalDataset | Sequence[Structure] | Sequence[Atoms],
        path: Path | str,
        *,
        color: str | None = None,
        method: Method = "pca",
        seed: int = 0,
    ) -> Float[Tensor, "B 2"]:
        """Draw a 2-D map of embeddings as a PNG, coloured by the property `color`, and return its points.

        Raises `ConfigError` for a property that the crystals do not have, listing those they have.
        """
        crystals = to_crystals("structures", structures)
        values = None if color is None else property_values(crystals, color, key="color")
        points = project(self.embed(crystals), method=method, seed=seed)
        colours = None if values is None else values.double().numpy()
        draw_map(points, colours, path, label=color or "", method=method)
        return torch.from_numpy(points)


def property_values(crystals: CrystalBatch, name: str, *, key: str) -> Float[Tensor, "B"]:
    """Return a property of crystals; `ConfigError` naming the config `key` and what there is, where it is unknown."""
    if name not in crystals.properties:
        known = ", ".join(sorted(crystals.properties)) or "none"
        raise ConfigError(f"{key}: these crystals have no property {name!r}; they have {known}")
    return crystals.properties[name].float().to("cpu")
