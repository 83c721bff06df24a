"""Clusters of crystals in a latent space: how large they are, and what elements and prototypes each holds."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.symmetry.space_groups import library_version, prototype_label
from crystalvae.evaluation.validity.structure import map_valid

_VERSION = 1
TOLERANCE = 0.1
"""Å, within which symmetry is looked for in prototypes."""


@dataclass(frozen=True)
class Cluster:
    """One cluster: its size, its most central crystal, and what is in it.

    `elements` gives for each element the share of the cluster's crystals that contain it, `enrichment` that share over
    the share in all crystals; `prototypes` counts its crystals by `prototype_label`, "" being those without one. Each
    is sorted, the largest share, enrichment or count first.
    """

    number: int
    size: int
    medoid: int
    elements: dict[str, float]
    enrichment: dict[str, float]
    prototypes: dict[str, int]


@dataclass(frozen=True, eq=False)
class Clustering:
    """k-means clusters of B crystals, the largest first.

    `labels` holds the cluster of each crystal, from 0, `distances` its distance to the cluster's centre, and `inertia`
    is the sum of their squares, in units of the standard deviation of each number of the embedding. `silhouette`
    (Rousseeuw 1987; of at most 5,000 crystals) is near 1 for clusters that are far from each other, near 0 for an even
    cloud. `prototype_information` is the adjusted mutual information of clusters and prototypes (Vinh et al. 2010): 0
    for clusters that say nothing of the prototype, 1 for clusters that are the prototypes. Neither is there for one
    cluster, nor a silhouette for as many clusters as crystals.
    """

    clusters: Sequence[Cluster]
    labels: Int[np.ndarray, "B"]
    distances: Float[np.ndarray, "B"]
    prototypes: Sequence[str]
    inertia: float
    silhouette: float | None
    prototype_information: float | None

    def summary(self) -> dict[str, Any]:
        """Return all but what there is for each crystal, as plain data."""
        numbers = {name: getattr(self, name) for name in ("inertia", "silhouette", "prototype_information")}
        return {**numbers, "clusters": [asdict(cluster) for cluster in self.clusters]}


def cluster_crystals(
    embeddings: Float[Tensor, "B D"],
    crystals: CrystalBatch,
    *,
    k: int,
    runner: Runner,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> Clustering:
    """Group crystals by k-means on their embeddings (Lloyd 1982, from k-means++, the best of 10 starts).

    Each number of the embedding counts in units of its standard deviation. `tolerance` (Å) is that of the symmetry in
    prototype labels, which `runner` computes.

    Raises `ConfigError` where k is not between 1 and the number of different embeddings.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score, silhouette_score

    if len(embeddings) != len(crystals):
        raise ConfigError(f"clusters: got {len(embeddings)} embeddings of {len(crystals)} crystals; expected one each")
    values = embeddings.detach().to("cpu").double().numpy()
    if not np.isfinite(values).all():
        raise ConfigError("clusters: got embeddings that are NaN or infinite; expected finite numbers")
    different = len(np.unique(values, axis=0))
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= different:
        raise ConfigError(f"clusters.k: got {k!r}; expected 1 to {different}, the number of different embeddings")
    spread = values.std(axis=0)
    values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    kmeans: Any = KMeans  # its annotations do not know that n_init may be a number
    found = kmeans(n_clusters=k, n_init=10, random_state=seed).fit(values)
    order = np.argsort(-np.bincount(found.labels_, minlength=k), kind="stable")
    labels = np.argsort(order)[found.labels_]
    distances = np.linalg.norm(values - found.cluster_centers_[order][labels], axis=1)
    prototypes = find_prototypes(crystals, runner=runner, tolerance=tolerance)
    silhouette, information = None, None
    if 1 < k < len(values):
        sampled = min(len(values), 5000)
        silhouette = float(silhouette_score(values, labels, sample_size=sampled, random_state=seed))
    if k > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # so many classes look like a regression target
            information = float(adjusted_mutual_info_score(prototypes, labels))
    present = _presence(crystals)
    return Clustering(
        clusters=[_describe(i, labels, distances, present, prototypes) for i in range(k)],
        labels=labels,
        distances=distances,
        prototypes=prototypes,
        inertia=float(found.inertia_),
        silhouette=silhouette,
        prototype_information=information,
    )


def find_prototypes(crystals: CrystalBatch, *, runner: Runner, tolerance: float = TOLERANCE) -> list[str]:
    """Return the `prototype_label` of each crystal, "" for those that are not valid or have none."""
    if not tolerance > 0:
        raise ConfigError(f"clusters.tolerance: got {tolerance}; expected a length in Å above 0")
    return map_valid(
        partial(prototype_label, tolerance=tolerance),
        crystals,
        runner=runner,
        otherwise=lambda _: "",
        description="prototypes",
        namespace=f"prototypes/{_VERSION}/{library_version('moyopy')}/{tolerance}",
        chunk=64,
    )


def _presence(crystals: CrystalBatch) -> np.ndarray:
    present = np.zeros((len(crystals), 119), dtype=bool)
    present[crystals.batch.cpu().numpy(), crystals.atom_types.cpu().numpy()] = True
    return present


def _describe(
    number: int, labels: np.ndarray, distances: np.ndarray, present: np.ndarray, prototypes: Sequence[str]
) -> Cluster:
    from pymatgen.core import Element

    rows: list[int] = np.flatnonzero(labels == number).tolist()
    inside, overall = present[rows].mean(axis=0), present.mean(axis=0)
    found = [int(z) for z in np.flatnonzero(inside) if z > 0]
    shares = {Element.from_Z(z).symbol: float(inside[z]) for z in found}
    enrichment = {Element.from_Z(z).symbol: float(inside[z] / overall[z]) for z in found}
    counts = Counter(prototypes[row] for row in rows)
    return Cluster(
        number=number,
        size=len(rows),
        medoid=rows[int(distances[rows].argmin())],
        elements=_sorted(shares),
        enrichment=_sorted(enrichment),
        prototypes=dict(counts.most_common()),
    )


def _sorted(values: dict[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda entry: (-entry[1], entry[0])))
