"""The best model is none whose KL weight was still low, and early stopping does not count such epochs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from crystalvae.data.loader import CrystalLoader
from crystalvae.errors import ConfigError
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.full_weight import BestCheckpoint, FullWeight, PatientStopping
from crystalvae.vae_module.objectives.elbo import ELBO
from crystalvae.vae_module.objectives.kl_schedules import (
    CyclicalSchedule,
    LinearSchedule,
    NoSchedule,
    SigmoidSchedule,
)
from tests.samples import SIZES, random_crystals, tiny_config

SCHEDULES = "crystalvae.vae_module.objectives.kl_schedules"


def reached(schedule: Any, *, epochs: int, unit: Any = "step", steps: int = 10, bounded: bool = True) -> list[bool]:
    """After which epochs, of `steps` steps each, the weight is full."""
    objective: Any = ELBO(
        weights={}, coord_loss="periodic", latent_dim=4, schedule=schedule, schedule_unit=unit, kl_weight=0.5
    )
    module, weight = SimpleNamespace(objective=objective), FullWeight()
    found = []
    for epoch in range(epochs):
        trainer = SimpleNamespace(
            sanity_checking=False,
            global_step=(epoch + 1) * steps,
            current_epoch=epoch,
            max_epochs=epochs if bounded else -1,
            num_training_batches=steps,
            accumulate_grad_batches=1,
            estimated_stepping_batches=epochs * steps if bounded else float("inf"),
        )
        found.append(weight.reached(trainer, module))  # pyright: ignore[reportArgumentType]
    return found


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, [True] * 6),
        (NoSchedule(kl_start=30), [False] * 3 + [True] * 3),
        (LinearSchedule(warmup=40), [False] * 4 + [True] * 2),
        (LinearSchedule(warmup=1000), [False] * 5 + [True]),
        (SigmoidSchedule(warmup=40), [False] * 3 + [True] * 3),
        (CyclicalSchedule(cyclical_period=30), [False, True, True] * 2),
        (CyclicalSchedule(cyclical_period=30, ramp_share=1.0), [False, False, True] * 2),
        (CyclicalSchedule(cyclical_period=10), [True] * 6),
        (lambda step: 2.0 if step >= 50 else 0.5, [False] * 5 + [True]),
    ],
)
def test_the_weight_is_full_at_the_schedules_maximum(
    schedule: Callable[[int], float] | None, expected: list[bool], without_type_checks: None
) -> None:
    assert reached(schedule, epochs=6) == expected


def test_epochs_and_runs_without_an_end_count_too(without_type_checks: None) -> None:
    assert reached(LinearSchedule(warmup=3), epochs=6, unit="epoch") == [False] * 3 + [True] * 3
    assert reached(LinearSchedule(warmup=40), epochs=6, bounded=False) == [False] * 4 + [True] * 2


def test_an_epoch_of_the_warm_up_is_near_the_sigmoids_end_only(without_type_checks: None) -> None:
    weights = [SigmoidSchedule(warmup=40)(10 * epoch + 9) for epoch in range(6)]
    assert [weight >= 0.95 for weight in weights] == reached(SigmoidSchedule(warmup=40), epochs=6)


# ---- in a run --------------------------------------------------------------------------------------------------------


def run(folder: Path, callbacks: list[Any], *, warmup: int, epochs: int = 5, **options: Any) -> L.Trainer:
    torch.manual_seed(0)
    schedule = {"_target_": f"{SCHEDULES}.LinearSchedule", "warmup": warmup}
    module = VAEModule(
        **tiny_config(
            objective={"_target_": "crystalvae.vae_module.objectives.elbo.ELBO", "schedule": schedule},
            loss_weights={"kl": 30.0},
            optimizer={"_target_": "torch.optim.AdamW", "lr": 3e-3},
        )
    )
    crystals = random_crystals(SIZES * 2, seed=1)
    train, val = (CrystalLoader(crystals, batch_size=4, shuffle=shuffle) for shuffle in (True, False))
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=callbacks, default_root_dir=folder, **quiet, **options
    )
    trainer.fit(module, train, val)
    return trainer


QUIET = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*batch_size")


@QUIET
@pytest.mark.parametrize("full_weight", [True, False])
def test_the_best_checkpoint_is_one_at_full_weight(full_weight: bool, tmp_path: Path) -> None:
    """Where the first epochs look best (here: a loss that falls, and the highest is kept), they are not taken."""
    best = BestCheckpoint(
        dirpath=tmp_path / "kept",
        monitor="val/recon_loss",
        mode="max",
        filename="{epoch}",
        full_weight=full_weight,
    )
    run(tmp_path, [best], warmup=6)
    assert Path(best.best_model_path).name == ("epoch=3.ckpt" if full_weight else "epoch=0.ckpt")


@QUIET
def test_a_run_that_ends_too_early_has_no_best_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = BestCheckpoint(dirpath=tmp_path / "kept", monitor="val/recon_loss")
    with caplog.at_level(logging.WARNING):
        stop = EarlyStopping(monitor="val/recon_loss", divergence_threshold=-1.0)  # ends the run after one epoch
        run(tmp_path, [best, stop], warmup=6)
    assert best.best_model_path == ""
    assert "no best checkpoint" in caplog.text


@QUIET
@pytest.mark.parametrize(("full_weight", "epochs"), [(True, 5), (False, 2)])
def test_early_stopping_has_patience_until_the_weight_is_full(full_weight: bool, epochs: int, tmp_path: Path) -> None:
    stopping = PatientStopping(
        monitor="val/loss", mode="min", patience=1, min_delta=1e9, full_weight=full_weight
    )  # nothing is ever better: it stops at the second look
    trainer = run(tmp_path, [stopping], warmup=6, epochs=8, enable_checkpointing=False)
    assert trainer.current_epoch == epochs


def test_runs_of_before_find_their_state() -> None:
    options: dict[str, Any] = {"monitor": "val/recon_loss", "mode": "min"}
    assert BestCheckpoint(**options).state_key == ModelCheckpoint(**options).state_key
    assert PatientStopping(**options).state_key == EarlyStopping(**options).state_key


@pytest.mark.parametrize("kind", [BestCheckpoint, PatientStopping])
def test_the_switch_is_a_switch(kind: Any, without_type_checks: None) -> None:
    with pytest.raises(ConfigError, match=r"full_weight: got 'no'; expected true or false"):
        kind(monitor="val/recon_loss", full_weight="no")
