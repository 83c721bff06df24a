"""The runner and its cache: order, resuming, what is found again and what is not, time limits, dead workers."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from crystalvae.errors import ConfigError, EvaluationError
from crystalvae.evaluation.parallel.attempt import Failure, attempt, is_repeatable
from crystalvae.evaluation.parallel.cache import FILE_NAME, ResultCache, content_hash
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.parallel.time_limit import TimedOutError, time_limit

CALLS: list[float] = []


def root(value: float) -> float:
    CALLS.append(value)
    return math.sqrt(value)


def until_seven(value: float) -> float:
    if value == 7:
        raise KeyboardInterrupt
    return root(value)


def described(item: tuple) -> dict:
    return {"sum": float(item[0].sum()), "pair": (1, math.nan)}


def end_the_process(_: float) -> float:
    os._exit(1)


def test_results_come_in_the_order_of_the_items_from_any_backend(tmp_path: Path):
    items = [float(i) for i in range(50)]
    expected = [math.sqrt(value) for value in items]
    for n_jobs, backend in ((1, "loky"), (2, "loky"), (2, "threading"), (2, "sequential")):
        runner = Runner(n_jobs=n_jobs, backend=backend, cache=ResultCache(tmp_path / backend), progress=False)
        for _ in range(2):
            assert runner.map(math.sqrt, items, description="roots", namespace=f"{n_jobs}", chunk=7) == expected


def test_equal_items_are_computed_once_and_a_second_run_computes_nothing(tmp_path: Path):
    runner = Runner(n_jobs=1, cache=ResultCache(tmp_path), progress=False)
    CALLS.clear()
    assert runner.map(root, [4.0, 9.0, 4.0], description="roots", namespace="a") == [2.0, 3.0, 2.0]
    assert CALLS == [4.0, 9.0]
    assert runner.map(root, [9.0, 16.0], description="roots", namespace="a") == [3.0, 4.0]
    assert CALLS == [4.0, 9.0, 16.0]
    assert runner.map(root, [9.0], description="roots", namespace="another") == [3.0]
    assert CALLS == [4.0, 9.0, 16.0, 9.0]


def test_a_stopped_run_resumes_where_it_was(tmp_path: Path):
    runner = Runner(n_jobs=1, cache=ResultCache(tmp_path), progress=False)
    CALLS.clear()
    items = [float(i) for i in range(10)]
    with pytest.raises(KeyboardInterrupt):
        runner.map(until_seven, items, description="roots", namespace="a", chunk=2)
    assert CALLS == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    CALLS.clear()
    assert runner.map(root, items, description="roots", namespace="a", chunk=2) == [math.sqrt(i) for i in items]
    assert CALLS == [6.0, 7.0, 8.0, 9.0]  # the chunk that was stopped is done again


def test_what_is_not_to_be_kept_is_computed_again(tmp_path: Path):
    runner = Runner(n_jobs=1, cache=ResultCache(tmp_path), progress=False)
    CALLS.clear()
    for _ in range(2):
        runner.map(root, [4.0, 9.0], description="roots", namespace="a", keep=lambda result: result > 2.5)
    assert CALLS == [4.0, 9.0, 4.0]


def test_fresh_and_kept_results_are_of_the_same_types(tmp_path: Path):
    runner = Runner(n_jobs=1, cache=ResultCache(tmp_path), progress=False)
    items = [(np.arange(3), "x")]
    fresh, kept = (runner.map(described, items, description="sums", namespace="a")[0] for _ in range(2))
    assert fresh["sum"] == kept["sum"] == 3.0
    assert isinstance(fresh["pair"], list)
    assert isinstance(kept["pair"], list)
    assert math.isnan(kept["pair"][1])


def test_content_decides_about_hashes_and_types_count():
    array = np.arange(6.0).reshape(2, 3)
    assert content_hash(array) == content_hash(np.asfortranarray(array))
    different = [1, 1.0, True, "1", b"1", None, [1], [[1]], (1, 1), {"a": 1}, array, array.T, array.reshape(3, 2)]
    different += [array.astype(np.float32), ["ab", "c"], ["a", "bc"], ["abc"]]
    hashes = [content_hash(value) for value in different]
    assert len(set(hashes)) == len(hashes)
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash((1, 2)) == content_hash([1, 2])
    with pytest.raises(TypeError, match="object"):
        content_hash(object())


def test_a_damaged_cache_is_set_aside_and_begun_again(tmp_path: Path):
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    runner = Runner(n_jobs=1, cache=ResultCache(tmp_path), progress=False)
    for _ in range(2):
        assert runner.map(root, [4.0], description="roots", namespace="a") == [2.0]
    CALLS.clear()
    assert runner.map(root, [4.0], description="roots", namespace="a") == [2.0]
    assert not CALLS
    assert (tmp_path / f"{FILE_NAME}.damaged").is_file()


def test_a_cache_that_cannot_be_written_to_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("in the way")
    runner = Runner(n_jobs=1, cache=ResultCache(tmp_path / "file"), progress=False)
    for _ in range(2):
        assert runner.map(root, [4.0], description="roots", namespace="a") == [2.0]
    assert "not kept" in caplog.text


def test_two_processes_can_share_a_cache(tmp_path: Path):
    code = (
        "import sys, math; sys.path.insert(0, sys.argv[1])\n"
        "from crystalvae.evaluation.parallel.runner import Runner\n"
        "from crystalvae.evaluation.parallel.cache import ResultCache\n"
        "runner = Runner(n_jobs=1, cache=ResultCache(sys.argv[2]), progress=False)\n"
        "for i in range(20):\n"
        "    runner.map(math.sqrt, [float(j) for j in range(i, i + 50)], description='', namespace='a')\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(REPOSITORY / "src"), str(tmp_path)]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        assert connection.execute("SELECT count(*) FROM results").fetchone() == (69,)
    connection.close()


def test_workers_need_no_torch():
    modules = (
        "crystal_arrays",
        "parallel.runner",
        "parallel.cache",
        "parallel.attempt",
        "parallel.time_limit",
        "matching.pairs",
        "matching.structure_matcher",
        "distributions.fingerprints",
        "symmetry.space_groups",
        "stability.hull",
        "stability.relaxation",
        "stability.potentials",
    )
    code = "import sys; sys.path.insert(0, sys.argv[1])\n" + "".join(
        f"import crystalvae.evaluation.{m}\n" for m in modules
    )
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(REPOSITORY / "src")], check=True, timeout=120)


def test_a_worker_that_dies_is_reported_with_what_to_do():
    with pytest.raises(EvaluationError, match="n_jobs"):
        Runner(n_jobs=2, progress=False).map(
            end_the_process, [1.0, 2.0, 3.0], description="ends", namespace="a", chunk=1
        )


def test_impossible_runners_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="n_jobs=0"):
        Runner(n_jobs=0)
    with pytest.raises(ConfigError, match=r"backend='lokiy'.*loky"):
        Runner(backend="lokiy")
    with pytest.raises(ConfigError, match="backend=dask"):
        Runner(address="tcp://somewhere:8786")
    monkeypatch.setattr("crystalvae.evaluation.parallel.runner.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"crystalvae\[ray\]"):
        Runner(backend="ray")


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_gives_the_same_results_in_the_same_order():
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    items = [float(number) for number in range(90)]
    try:
        found = Runner(n_jobs=1, backend="ray", progress=False).map(
            math.sqrt, items, description="roots", namespace="a", chunk=2
        )
    finally:
        ray.shutdown()
    assert found == [math.sqrt(item) for item in items]


def test_what_fails_or_takes_too_long_is_a_reason_and_not_the_end():
    def fail(error: Exception) -> None:
        raise error

    assert attempt(lambda: 2.0) == 2.0
    assert attempt(lambda: fail(ValueError("no\n cell"))) == Failure("ValueError: no cell")
    for error in (MemoryError("all of it"), OSError("no space"), RuntimeError("CUDA out of memory")):
        found = attempt(lambda error=error: fail(error))
        assert isinstance(found, Failure)
        assert not is_repeatable(found.to_dict())
    late = attempt(lambda: time.sleep(20), timeout_s=0.1, wanted="cell")
    assert late == Failure("no cell within 0.1 s", timed_out=True, passing=True)
    with pytest.raises(ConfigError, match="settings"):
        attempt(lambda: fail(ConfigError("wrong settings")))


@pytest.mark.parametrize("thread", [False, True])
def test_time_limits_hold_in_any_thread(thread: bool):
    outcomes: list[object] = []

    def work() -> None:
        started = time.perf_counter()
        try:
            with time_limit(0.2):
                while time.perf_counter() - started < 20:
                    math.sqrt(2.0)
        except TimedOutError:
            outcomes.append(time.perf_counter() - started)
        with time_limit(60):
            outcomes.append("in time")
        with time_limit(None):
            outcomes.append("no limit")

    if thread:
        worker = threading.Thread(target=work)
        worker.start()
        worker.join(timeout=30)
    else:
        work()
    assert isinstance(outcomes[0], float)
    assert outcomes[0] < 10
    assert outcomes[1:] == ["in time", "no limit"]


def test_junk_in_the_cache_is_computed_again(tmp_path: Path):
    """Texts of other results, other types and no JSON: none comes back for a key that it was not kept for."""
    cache = ResultCache(tmp_path)
    cache.put({b"a": "[1]", b"b": "[2]", b"c": "[3]", b"d": "[4]"})
    with closing(sqlite3.connect(cache.path)) as connection, connection:
        connection.execute(
            "UPDATE results SET value = (SELECT value FROM results WHERE key = ?) WHERE key = ?", (b"b", b"a")
        )
        connection.execute("UPDATE results SET value = 7 WHERE key = ?", (b"b",))
        connection.execute("UPDATE results SET value = '[3]' WHERE key = ?", (b"c",))
    assert cache.get([b"a", b"b", b"c", b"d"]) == {b"d": "[4]"}
    cache.put({b"a": "[5]"})
    assert cache.get([b"a", b"d"]) == {b"a": "[5]", b"d": "[4]"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_not_be_looked_into_is_done_without(tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0)
    cache = ResultCache(tmp_path / "closed" / "deeper")
    assert cache.get([b"a"]) == {}
    cache.put({b"a": "1"})


def test_a_cache_whose_folder_is_a_file_is_done_without(tmp_path: Path):
    (tmp_path / "file").touch()
    cache = ResultCache(tmp_path / "file")
    cache.put({b"a": "1"})
    assert cache.get([b"a"]) == {}
