"""A model of motifs: what a motif is, and which motif a window belongs to. Plain data, kept as JSON.

Letters: W windows of all trajectories one after another, L latent dimensions, K motifs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from crystalvae.checks import check_count
from crystalvae.errors import CheckpointError, ConfigError, DataError

Method = Literal["hmm", "gmm", "kmeans"]
CovarianceType = Literal["full", "diag"]
FORMAT_VERSION = 1
_LEAST_VARIANCE, _LEAST_SHARE = 1e-6, 1e-8
"""Of the covariances of a hidden Markov model in any direction, and of the largest: hmmlearn refuses singular ones."""


@dataclass(frozen=True, eq=False)
class MotifModel:
    """What a motif is: centres `means` (K, L) of latents that were brought to mean 0 and overall variance 1.

    That is done by `origin` (L,) and `scale`. `covariances` (K, L, L) belong to hmm and gmm, `weights` (K,) to gmm and,
    as the probability of each motif in a first window, to hmm, `transitions` (K, K) to hmm. `overlap` neighbouring
    windows share frames and count as one observation of hmm, see `hidden_markov_model`. Motifs are numbered by their
    use in what they were fitted to, the most used first.
    """

    method: Method
    origin: Float[np.ndarray, "L"]
    scale: float
    means: Float[np.ndarray, "K L"]
    covariances: Float[np.ndarray, "K L L"] | None = None
    weights: Float[np.ndarray, "K"] | None = None
    transitions: Float[np.ndarray, "K K"] | None = None
    overlap: int = 1

    @property
    def num_motifs(self) -> int:
        """Number of motifs K."""
        return len(self.means)

    @property
    def centres(self) -> Float[np.ndarray, "K L"]:
        """The centre of each motif in the latent space."""
        return self.origin + self.scale * self.means

    def label(
        self, latents: Float[np.ndarray, "W L"], lengths: Sequence[int]
    ) -> tuple[Int[np.ndarray, "W"], Float[np.ndarray, "W"]]:
        """Return the motif of each window and the confidence in it, in [0, 1].

        `lengths` are the windows of each trajectory: no transition is assumed where one ends. hmm: the likeliest path
        (Viterbi 1967), its confidence the probability of the motif given the whole trajectory; gmm: the likeliest
        motif and its probability; kmeans: the nearest centre, and 1 - d / d₂ with the distances to it and the second.
        Raises `DataError` for latents of other dimensions or that are not finite.
        """
        values = check_latents(latents, lengths)
        if values.shape[1] != len(self.origin):
            raise DataError(f"latents: got {values.shape[1]} dimensions; these motifs have {len(self.origin)}")
        return self._label((values - self.origin) / self.scale, lengths)

    def _label(self, scaled: np.ndarray, lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        if self.method == "kmeans":
            distances = np.linalg.norm(scaled[:, None] - self.means, axis=2)
            labels = distances.argmin(axis=1)
            if self.num_motifs == 1:
                return labels, np.ones(len(labels))
            nearest, second = np.sort(distances, axis=1)[:, :2].T
            return labels, 1.0 - nearest / np.maximum(second, np.finfo(float).tiny)
        if self.method == "gmm":
            shares = _softmax(self._log_densities(scaled) + np.log(self._of("weights")))
            labels = shares.argmax(axis=1)
        else:
            model = self._hidden_markov()
            used = [length for length in lengths if length]
            labels = model.decode(scaled, used)[1]
            shares = model.predict_proba(scaled, used)
        return labels, shares[np.arange(len(labels)), labels]

    def bic(
        self, latents: Float[np.ndarray, "W L"], lengths: Sequence[int], *, covariance: CovarianceType = "full"
    ) -> float:
        """Return -2 log likelihood + parameters · log W for latents; `ConfigError` for k-means, which has none.

        `covariance` says how many numbers of the covariances were free. W is the number of windows over `overlap`.
        """
        scaled = (check_latents(latents, lengths) - self.origin) / self.scale
        count, size = self.means.shape
        free = count * size + count * (size * (size + 1) // 2 if covariance == "full" else size) + count - 1
        if self.method == "hmm":
            likelihood = float(self._hidden_markov().score(scaled, [length for length in lengths if length]))
            free += count * (count - 1)
        elif self.method == "gmm":
            joint = self._log_densities(scaled) + np.log(self._of("weights"))
            likelihood = float(np.logaddexp.reduce(joint, axis=1).sum()) / self.overlap
        else:
            raise ConfigError("k-means has no likelihood and so no bic")
        return -2.0 * likelihood + free * math.log(max(len(scaled) / self.overlap, 1.0))

    def _of(self, name: str) -> np.ndarray:
        values = getattr(self, name)
        assert values is not None  # noqa: S101  a method's model has what it needs
        return values

    def _log_densities(self, scaled: np.ndarray) -> np.ndarray:
        from scipy.stats import multivariate_normal

        parts = zip(self.means, self._of("covariances"), strict=True)
        return np.stack([multivariate_normal(m, c).logpdf(scaled).reshape(-1) for m, c in parts], 1)

    def _hidden_markov(self) -> Any:
        model = hidden_markov_model(self.num_motifs, overlap=self.overlap, covariance_type="full")
        model.n_features = self.means.shape[1]
        model.startprob_, model.transmat_ = self._of("weights"), self._of("transitions")
        model.means_, model.covars_ = self.means, self._of("covariances")
        return model

    # ---- as plain data -----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return it as lists and numbers."""
        arrays = {name: getattr(self, name) for name in ("origin", "means", "covariances", "weights", "transitions")}
        plain = {name: None if values is None else values.tolist() for name, values in arrays.items()}
        numbers = {"scale": self.scale, "overlap": self.overlap}
        return {"format_version": FORMAT_VERSION, "method": self.method, **numbers, **plain}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> MotifModel:
        """Return what `to_dict` described; `CheckpointError` for anything else."""
        try:
            if content["format_version"] != FORMAT_VERSION or content["method"] not in get_args(Method):
                raise CheckpointError(
                    f"motifs: got format version {content['format_version']!r}, method {content['method']!r}; expected "
                    f"version {FORMAT_VERSION} and one of {', '.join(get_args(Method))}"
                )
            names = ("origin", "means", "covariances", "weights", "transitions")
            arrays = {n: None if content[n] is None else np.asarray(content[n], dtype=np.float64) for n in names}
            numbers = {"scale": float(content["scale"]), "overlap": check_count("overlap", content.get("overlap", 1))}
            model = cls(method=content["method"], **numbers, **arrays)  # pyright: ignore[reportArgumentType]
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(f"motifs: not a description of motifs ({error!r})") from error
        model._check_shapes()
        return model

    def _check_shapes(self) -> None:
        count, size = self.means.shape if self.means.ndim == 2 else (0, 0)
        expected: dict[str, tuple[int, ...] | None] = {
            "origin": (size,),
            "covariances": None if self.method == "kmeans" else (count, size, size),
            "weights": None if self.method == "kmeans" else (count,),
            "transitions": (count, count) if self.method == "hmm" else None,
        }
        for name, shape in expected.items():
            values = getattr(self, name)
            got = None if values is None else values.shape
            if got != shape or (values is not None and not np.isfinite(values).all()):
                raise CheckpointError(f"motifs: {name} has shape {got}; expected finite values of shape {shape}")

    def save(self, path: Path | str) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.to_dict()), encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> MotifModel:
        """Read what `save` wrote; `CheckpointError` for a file that is missing or something else."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: no motifs to read ({error})") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: not a description of motifs")
        return cls.from_dict(content)


def hidden_markov_model(count: int, *, overlap: int, **options: Any) -> Any:
    """Return hmmlearn's hidden Markov model with Gaussian emissions, for windows of which `overlap` share frames.

    Neighbouring windows tell nearly the same. Taken for as many independent observations, they outweigh the
    transitions, and the path follows every fluctuation; so the log likelihood of a window is divided by `overlap`.
    """
    from hmmlearn.hmm import GaussianHMM

    class OverlappingWindows(GaussianHMM):
        def _compute_log_likelihood(self, X: np.ndarray) -> np.ndarray:  # noqa: N803  hmmlearn's name
            return super()._compute_log_likelihood(X) / overlap

        def _do_mstep(self, stats: dict[str, Any]) -> None:
            super()._do_mstep(stats)
            if self.covariance_type == "full":
                self._covars_ = _positive(self._covars_)

    return OverlappingWindows(count, **options)


def _positive(covariances: np.ndarray) -> np.ndarray:
    """Return covariances that are positive definite, also where windows fill fewer dimensions than latents have."""
    values, vectors = np.linalg.eigh(0.5 * (covariances + covariances.swapaxes(1, 2)))
    # A motif that hardly any window belongs to has huge variances, beside which small ones are lost to rounding.
    least = np.maximum(_LEAST_VARIANCE, _LEAST_SHARE * values.max(axis=1, keepdims=True))
    raised = np.einsum("kij,kj,klj->kil", vectors, np.maximum(values, least), vectors)
    return np.where((values < least).any(axis=1)[:, None, None], raised, covariances)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def check_latents(latents: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Return latents (W, L) in double precision; `DataError` for what does not fit `lengths` or is not finite."""
    values = np.asarray(latents, dtype=np.float64)
    if values.ndim != 2 or len(values) == 0:
        raise DataError(
            f"latents: got shape {values.shape}; expected (windows, latent dimensions), at least one window"
        )
    if sum(lengths) != len(values) or min(lengths, default=0) < 0:
        raise DataError(f"lengths: got {list(lengths)}; expected counts that add up to {len(values)} windows")
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise DataError(f"latents: window {int(np.argmin(finite))} is NaN or infinite")
    return values
