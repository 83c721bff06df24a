"""Where the device's memory is full, training says which batch size fits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_commands import TINY, compose, table  # noqa: F401  table is a fixture

from crystalvae.commands.out_of_memory import memory_is_full
from crystalvae.commands.train import train
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import TrainingError
from crystalvae.vae_module.vae import CrystalVAE
from crystalvae.vae_module.vae_module import VAEModule

pytestmark = pytest.mark.filterwarnings("ignore")  # what Lightning says of tiny runs


@pytest.fixture
def options(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:  # noqa: F811
    monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(tmp_path / "cache"))
    data = [f"data.source.data_dir={table}", "data.batch_size=24", f"output_dir={tmp_path / 'run'}"]
    return [*TINY, *data, "trainer.max_epochs=1", "trainer.accumulate_grad_batches=2"]


def fill_memory(monkeypatch: pytest.MonkeyPatch, *, above: int) -> list[int]:
    """Let the model take no more than so many crystals at once; returns how many it was given, each time."""
    encode, seen = CrystalVAE.encode, []

    def limited(self: CrystalVAE, crystals: CrystalBatch) -> Any:
        seen.append(len(crystals))
        if len(crystals) > above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return encode(self, crystals)

    monkeypatch.setattr(CrystalVAE, "encode", limited)
    return seen


@pytest.mark.parametrize("objective", [[], ["vae_module/objective/schedule=linear"]], ids=["constant", "schedule"])
def test_the_batch_size_that_fits_is_told(
    options: list[str], objective: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fill_memory(monkeypatch, above=7)
    with pytest.raises(TrainingError) as found:
        train(compose("train_vae", [*options, *objective]))
    assert seen == [24, 24, 12, 6]
    assert str(found.value) == (
        "out of memory: data.batch_size=24 is too much for cpu; 6 fits, as was tried just now, with a tenth of the "
        "memory to spare: data.batch_size=6 trainer.accumulate_grad_batches=8 follows the same gradients"
    )
    assert found.value.__context__ is None  # its traceback would keep the step's tensors alive


def test_a_crystal_alone_may_be_too_much(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fill_memory(monkeypatch, above=0)
    with pytest.raises(TrainingError, match="and so is a single one; take a narrower model"):
        train(compose("train_vae", options))
    assert seen == [24, 24, 12, 6, 3, 1]


def test_what_is_full_may_be_validation(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: VAEModule, *_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VAEModule, "validation_step", full)
    with pytest.raises(TrainingError, match=r"a step with data.batch_size=24 fits.*lower data.eval_batch_size"):
        train(compose("train_vae", options))


@pytest.mark.usefixtures("without_type_checks")
def test_several_processes_try_nothing() -> None:
    trainer: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    error = memory_is_full(trainer, None, SimpleNamespace(batch_size=64))  # type: ignore[arg-type]
    assert "data.batch_size=64 is too much for cpu; halve it, or run it with trainer.devices=1" in str(error)
