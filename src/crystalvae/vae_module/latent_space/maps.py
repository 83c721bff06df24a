"""Two-dimensional maps of embeddings, drawn as a PNG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.checks import check_choice
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError, OutputError
from crystalvae.vae_module.latent_space.inputs import property_values

Method = Literal["pca", "umap"]
_TAILS = 2.0
"""Percent of the values at either end that share the colours at the ends of the scale."""


def project(embeddings: Float[Tensor, "B D"], *, method: Method = "pca", seed: int = 0) -> Float[np.ndarray, "B 2"]:
    """Project embeddings to two dimensions, each of their numbers in units of its standard deviation first.

    `pca`: the two principal components (Pearson 1901), each with its largest entry positive. `umap`: UMAP (McInnes et
    al. 2018, arXiv:1802.03426) of the package umap-learn, with its own defaults and `seed`.

    Raises `ConfigError` for fewer than three crystals, and naming the extra where umap-learn is not installed.
    """
    check_choice("method", method, get_args(Method))
    if len(embeddings) < 3:
        raise ConfigError(f"map: got {len(embeddings)} crystals; expected at least 3")
    values = embeddings.double().to("cpu")
    spread = values.std(dim=0, correction=0)
    scaled = (values - values.mean(dim=0)) / torch.where(spread > 0, spread, torch.ones_like(spread))
    return _pca(scaled) if method == "pca" else _umap(scaled.numpy(), seed)


def latent_map(
    embed: Callable[[CrystalBatch], Float[Tensor, "B D"]],
    crystals: CrystalBatch,
    path: Path | str,
    *,
    color: str | None = None,
    method: Method = "pca",
    seed: int = 0,
) -> Float[Tensor, "B 2"]:
    """Draw a map of what `embed` makes of crystals, coloured by the property `color`, and return its points.

    Raises `ConfigError` for a property that the crystals do not have, listing those they have.
    """
    values = None if color is None else property_values(crystals, color, key="color")
    points = project(embed(crystals), method=method, seed=seed)
    draw_map(points, None if values is None else values.double().numpy(), path, label=color or "", method=method)
    return torch.from_numpy(points)


def _pca(scaled: Tensor) -> np.ndarray:
    axes = torch.linalg.svd(scaled, full_matrices=False).Vh[:2]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    points = scaled @ (axes * largest.sign()).T
    if points.shape[1] < 2:
        points = torch.cat((points, torch.zeros_like(points)), dim=1)
    return points.numpy()


def _umap(scaled: np.ndarray, seed: int) -> np.ndarray:
    try:
        from umap import UMAP  # pyright: ignore[reportMissingImports]  an extra
    except ImportError as error:
        raise ConfigError(
            "method=umap needs the package umap-learn: pip install 'crystalvae[umap]', or use method=pca"
        ) from error
    neighbours = min(15, len(scaled) - 1)
    reducer = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return np.asarray(reducer.fit_transform(scaled), dtype=np.float64)


def draw_map(
    points: Float[np.ndarray, "B 2"],
    values: Float[np.ndarray, "B"] | None,
    path: Path | str,
    *,
    label: str = "",
    method: Method = "pca",
) -> Path:
    """Draw a map as a PNG, coloured by `values` (crystals without one are grey), and return its path.

    The colours span the values but for the outer 2 % at either end. Raises `OutputError` where it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.8), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(2.0e4 / len(points), 2.0, 30.0))
    known = np.zeros(len(points), dtype=bool) if values is None else np.isfinite(values)
    axes.scatter(*points[~known].T, s=size, color="#9aa3ad", linewidths=0, rasterized=True)
    if values is not None and known.any():
        low, high = np.percentile(values[known], [_TAILS, 100.0 - _TAILS])
        order = np.random.default_rng(0).permutation(np.flatnonzero(known))  # no value on top of all others
        shown = axes.scatter(*points[order].T, s=size, c=values[order], vmin=low, vmax=high, linewidths=0)
        figure.colorbar(shown, ax=axes, label=label, extend="both")
    names = {"pca": "principal component", "umap": "UMAP"}
    axes.set(xlabel=f"{names[method]} 1", ylabel=f"{names[method]} 2", xticks=[], yticks=[])
    axes.spines[["top", "right"]].set_visible(False)
    target = Path(path).expanduser()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=160, format="png", metadata={"Software": None})
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error}); give another path") from error
    return target
