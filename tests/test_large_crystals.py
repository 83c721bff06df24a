"""Crystals of thousands of atoms pass in little memory, and get the numbers that small ones get."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY

from crystalvae.data import distances
from crystalvae.data.distances import shortest_distances


@pytest.mark.parametrize("own_images", [True, False])
@pytest.mark.parametrize("with_radii", [True, False])
def test_pairs_in_parts_give_the_distances_of_all_at_once(
    monkeypatch: pytest.MonkeyPatch, own_images: bool, with_radii: bool
) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 9, 40)
    lattices = rng.normal(size=(40, 3, 3)) + 3.0 * np.eye(3)  # skewed ones too
    coords, radii = rng.random((counts.sum(), 3)), rng.uniform(0.5, 2.0, counts.sum())
    options = {"radii": radii if with_radii else None, "own_images": own_images}
    expected = shortest_distances(lattices, coords, counts, **options)
    monkeypatch.setattr(distances, "LARGE", 2)
    monkeypatch.setattr(distances, "PAIRS_AT_ONCE", 10)
    np.testing.assert_allclose(shortest_distances(lattices, coords, counts, **options), expected, rtol=1e-9)


MANY = """
import resource, torch
from crystalvae.data.batch import CrystalBatch
from crystalvae.evaluation.validity.structure import describe
from tests.samples import random_crystals, tiny_module
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
large = random_crystals((6000,), seed=0)
large = large.replace(lattices=60.0 * torch.eye(3)[None])
crystals = CrystalBatch.cat([large, random_crystals((3, 5), seed=1)])
made = tiny_module().eval().reconstruct_crystals(crystals)
assert len(describe(crystals)) == 3
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units elsewhere")
def test_a_crystal_of_thousands_of_atoms_takes_no_gigabytes() -> None:
    """6,000 atoms beside small crystals, where scores of all heads and all pairs at once would take 3 GB and more."""
    path = os.pathsep.join((str(REPOSITORY / "src"), str(REPOSITORY)))
    done = subprocess.run(
        [sys.executable, "-c", MANY], capture_output=True, text=True, check=False, timeout=600, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1500, f"{done.stdout} MiB"
