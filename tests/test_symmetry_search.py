"""Where moyo is asked, and where it must not be: cells hardly larger than the tolerance, in which it never ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.canonical import canonical
from crystalvae.data.symmetry import moyo_dataset, shortest_translation
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.symmetry.section import find_space_groups

ROOT = Path(__file__).resolve().parents[1]
ENDLESS = np.array([[0.64004219, 0.0, 0.0], [0.26100287, 1.1787132, 0.0], [0.0921523, -0.5789243, 2.65102148]])
"""A sample of an untrained latent space: moyo 0.21 searches it for ever at 0.1 Å, and finds P-1 at 0.05 Å."""


def one_atom(lattice: np.ndarray) -> CrystalBatch:
    return CrystalBatch(
        atom_types=torch.tensor([80]),
        frac_coords=torch.zeros(1, 3),
        lattices=torch.as_tensor(lattice, dtype=torch.float32)[None],
        num_atoms=torch.tensor([1]),
    )


def test_a_cell_like_the_tolerance_has_no_symmetry_and_is_not_searched():
    with pytest.raises(ValueError, match=r"shortest lattice vector is 0\.64 Å"):
        moyo_dataset(np.array([80]), np.zeros((1, 3)), ENDLESS, 0.1)
    groups = find_space_groups(one_atom(ENDLESS), runner=Runner(n_jobs=1, progress=False), tolerances=(0.1, 0.05))
    assert np.asarray(groups).reshape(-1).tolist() == [0, 2]


def test_such_a_crystal_stays_as_it_is_in_canonical_form():
    assert bool(canonical(one_atom(ENDLESS)).properties["space_group"].isnan().all())
    assert float(canonical(one_atom(5 * ENDLESS)).properties["space_group"][0]) == 2


def test_real_cells_are_searched():
    found = moyo_dataset(np.array([11, 17]), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]), 4.0 * np.eye(3), 0.1)
    assert found.number == 221


@pytest.mark.parametrize(
    ("lattice", "expected"),
    [
        (np.diag([3.0, 2.0, 4.0]), 2.0),
        (np.array([[4.0, 0, 0], [3.5, 1.0, 0], [0, 0, 5.0]]), np.hypot(0.5, 1.0)),  # b - a
        (np.zeros((3, 3)), 0.0),
        (np.ones((3, 3)), 0.0),
    ],
)
def test_shortest_translation(lattice: np.ndarray, expected: float):
    assert shortest_translation(lattice) == pytest.approx(expected)


def test_numbers_that_are_not_finite_are_no_lattice():
    lattice = np.diag([np.nan, 1.0, 1.0])
    assert np.isnan(shortest_translation(lattice))
    with pytest.raises(ValueError, match="shortest lattice vector is nan"):
        moyo_dataset(np.array([1]), np.zeros((1, 3)), lattice, 0.1)


def test_workers_need_no_torch():
    lines = ("import sys", "sys.path.insert(0, sys.argv[1])", "import crystalvae.data.symmetry")
    code = "\n".join((*lines, "assert 'torch' not in sys.modules"))
    subprocess.run([sys.executable, "-c", code, str(ROOT / "src")], check=True, timeout=120)
