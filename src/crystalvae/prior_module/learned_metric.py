"""Distances between elements that a library of crystals teaches: those that exchange without a change of the gene."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from crystalvae.data.analogy import AnalogyLibrary, ElementMetric
from crystalvae.errors import DataError
from crystalvae.prior_module.element_similarity import MAX_ELEMENTS, ElementSimilarity
from crystalvae.prior_module.genes import KnownGenes

log = logging.getLogger(__name__)

_VERSION = 1


def learned_metric(library: AnalogyLibrary, *, epochs: int = 6, seed: int = 0) -> ElementMetric:
    """Return the metric with which crystals of `library`, each in turn left out, best tell each other's genes.

    All genes are found first (2 ms per crystal); learning takes about as long. See `ElementSimilarity.fit`. The result
    is kept beside the library's genes, and read from there where it is for the same crystals.
    """
    path = (
        None
        if library.genes.path is None
        else library.genes.path.with_suffix(f".metric-{_VERSION}-{epochs}-{seed}.safetensors")
    )
    similarity = ElementSimilarity()
    if path is None or not _load(similarity, path):
        known = [_known(elements, keys) for elements, keys in library.families() if elements.shape[1] <= MAX_ELEMENTS]
        library.genes.save()
        if not any(len(entry.patterns) < len(entry.elements) for entry in known):
            raise DataError("no two crystals of the library share a gene: there is nothing to learn from")
        losses = similarity.fit(known, epochs=epochs, seed=seed)
        log.info("distances of elements learned: -log p of a gene %.3f nats, %.3f at first", losses[-1], losses[0])
        if path is not None:
            _save(similarity, path)
    with torch.no_grad():
        apart = similarity.distances().double().numpy()
        scales = similarity.log_scales.exp().double().numpy()
    apart[0] = apart[:, 0] = np.nan  # no element
    return ElementMetric(apart, scales, decay=1.0)


def _known(elements: np.ndarray, keys: list[object]) -> KnownGenes:
    numbers: dict[object, int] = {}
    rows = [numbers.setdefault(key, len(numbers)) for key in keys]
    return KnownGenes(torch.from_numpy(elements), torch.tensor(rows), [(0, ())] * len(numbers))


def _load(similarity: ElementSimilarity, path: Path) -> bool:
    try:
        similarity.load_state_dict(load_file(path))
    except FileNotFoundError:
        return False
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        log.warning("the distances kept at %s cannot be read and are learned anew (%s)", path, error)
        return False
    return True


def _save(similarity: ElementSimilarity, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file({name: value.contiguous() for name, value in similarity.state_dict().items()}, partial)
        partial.replace(path)
    except OSError as error:
        log.warning("could not keep the distances at %s (%s)", path, error)
    finally:
        partial.unlink(missing_ok=True)
