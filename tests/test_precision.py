"""Which number format training takes by default, and what compiling leaves as it is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

from crystalvae.commands import precision
from crystalvae.commands.precision import choose_precision, has_bfloat16_units
from crystalvae.commands.train import compile_layers
from crystalvae.errors import ConfigError
from crystalvae.vae_module import VAEModule


@pytest.mark.parametrize(
    ("asked", "width", "units", "chosen"),
    [
        ("auto", 128, True, "bf16-mixed"),
        ("auto", 128, False, "32-true"),
        ("auto", 96, True, "32-true"),
        ("32-true", 512, True, "32-true"),
        ("bf16-mixed", 16, False, "bf16-mixed"),
    ],
)
def test_wide_models_take_bfloat16_where_the_device_has_it(
    asked: str, width: int, units: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda accelerator: units)
    # An embedding of 100 elements, or a head that reads 6 numbers off, is no wide layer.
    model = torch.nn.ModuleList([torch.nn.Embedding(100, 512), torch.nn.Linear(width, 2048), torch.nn.Linear(1024, 6)])
    assert choose_precision(asked, model, "auto") == chosen


def test_units_are_asked_of_the_device_that_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for supported in (True, False):
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda answer=supported: answer, raising=False)
        assert has_bfloat16_units("auto") is has_bfloat16_units("cpu") is supported
        assert not has_bfloat16_units("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not including_emulation)
    assert has_bfloat16_units("auto")
    assert has_bfloat16_units("gpu")
    assert not has_bfloat16_units("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert not has_bfloat16_units("auto")


COMPILED = """
import torch
from crystalvae.commands.train import compile_layers
from crystalvae.data.training_batch import TrainingBatch
from tests.samples import random_crystals, tiny_module

compiled, plain = tiny_module(), tiny_module()
compile_layers(compiled, backend="aot_eager")
assert compiled.state_dict().keys() == plain.state_dict().keys()
for sizes in ((4, 1, 7, 2), (3, 5, 20, 6)):
    batch = TrainingBatch.whole(random_crystals(sizes), seed=(1, 2, 3))
    for module in (compiled, plain):
        module.zero_grad()
        module.losses(batch, training=True)["loss"].backward()
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
print(torch._dynamo.utils.counters["stats"]["unique_graphs"], "graphs")
"""


@pytest.mark.slow
def test_compiled_layers_train_as_before() -> None:
    # In a process of its own: the suite's checks of annotations are nothing that can be compiled.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    graphs = int(done.stdout.split()[0])
    assert 0 < graphs <= 16


def test_a_model_without_transformers_is_not_compiled() -> None:
    families = {"encoder": {"_target_": "crystalvae.vae_module.encoders.mlp.MLPEncoder", "d_model": 8, "num_layers": 1}}
    families["decoder"] = {"_target_": "crystalvae.vae_module.decoders.mlp.MLPDecoder", "d_model": 8, "num_layers": 1}
    with pytest.raises(ConfigError, match="compile: got true, but this model has no transformer layers"):
        compile_layers(VAEModule(**families, latent_dim=2))
