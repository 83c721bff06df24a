"""Several processes sample what one does: the same crystals, in the same order, in one folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from crystalvae.commands import ranks as processes
from crystalvae.commands.ranks import Ranks, joined_processes
from crystalvae.commands.sampling import sample_all
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.sampling import SampleRequest
from crystalvae.vae_module import VAEModule
from tests.samples import assert_same_crystals, tiny_module, tiny_prior
from tests.test_commands import in_process

SIZES = [3, 1, 7, 2, 2, 5, 4, 1, 3]


def draw(module: VAEModule, ranks: Ranks) -> CrystalBatch:
    temperature = 0.7 if module.prior is None else 1.0
    request = SampleRequest(number=len(SIZES), num_atoms=SIZES, batch_size=2, seed=5, temperature=temperature)
    return sample_all(module, request, ranks=ranks)


@pytest.mark.parametrize("make", [tiny_module, lambda: tiny_prior().vae_module], ids=["vae", "prior"])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_shares_add_up_to_what_one_process_draws(make: Any, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make()
    expected = draw(module, Ranks())
    shares: list[tuple[int, CrystalBatch]] = []

    def collect(self: Ranks, items: list[Any]) -> list[Any]:
        shares.extend(items)
        return shares if self.main else []

    monkeypatch.setattr(Ranks, "collect", collect)
    for rank in range(world_size - 1, 0, -1):
        assert len(draw(module, Ranks(rank, world_size))) == 0
    found = draw(module, Ranks(0, world_size))
    assert found.num_atoms.tolist() == SIZES
    assert_same_crystals(found, expected, atol=0.0)
    assert sorted(number for number, _ in shares) == list(range(5))


def test_one_process_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_processes() as ranks:
        assert ranks == processes.ALONE
        assert ranks.collect([1, 2]) == [1, 2]


def test_half_of_torchruns_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not"), joined_processes():
        pass


def test_torchrun_writes_the_files_of_one_process(tmp_path: Path) -> None:
    tiny_module().save_checkpoint(tmp_path / "model.ckpt")
    options = ["ckpt_path=model.ckpt", "num_samples=9", "batch_size=2"]
    options += ["num_atoms=[3,1,7,2,2,5,4,1,3]", "device=cpu"]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run += [str(REPOSITORY / "src" / "sample.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert "crystals in" in in_process("sample", *options, "output_dir=one", cwd=tmp_path)
    done = subprocess.run(
        [*run, *options, "output_dir=two"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("crystals in") == 1
    names = sorted(path.name for path in (tmp_path / "one").iterdir() if path.name != "samples.json")
    assert len(names) == 10
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir() if path.name != "samples.json")
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
