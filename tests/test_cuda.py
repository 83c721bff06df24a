"""What has to hold on a GPU, run by `make gpu`; marked cuda, and skipped where there is none.

Tests of a `device` run on the CPU as well, so that they are tried themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from test_commands import TINY, command, losses, table  # noqa: F401  table is a fixture

from crystalvae.data.augmentation import Augmentation
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.dataset_file import load_dataset, save_dataset
from crystalvae.data.loader import CrystalLoader
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.layers.attention import PaddingPlan, attend
from tests.samples import assert_same_crystals, random_crystals, tiny_module, tiny_prior

HAS_CUDA = torch.cuda.is_available()
SIZES = (4, 1, 7, 2, 20, 6, 3, 12)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
on_each_device = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def exact_products() -> Any:
    """Matrix products in float32, not TF32, so that devices can be compared."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@on_each_device
def test_rotations_under_bfloat16_are_rotations(device: str) -> None:
    batch = TrainingBatch.whole(random_crystals(SIZES), seed=(0, 1, 2)).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        seen = Augmentation(translate=True, rotate=True)(batch, batch.generator())
    assert (seen.device.type, seen.lattices.dtype, seen.frac_coords.dtype) == (device, torch.float32, torch.float32)
    torch.testing.assert_close(seen.lengths, batch.crystals.lengths, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(seen.angles, batch.crystals.angles, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(torch.linalg.det(seen.lattices), torch.linalg.det(batch.crystals.lattices))
    assert not torch.allclose(seen.lattices, batch.crystals.lattices, atol=0.1)


@on_each_device
@pytest.mark.parametrize("sizes", [SIZES, (3, 3, 3), (70, 5, 64, 1)], ids=["mixed", "equal", "long-rows"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=["f32", "bf16"])
def test_packed_attention_is_that_of_padded_rows_and_of_the_cpu(
    device: str, sizes: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    crystals = CrystalBatch.empty(sizes)
    generator = torch.Generator().manual_seed(0)
    qkv, weights = (torch.randn(sum(sizes), width, generator=generator) for width in (3 * 32, 32))

    def values_and_gradient(where: str, packed: bool, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        plan = PaddingPlan.laid_out(crystals.to(where), packed=packed)
        x = qkv.to(where, kind, copy=True).requires_grad_()
        mixed = attend(x, plan, heads=2)
        (mixed.float() * weights.to(where)).sum().backward()
        assert x.grad is not None
        return mixed.detach().float().cpu(), x.grad.float().cpu()

    expected = values_and_gradient("cpu", False, torch.float32)
    for packed in (True, False):
        found = values_and_gradient(device, packed, dtype)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@on_each_device
def test_losses_and_gradients_are_those_of_the_cpu(device: str) -> None:
    crystals = random_crystals(SIZES)
    found = {}
    for where in ("cpu", device):
        module = tiny_module().to(where)
        values = module.losses(TrainingBatch.whole(crystals.to(where)), training=False)
        values["loss"].backward()
        gradients = torch.cat([p.grad.flatten().cpu() for p in module.parameters() if p.grad is not None])
        found[where] = {name: float(value.detach()) for name, value in values.items()}, gradients
    assert found[device][0] == pytest.approx(found["cpu"][0], rel=1e-4, abs=1e-5)
    torch.testing.assert_close(found[device][1], found["cpu"][1], atol=1e-3, rtol=1e-3)


@on_each_device
def test_a_step_in_bfloat16_is_near_one_in_float32(device: str) -> None:
    crystals, module = random_crystals(SIZES).to(device), tiny_module().to(device)
    values = []
    for half in (False, True):
        module.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            loss = module.losses(TrainingBatch.whole(crystals, seed=(0, 0, 3)), training=True)["loss"]
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in module.parameters() if p.grad is not None)
        values.append(float(loss.detach()))
    assert values[1] == pytest.approx(values[0], rel=5e-2)


# ---- data ------------------------------------------------------------------------------------------------------------


@on_each_device
@pytest.mark.parametrize("mapped", [False, True])
def test_batches_are_the_same_wherever_the_crystals_live(device: str, mapped: bool, tmp_path: Path) -> None:
    crystals = random_crystals(SIZES)
    expected = list(CrystalLoader(crystals, batch_size=3, shuffle=True))
    source = crystals.to(device)
    if mapped:  # batches are gathered from the file, and moved
        save_dataset(
            CrystalDataset(crystals, [str(number) for number in range(len(SIZES))]), tmp_path / "set.safetensors"
        )
        source = load_dataset(tmp_path / "set.safetensors").crystals
    found = [batch.to(device) for batch in CrystalLoader(source, batch_size=3, shuffle=True)]
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.crystals.device.type == device
        assert ours.indices.tolist() == theirs.indices.tolist()
        assert_same_crystals(ours.crystals.to("cpu"), theirs.crystals, atol=0.0)


# ---- samples ---------------------------------------------------------------------------------------------------------


def draw(device: str, seed: int, **options: Any) -> CrystalBatch:
    module = tiny_prior().vae_module.to(device)
    module.statistics = {"num_atoms": {2: 4, 5: 3, 7: 1}}
    return module.sample(12, generator=torch.Generator().manual_seed(seed), batch_size=5, **options)


@on_each_device
def test_the_same_seed_gives_the_same_samples(device: str) -> None:
    first, again, on_cpu, other = draw(device, 0), draw(device, 0), draw("cpu", 0), draw(device, 1)
    assert first.device.type == device
    assert_same_crystals(again.to("cpu"), first.to("cpu"), atol=1e-6)
    assert_same_crystals(first.to("cpu"), on_cpu, atol=1e-2)
    assert first.num_atoms.tolist() != other.num_atoms.tolist() or not torch.equal(first.lattices, other.lattices)


@pytest.mark.cuda
def test_a_network_replayed_as_a_cuda_graph_samples_as_before() -> None:
    from crystalvae.prior_module.replay import replayed

    module = tiny_prior().vae_module.to("cuda")
    module.statistics = {"num_atoms": {2: 4, 5: 3, 7: 1}}
    draws = [module.sample(12, generator=torch.Generator().manual_seed(0), batch_size=5)]
    with replayed(module.prior.denoiser):  # type: ignore[union-attr]
        draws.append(module.sample(12, generator=torch.Generator().manual_seed(0), batch_size=5))
    assert_same_crystals(draws[1].to("cpu"), draws[0].to("cpu"), atol=1e-5)


COMPILED = """
import sys
import torch
from crystalvae.commands.train import compile_layers
from crystalvae.data.training_batch import TrainingBatch
from tests.samples import assert_same_crystals, random_crystals, tiny_module, tiny_prior

device, backend = sys.argv[1:]
priors = [tiny_prior().to(device) for _ in range(2)]
compile_layers(priors[0], backend=backend)
crystals = random_crystals((4, 1, 7, 2, 3, 5)).to(device)
draws = []
for prior in priors:
    prior.zero_grad()
    prior.losses(TrainingBatch.whole(crystals, seed=(1, 2, 3)), training=True)["loss"].backward()
    prior.vae_module.statistics = {"num_atoms": {2: 4, 5: 3}}
    draws.append(prior.sample(8, generator=torch.Generator().manual_seed(0), batch_size=3).to("cpu"))
for ours, theirs in zip(*(prior.prior.parameters() for prior in priors), strict=True):
    if theirs.grad is not None:
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3)
assert_same_crystals(draws[0], draws[1], atol=1e-3)
print(torch._dynamo.utils.counters["stats"]["unique_graphs"], "graphs")
"""


@pytest.mark.slow
@on_each_device
def test_a_compiled_prior_learns_and_samples_as_before(device: str) -> None:
    # In a process of its own: the suite's checks of annotations are nothing that can be compiled.
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", COMPILED, device, "inductor" if device == "cuda" else "aot_eager"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 0


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_a_run_resumes_on_another_device(table: Path, tmp_path: Path) -> None:  # noqa: F811
    common = [*(entry for entry in TINY if "accelerator" not in entry), f"data.source.data_dir={table}"]
    common += ["trainer.log_every_n_steps=1", "trainer.precision=32-true"]
    for first, then in (("gpu", "cpu"), ("cpu", "gpu")):
        begin = [*common, "trainer.max_epochs=2", f"trainer.accelerator={first}", f"output_dir={first}"]
        command("train_vae", *begin, cwd=tmp_path)
        assert json.loads((tmp_path / first / "run.json").read_text())["epochs"] == 2
        go_on = [*common, "trainer.max_epochs=4", f"trainer.accelerator={then}", f"resume_from={first}"]
        command("train_vae", *go_on, cwd=tmp_path)
        run = json.loads((tmp_path / first / "run.json").read_text())
        assert (run["status"], run["epochs"]) == ("finished", 4)
        assert sorted(losses(tmp_path / first)) == list(range(16))
        assert VAEModule.load_from_checkpoint(tmp_path / first / "checkpoints/best.ckpt", weights_only=True)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_all_devices_together_give_the_losses_of_one(table: Path, tmp_path: Path) -> None:  # noqa: F811
    count = 2 ** (torch.cuda.device_count().bit_length() - 1)
    common = [*(entry for entry in TINY if "accelerator" not in entry), f"data.source.data_dir={table}"]
    common += ["trainer.log_every_n_steps=1", "trainer.precision=32-true", "trainer.max_epochs=2"]
    command("train_vae", *common, "trainer.accelerator=gpu", "output_dir=one", cwd=tmp_path)
    several = ["trainer=ddp", f"trainer.devices={count}", f"data.batch_size={8 // count}", "trainer.accelerator=gpu"]
    command("train_vae", *common, *several, "output_dir=all", cwd=tmp_path)
    assert losses(tmp_path / "all") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


@pytest.mark.cuda
def test_full_memory_is_answered_by_a_batch_size_that_fits(tmp_path: Path) -> None:
    options = ["data=prototypes", "trainer.max_epochs=1", "trainer.accelerator=gpu", "trainer.precision=32-true"]
    options += ["callbacks.progress_bar=null", "logger=csv", "data.eval_batch_size=64"]
    limited = (  # train-vae at the published width with 6 GB of the device
        "import sys, torch; torch.cuda.set_per_process_memory_fraction("
        "6e9 / torch.cuda.get_device_properties(0).total_memory); "
        "from crystalvae.commands.main import main; main(['train-vae', *sys.argv[1:]])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}

    def train(*more: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-c", limited, *options, *more]
        return subprocess.run(
            arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240
        )

    done = train("output_dir=first", "data.batch_size=2048")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "out of memory: data.batch_size=2048 is too much for" in done.stderr
    size, steps = (
        done.stderr.split(f"{key}=")[-1].split()[0] for key in ("data.batch_size", "accumulate_grad_batches")
    )
    assert int(size) * int(steps) == 2048
    again = train("output_dir=second", f"data.batch_size={size}", f"trainer.accumulate_grad_batches={steps}")
    assert again.returncode == 0, again.stderr
