"""Motifs are fitted to latents: by a hidden Markov model, a mixture of Gaussians or k-means; their number is chosen."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import track

from crystalvae.checks import check_count
from crystalvae.errors import ConfigError, DataError
from crystalvae.sequence_module.motifs.model import (
    CovarianceType,
    Method,
    MotifModel,
    check_latents,
    hidden_markov_model,
)
from crystalvae.sequence_module.motifs.statistics import row_shares, transition_counts

log = logging.getLogger(__name__)

Criterion = Literal["bic", "silhouette"]
MIN_VARIANCE = 1e-3
"""Added to the variances that are fitted, in units of the latents' overall variance."""
_TOLERANCE = 1e-2
"""A hidden Markov model has settled when an iteration gains less log likelihood than this."""
_LOCAL_WINDOWS = 31
_SILHOUETTE_WINDOWS = 5000


def fit_motifs(
    latents: Float[np.ndarray, "W L"],
    lengths: Sequence[int],
    num_motifs: int,
    *,
    method: Method = "hmm",
    covariance: CovarianceType = "full",
    seed: int = 0,
    restarts: int = 1,
    iterations: int = 100,
    overlap: int = 1,
) -> MotifModel:
    """Fit motifs to the latents of windows; `lengths` are how many are each trajectory's, in order.

    hmm: a hidden Markov model with Gaussian emissions (Rabiner 1989), gmm: a mixture of Gaussians, kmeans: k-means
    (Lloyd 1982). The best of `restarts` beginnings is kept; of hmm there are two each, sorted by where latents are and
    by how they move. `overlap`: so many neighbouring windows share frames, as a rule the frames of a window; hmm then
    takes them for one observation, see `hidden_markov_model`.
    Raises `DataError` for more motifs than windows and for latents that are all alike or not finite.
    """
    values = check_latents(latents, lengths)
    check_count("num_motifs", num_motifs)
    check_count("restarts", restarts)
    check_count("iterations", iterations)
    check_count("overlap", overlap)
    _check_method(method, covariance)
    distinct = len(np.unique(values, axis=0))
    if num_motifs > distinct:
        raise DataError(f"num_motifs: got {num_motifs}; there are only {distinct} different windows, of {len(values)}")
    origin = values.mean(axis=0)
    scale = float(np.sqrt(values.var(axis=0).mean()))
    if scale <= 1e-9 * max(1.0, float(np.abs(origin).max())):
        raise DataError(f"the latents of all {len(values)} windows are alike: there are no motifs to tell apart")
    scaled = (values - origin) / scale
    fit = {"hmm": _fit_hmm, "gmm": _fit_gmm, "kmeans": _fit_kmeans}[method]
    parts = fit(scaled, [n for n in lengths if n], num_motifs, covariance, seed, restarts, iterations, overlap)
    model = MotifModel(method=method, origin=origin, scale=scale, overlap=overlap, **parts)
    counts = np.bincount(model._label(scaled, lengths)[0], minlength=num_motifs)
    return _reordered(model, np.argsort(-counts, kind="stable"))


def choose_num_motifs(
    latents: Float[np.ndarray, "W L"],
    lengths: Sequence[int],
    candidates: Sequence[int],
    *,
    method: Method = "hmm",
    criterion: Criterion = "bic",
    covariance: CovarianceType = "full",
    seed: int = 0,
    restarts: int = 1,
    iterations: int = 100,
    overlap: int = 1,
) -> tuple[int, dict[int, float]]:
    """Return the best number of motifs among candidates, and the score of each.

    bic: the Bayesian information criterion (Schwarz 1978) of hmm or gmm, lowest best; without `overlap` it takes
    windows that share frames for independent ones and errs towards many motifs. silhouette: the mean
    silhouette (Rousseeuw 1987) of at most 5,000 windows, highest best. Candidates of more motifs than distinct windows
    are left out; `ConfigError` where none is left, and for k-means with bic, which it has none of.
    """
    if criterion not in get_args(Criterion):
        raise ConfigError(f"criterion: got {criterion!r}; expected {' or '.join(get_args(Criterion))}")
    if criterion == "bic" and method == "kmeans":
        raise ConfigError("criterion: k-means has no likelihood and so no bic; expected silhouette")
    values = check_latents(latents, lengths)
    least = 1 if criterion == "bic" else 2
    distinct = len(np.unique(values, axis=0))
    most = distinct if criterion == "bic" else distinct - 1
    usable = sorted({int(count) for count in candidates if least <= count <= most})
    if not usable:
        raise ConfigError(
            f"num_motifs: got the candidates {list(candidates)}; expected numbers from {least} to {most}, as there are "
            f"{distinct} different windows"
        )
    rows = np.random.default_rng(seed).permutation(len(values))[:_SILHOUETTE_WINDOWS]
    scores: dict[int, float] = {}
    for count in track(usable, "number of motifs", console=Console(stderr=True), transient=True):
        options = {"method": method, "covariance": covariance, "seed": seed, "restarts": restarts}
        model = fit_motifs(values, lengths, count, iterations=iterations, overlap=overlap, **options)
        if criterion == "bic":
            scores[count] = model.bic(values, lengths, covariance=covariance)
        else:
            labels = model.label(values, lengths)[0][rows]
            scores[count] = _silhouette(values[rows], labels)
    best = min(scores, key=lambda count: scores[count] if criterion == "bic" else -scores[count])
    log.info("%d motifs, by %s: %s", best, criterion, ", ".join(f"{k}: {v:.5g}" for k, v in scores.items()))
    return best, scores


def _silhouette(values: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(values, labels)) if 1 < len(np.unique(labels)) < len(values) else -1.0


