"""Many small tasks, run in parallel, with results kept between runs.

Worker processes import this module, so it stays clear of torch: they start in a second and stay small.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from crystalvae.errors import ConfigError, EvaluationError
from crystalvae.evaluation.parallel.attempt import is_repeatable
from crystalvae.evaluation.parallel.cache import ResultCache, content_hash, dump, load

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)

Item = TypeVar("Item")

SAVE_SECONDS = 2.0
"""Results are written to the cache at least this often, so that a stopped run loses little."""
RAY_CHUNKS = 32
"""Chunks for each worker in one round of Ray's."""
EXTRAS = {"dask": "distributed", "ray": "ray"}
"""By backend: the package it needs. The extra of this package that installs it has the backend's name."""


@dataclass(frozen=True)
class Runner:
    """How many small tasks are run: processes, joblib backend, results kept between runs, progress bar.

    `n_jobs` is joblib's: -1 for one process per core, 1 for none but this one. `backend` is the name of any joblib
    backend; `loky` is a pool of processes on this machine, `dask` and `ray` send the tasks to a cluster: `address` is
    the Dask scheduler's (None: the current client, or the one that Dask's own settings name, else a cluster on this
    machine). With `cache`, results are found by content, so a second run is quick and a stopped one resumes.

    Raises `ConfigError` for an impossible `n_jobs` or `backend`.
    """

    n_jobs: int = -1
    backend: str = "loky"
    cache: ResultCache | None = None
    progress: bool = True
    address: str | None = None

    def __post_init__(self) -> None:
        if self.n_jobs == 0:
            raise ConfigError("n_jobs=0: expected a positive number of processes, or -1 for all cores")
        known = {"loky", "multiprocessing", "threading", "sequential", *EXTRAS}
        from joblib.parallel import BACKENDS

        if self.backend not in known | set(BACKENDS):
            expected = ", ".join(sorted(known | set(BACKENDS)))
            raise ConfigError(f"backend={self.backend!r}: joblib knows no such backend; expected one of {expected}")
        package = EXTRAS.get(self.backend, "joblib")
        if find_spec(package) is None:
            install = f'pip install "crystalvae[{self.backend}]"'
            raise ConfigError(f"backend={self.backend}: needs the package {package}: {install}, or use loky")
        if self.address is not None and self.backend != "dask":
            raise ConfigError(f"address={self.address}: only has a meaning with backend=dask, got {self.backend}")

    def map(
        self,
        function: Callable[[Item], Any],
        items: Sequence[Item],
        *,
        description: str,
        namespace: str,
        chunk: int = 16,
        keep: Callable[[Any], bool] = is_repeatable,
    ) -> list[Any]:
        """Return `function(item)` for each item, in the items' order.

        Args:
            function: Picklable, at the top level of a module free of torch; returns plain data that JSON can hold
                (tuples come back as lists, NaN as NaN), and reports what goes wrong with one item in its result
                instead of raising.
            items: Plain data: tuples, lists and numpy arrays. Equal items are computed once.
            description: What the progress bar says.
            namespace: Names the function, its settings and the versions of the libraries that decide: a result is
                found again under the hash of namespace and item, so whatever changes results must change this.
            chunk: How many items are sent to a worker at once.
            keep: Says of a result whether it goes into the cache; by default all do but those whose `passing` is true.
                What depends on the machine, such as running out of time, should not.

        Raises `EvaluationError` where a worker process dies; the results until then are kept.
        """
        keys = [content_hash(namespace, item) for item in items]
        known = {} if self.cache is None else self.cache.get(keys)
        results: dict[bytes, Any] = {key: load(text) for key, text in known.items()}
        missing: dict[bytes, Item] = {}
        for key, item in zip(keys, items, strict=True):
            if key not in results:
                missing.setdefault(key, item)
        if known:
            log.info("%s: %d of %d known from earlier runs", description, len(items) - len(missing), len(items))
        todo = list(missing.items())
        chunks = [todo[start : start + chunk] for start in range(0, len(todo), chunk)]
        with _progress_bar(self.progress) as bar:
            line = bar.add_task(description, total=len(todo), visible=bool(todo))
            saver = _Saver(self.cache, keep)
            try:
                for texts in self._run(function, chunks):
                    for key, text in texts:
                        results[key] = load(text)
                        saver.add(key, text, results[key])
                    bar.update(line, advance=len(texts))
            finally:
                saver.flush()
        return [results[key] for key in keys]

    def workers(self, tasks: int) -> int:
        """Return how many workers this many tasks would be spread over."""
        from joblib import effective_n_jobs

        with self._backend():
            return max(1, min(effective_n_jobs(self.n_jobs), tasks))

    def _run(
        self, function: Callable[[Item], Any], chunks: Sequence[list[tuple[bytes, Item]]]
    ) -> Iterator[list[tuple[bytes, str]]]:
        if not chunks:
            return
        workers = self.workers(len(chunks))
        if workers == 1 and self.backend not in EXTRAS:
            yield from (_run_chunk(function, part) for part in chunks)
            return
        from joblib import Parallel, delayed

        with self._backend():
            # Ray's backend returns lists only: in rounds, so that results are kept along the way.
            rounds = RAY_CHUNKS * workers if self.backend == "ray" else len(chunks)
            kind = "list" if self.backend == "ray" else "generator_unordered"
            parallel: Any = Parallel(n_jobs=workers, return_as=kind)
            try:
                for start in range(0, len(chunks), rounds):
                    yield from parallel(delayed(_run_chunk)(function, part) for part in chunks[start : start + rounds])
            except Exception as error:
                if type(error).__name__ not in {"TerminatedWorkerError", "BrokenProcessPool", "KilledWorker"}:
                    raise
                raise EvaluationError(
                    f"a worker process ended before its work was done ({' '.join(str(error).split())[:200]}). Usually "
                    "memory ran out: use fewer processes (n_jobs) and run again: the cache keeps what was computed"
                ) from error

    def _backend(self) -> AbstractContextManager[object]:
        from joblib import parallel_config

        if self.backend == "dask":
            _connect_dask(self.address)
        if self.backend == "ray":
            from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports]  an extra

            register_ray()
        if self.backend == "loky":
            return parallel_config(backend="loky", inner_max_num_threads=1)
        return nullcontext() if self.backend == "sequential" else parallel_config(backend=self.backend)


class _Saver:
    """Writes results to the cache every few seconds."""

    def __init__(self, cache: ResultCache | None, keep: Callable[[Any], bool]) -> None:
        self.cache, self.keep = cache, keep
        self.pending: dict[bytes, str] = {}
        self.saved = time.monotonic()

    def add(self, key: bytes, text: str, result: object) -> None:
        if self.cache is None or not self.keep(result):
            return
        self.pending[key] = text
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.cache is not None:
            self.cache.put(self.pending)
        self.pending, self.saved = {}, time.monotonic()


def _run_chunk(function: Callable[[Item], Any], part: list[tuple[bytes, Item]]) -> list[tuple[bytes, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say of single crystals, ten thousand times
        return [(key, dump(function(item))) for key, item in part]


def _progress_bar(shown: bool) -> Progress:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)


def _connect_dask(address: str | None) -> None:
    from distributed import Client, get_client  # pyright: ignore[reportMissingImports]  an extra

    try:
        get_client()
    except ValueError:
        Client(address)  # becomes the default client, which joblib's backend takes
