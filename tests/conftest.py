"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True)  # slow machines are no bug; same run, same cases
settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def mp20_dir() -> Path:
    """Folder with real MP-20 CSVs; tests that want it are skipped where there is none."""
    folder = Path(os.environ.get("CRYSTALVAE_MP20_DIR") or REPOSITORY.parent / "shared" / "mp_20")
    if not (folder / "val.csv").is_file():
        pytest.skip("no real MP-20 here: set CRYSTALVAE_MP20_DIR")
    return folder


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder with the fixtures of the published Chemeleon2 checkpoint format."""
    folder = REPOSITORY.parent / "shared" / "parity"
    if not folder.is_dir():
        pytest.skip("no parity fixtures here (../shared/parity)")
    return folder


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """Let wrong arguments reach the code itself, past the suite's annotation checks: for tests of its own errors."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, keep neighbours on one worker, so that what a module or session shares is made once, where it can."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what wants a GPU where there is none."""
    if item.get_closest_marker("cuda") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