def _fit_kmeans(
    scaled: np.ndarray,
    _lengths: Sequence[int],
    count: int,
    _kind: str,
    seed: int,
    restarts: int,
    iterations: int,
    _overlap: int,
) -> dict[str, np.ndarray]:
    from sklearn.cluster import KMeans

    options: Any = {"n_init": restarts}  # its stubs want a word
    model = KMeans(count, max_iter=iterations, random_state=seed, **options).fit(scaled)
    return {"means": np.asarray(model.cluster_centers_, dtype=np.float64)}


def _fit_gmm(
    scaled: np.ndarray,
    _lengths: Sequence[int],
    count: int,
    kind: str,
    seed: int,
    restarts: int,
    iterations: int,
    _overlap: int,
) -> dict[str, np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    model: Any = GaussianMixture(
        count, covariance_type=kind, reg_covar=MIN_VARIANCE, n_init=restarts, max_iter=iterations, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said below
        model.fit(scaled)
    _tell_unless(model.converged_, iterations)
    return {"means": model.means_, "covariances": _as_full(model.covariances_), "weights": model.weights_}


def _fit_hmm(
    scaled: np.ndarray,
    lengths: Sequence[int],
    count: int,
    kind: str,
    seed: int,
    restarts: int,
    iterations: int,
    overlap: int,
) -> dict[str, np.ndarray]:
    best: Any = None
    best_score = -np.inf
    # Motifs may differ in where latents are, or in how much they move about the same place: both are tried.
    given = (scaled, _local_statistics(scaled, lengths))
    for restart, sorted_by in itertools.product(range(restarts), given):
        options: dict[str, Any] = {
            "min_covar": MIN_VARIANCE,
            "n_iter": iterations,
            "tol": _TOLERANCE,
            "init_params": "",
        }
        if kind == "full":  # as if one more window with a small variance belonged to each motif: some may have none
            size = scaled.shape[1]
            options |= {"covars_prior": MIN_VARIANCE * np.eye(size), "covars_weight": size + 1}
        model = hidden_markov_model(count, overlap=overlap, covariance_type=kind, **options)
        beginning = _begin(scaled, lengths, count, seed + restart, sorted_by)
        model.means_, covariances, model.startprob_, model.transmat_ = beginning
        model.covars_ = covariances if kind == "full" else np.stack([np.diag(matrix) for matrix in covariances])
        with _quiet("hmmlearn"):  # convergence is said below, rows without transitions are seen to
            model.fit(scaled, lengths)
            # A motif that no path leaves has no row: it stays.
            left = model.transmat_.sum(axis=1, keepdims=True) > 0
            model.transmat_ = np.where(left, model.transmat_, np.eye(count))
            score = model.score(scaled, lengths)
        if best is None or score > best_score:
            best, best_score = model, score
    _tell_unless(best.monitor_.converged, iterations)
    return {
        "means": best.means_,
        "covariances": np.asarray(best.covars_),  # matrices, of both kinds
        "weights": best.startprob_,
        "transitions": best.transmat_,
    }


def _local_statistics(scaled: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Return mean and log variance of each latent over the windows around each, in units of their deviations."""
    from scipy.ndimage import uniform_filter1d

    parts = []
    for part in np.split(scaled, np.cumsum(lengths)[:-1]):
        mean = uniform_filter1d(part, _LOCAL_WINDOWS, axis=0, mode="nearest")
        variance = uniform_filter1d((part - mean) ** 2, _LOCAL_WINDOWS, axis=0, mode="nearest")
        parts.append(np.concatenate((mean, np.log(variance + MIN_VARIANCE)), axis=1))
    values = np.concatenate(parts)
    return (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), MIN_VARIANCE)


def _begin(
    scaled: np.ndarray, lengths: Sequence[int], count: int, seed: int, sorted_by: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return centres, covariances, first motifs and transitions as k-means has them, no transition impossible.

    K-means sorts windows by the numbers `sorted_by`, one row a window.

    From one covariance for all motifs and transitions that are all alike the fit stays at worse solutions.
    """
    from sklearn.cluster import KMeans

    options: Any = {"n_init": 10}  # its stubs want a word
    labels = KMeans(count, random_state=seed, **options).fit_predict(sorted_by)
    parts = [scaled[labels == motif] for motif in range(count)]
    centred = [part - part.mean(axis=0) for part in parts]
    floor = MIN_VARIANCE * np.eye(scaled.shape[1])
    sequences = np.split(labels, np.cumsum(lengths)[:-1])
    counts = 1.0 + transition_counts(sequences, count)
    first = 1.0 + np.bincount([entry[0] for entry in sequences], minlength=count)
    return (
        np.stack([part.mean(axis=0) for part in parts]),
        np.stack([part.T @ part / len(part) + floor for part in centred]),
        first / first.sum(),
        row_shares(counts),
    )


def _tell_unless(converged: bool, iterations: int) -> None:
    if not converged:
        log.warning("motifs: the fit still improves after %d iterations; more may give better ones", iterations)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _as_full(covariances: np.ndarray) -> np.ndarray:
    return covariances if covariances.ndim == 3 else np.stack([np.diag(values) for values in covariances])


def _reordered(model: MotifModel, order: np.ndarray) -> MotifModel:
    parts = {name: getattr(model, name) for name in ("means", "covariances", "weights")}
    moved = {name: None if values is None else values[order] for name, values in parts.items()}
    transitions = None if model.transitions is None else model.transitions[np.ix_(order, order)]
    return replace(model, transitions=transitions, **moved)


def _check_method(method: str, covariance: str) -> None:
    if method not in get_args(Method):
        raise ConfigError(f"method: got {method!r}; expected one of {', '.join(get_args(Method))}")
    if covariance not in get_args(CovarianceType):
        raise ConfigError(f"covariance: got {covariance!r}; expected full or diag")
