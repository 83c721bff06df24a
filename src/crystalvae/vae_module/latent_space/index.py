"""The nearest crystals of a data set, by their embeddings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crystalvae.checks import check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import CrystalDataset, crystals_key
from crystalvae.errors import ConfigError
from crystalvae.files import arrays_key, remove_stale_partials, whole_file
from crystalvae.vae_module.latent_space.embedding import embed
from crystalvae.vae_module.vae import CrystalVAE

log = logging.getLogger(__name__)

EMBEDDING_VERSION = 1
"""Part of every key: raise it whenever `embed` gives other vectors."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The crystals nearest to a query, nearest first, with their ids, rows in the data set and distances.

    A distance is Euclidean, with every number of the embedding in units of its standard deviation over the data set.
    """

    crystals: CrystalBatch
    ids: Sequence[str]
    rows: Sequence[int]
    distances: Sequence[float]


class EmbeddingIndex:
    """The embeddings of a data set's crystals, searched exhaustively.

    `model` is the hash of the weights that made them (`model_key`); `every_origin` says how (`embed`).
    """

    def __init__(
        self, *, dataset: CrystalDataset, embeddings: Float[Tensor, "B D"], model: str, every_origin: bool
    ) -> None:
        if len(dataset) == 0 or len(dataset) != len(embeddings):
            raise ConfigError(f"index: got {len(embeddings)} embeddings of {len(dataset)} crystals; expected one each")
        self.dataset, self.embeddings = dataset, embeddings.to("cpu")
        self.model, self.every_origin = model, every_origin
        spread = self.embeddings.std(dim=0, correction=0)
        self._scale = torch.where(spread > 0, spread, torch.ones_like(spread))

    def __len__(self) -> int:
        return len(self.dataset)

    @classmethod
    def build(
        cls,
        vae: CrystalVAE,
        dataset: CrystalDataset,
        *,
        every_origin: bool = True,
        batch_size: int = 512,
        cache_dir: Path | str | None = None,
        advance: Callable[[int], object] = lambda _done: None,
    ) -> EmbeddingIndex:
        """Embed every crystal of a data set; with `cache_dir` only once for the same weights and crystals.

        `advance` is called after each batch with the number of its crystals.
        """
        model = model_key(vae)
        path = None
        if cache_dir is not None:
            key = crystals_key(dataset.crystals, f"{model} {every_origin} {EMBEDDING_VERSION}")
            path = Path(cache_dir).expanduser() / f"embeddings-{key}.safetensors"
            if (known := _read(path, len(dataset))) is not None:
                return cls(dataset=dataset, embeddings=known, model=model, every_origin=every_origin)
        device = next(vae.parameters()).device
        parts = []
        for start in range(0, len(dataset), batch_size):
            part = dataset.crystals[start : start + batch_size]
            parts.append(embed(vae, part.to(device), every_origin=every_origin, batch_size=batch_size).to("cpu"))
            advance(len(part))
        embeddings = torch.cat(parts)
        if path is not None:
            _write(path, embeddings)
        return cls(dataset=dataset, embeddings=embeddings, model=model, every_origin=every_origin)

    def nearest_to(self, vae: CrystalVAE, crystal: CrystalBatch, k: int) -> Neighbours:
        """Return the `k` crystals nearest to a crystal, embedded as they are; `ConfigError` for other weights."""
        if self.model != model_key(vae):
            raise ConfigError("nearest: the index was made with other weights than this model's; build it again")
        return self.nearest(embed(vae, crystal, every_origin=self.every_origin)[0], k)

    def nearest(self, embedding: Float[Tensor, "D"], k: int) -> Neighbours:
        """Return the `k` crystals nearest to an embedding; equal distances in the data set's order.

        Raises `ConfigError` for a `k` that is more than there are.
        """
        check_count("k", k)
        if k > len(self):
            raise ConfigError(f"k: got {k}; the index holds {len(self)} crystals")
        difference = (self.embeddings - embedding.to(self.embeddings)) / self._scale
        distances = difference.double().norm(dim=-1)
        rows: list[int] = distances.argsort(stable=True)[:k].tolist()
        return Neighbours(
            crystals=self.dataset.crystals[rows],
            ids=[self.dataset.ids[row] for row in rows],
            rows=rows,
            distances=distances[rows].tolist(),
        )


def model_key(vae: CrystalVAE) -> str:
    """Return a hash of a model's weights."""
    return arrays_key((name, value.detach().to("cpu").numpy()) for name, value in sorted(vae.state_dict().items()))


def _read(path: Path, count: int) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        embeddings = load_file(path)["embeddings"]
    except (SafetensorError, OSError, KeyError) as error:
        log.warning("%s: damaged (%s); embedding the data set again", path, " ".join(str(error).split())[:200])
        return None
    return embeddings if embeddings.ndim == 2 and len(embeddings) == count else None


def _write(path: Path, embeddings: Tensor) -> None:
    try:
        remove_stale_partials(path)
        with whole_file(path) as partial:
            save_file({"embeddings": embeddings.contiguous()}, partial)
    except (OSError, SafetensorError) as error:
        log.warning("could not keep the embeddings at %s (%s); they will be made again next time", path, error)
