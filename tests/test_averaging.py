"""Averaged weights: a memory that fits the run."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from crystalvae.errors import ConfigError
from crystalvae.vae_module.weight_averaging import AveragedWeights, decay_for


class Walk(L.LightningModule):
    """One weight that goes up by one each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, _index: int) -> torch.Tensor:
        return -self.weight.sum() + 0.0 * batch.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def averaged_walk(callback: AveragedWeights, steps: int) -> float:
    """Return the averaged weight after so many steps."""
    quiet: Any = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **quiet)
    module = Walk()
    trainer.fit(module, DataLoader(torch.zeros(steps, 1), batch_size=1))  # type: ignore[arg-type]
    return float(module.weight)


@pytest.mark.filterwarnings("ignore")  # Lightning's, of loaders without workers
@pytest.mark.parametrize(("options", "memory"), [({"share": 0.2}, 10), ({"decay": 0.8}, 5), ({"share": 0.02}, 1)])
def test_the_average_is_as_long_as_asked(options: dict[str, float], memory: int) -> None:
    # The k-th of n weights k has the share (1 - d) dⁿ⁻ᵏ, the first dⁿ⁻¹, with d = 1 - 1 / memory.
    steps, decay = 50, 1 - 1 / memory
    expected = decay ** (steps - 1) + sum((1 - decay) * decay ** (steps - k) * k for k in range(2, steps + 1))
    assert averaged_walk(AveragedWeights(**options), steps) == pytest.approx(expected, rel=1e-5)


def test_decays_of_runs() -> None:
    assert decay_for(50_000, 0.02) == pytest.approx(0.999)
    assert decay_for(5_000, 0.02) == pytest.approx(0.99)
    assert decay_for(10, 0.02) == 0.0
    assert decay_for(1e9, 0.02) == 0.9999


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"share": 0.0}, {"share": 1.5}])
def test_what_cannot_be_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"callbacks\.ema\.{next(iter(options))}: got"):
        AveragedWeights(**options)
