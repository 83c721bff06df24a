"""A sequence model is trained, kept, resumed and loaded; it knows nothing of how windows were batched."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from crystalvae.checkpoints import format as checkpoints
from crystalvae.errors import CheckpointError, ConfigError, DataError, TrainingError
from crystalvae.sequence_module.callbacks import BestOnceAnnealed, StopOnceAnnealed
from crystalvae.sequence_module.losses import (
    cluster_loss,
    future_reconstruction_loss,
    kullback_leibler_loss,
    reconstruction_loss,
)
from crystalvae.sequence_module.sequence_module import SequenceModule
from crystalvae.vae_module.vae_module import VAEModule
from tests.samples import tiny_config
from tests.sequences import (
    EMBEDDING,
    LATENTS,
    TINY,
    Recordings,
    built,
    datamodule,
    recordings,
    swinging,
    tiny_module,
    windows,
)


def trainer(folder: Path, epochs: int = 3, **options: Any) -> L.Trainer:
    callbacks = options.pop("callbacks", [])
    return L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=callbacks,
        log_every_n_steps=1,
        **options,
    )


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*isinstance", "ignore:.*in eval mode at the start of training"
)


def weights(module: SequenceModule) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def trained(folder: Path, epochs: int = 3, source: Any = None, **options: Any) -> SequenceModule:
    torch.manual_seed(0)
    module = tiny_module(**options)
    trainer(folder, epochs).fit(module, datamodule=datamodule(source))
    return module


# ---- loss ------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_its_parts():
    loss = {"beta": 0.5, "clusters": 3, "cluster_weight": 0.2}
    module = built(loss=loss, annealing={"function": "linear", "kl_start": 0, "annealtime": 4})
    given = windows()
    past, future = given[:, :8], given[:, 8:]
    for epoch, weight in ((0, 0.0), (1, 0.25), (7, 1.0)):
        module.trainer = type("Trainer", (), {"current_epoch": epoch})()  # pyright: ignore[reportAttributeAccessIssue]
        assert module.annealing_weight == weight
        found = module.losses(given, training=False)
        posterior = module.model.encode(past)
        expected = reconstruction_loss(past, module.model.decode(posterior.mean))
        expected = expected + future_reconstruction_loss(future, module.model.predict(posterior.mean))
        penalty = 0.5 * kullback_leibler_loss(posterior.mean, posterior.logvar) + cluster_loss(posterior.mean, 3, 0.2)
        torch.testing.assert_close(found["loss"], expected + weight * penalty)


def test_without_annealing_the_weight_is_one_from_the_start():
    module = built(annealing=None)
    assert module.annealing_weight == 1.0


def test_training_blurs_the_input_alone_and_draws_the_latent():
    given, options = windows(), {"loss": {"reconstruction_reduction": "mean"}}
    module = built(noise=0.0, **options)

    def loss(module: SequenceModule, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        return module.losses(given, training=True, generator=generator)["reconstruction"].item()

    assert loss(module, 0) == loss(module, 0) != loss(module, 1)
    assert loss(built(noise=0.8, **options), 0) != loss(module, 0)
    assert torch.equal(given, windows())


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [None, LATENTS, EMBEDDING], ids=["geometry", "latents", "embedding"])
def test_training_lowers_the_loss_and_knows_its_data(tmp_path: Path, features: Any):
    torch.manual_seed(0)
    module, seen = tiny_module(features), []

    class Watch(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(float(trainer.callback_metrics["val/reconstruction"]))

    training = trainer(tmp_path, 6, callbacks=[Watch()])
    training.fit(module, datamodule=datamodule())
    assert seen[-1] < 0.9 * seen[0]
    logged = set(training.callback_metrics)
    parts = {"loss", "reconstruction", "future", "kl", "cluster", "mse"}
    assert {f"{stage}/{part}" for stage in ("train", "val") for part in parts} <= logged
    assert module.statistics == {"dataset": "recordings", "trajectories": 3, "frames": 180, "step": 2.0}


def test_features_are_standardised_on_the_training_part_alone(tmp_path: Path):
    source = recordings(2, frames=120)
    module, data = tiny_module(), datamodule(source, split="contiguous", val_fraction=0.25, test_fraction=0.25)
    trainer(tmp_path, 1).fit(module, datamodule=data)
    frames = module.frames(data.parts("train")).frames
    torch.testing.assert_close(frames.mean(dim=0), torch.zeros(12), atol=1e-4, rtol=0.0)
    spread = frames.std(dim=0, correction=0)
    torch.testing.assert_close(spread, spread.round(), atol=1e-4, rtol=0.0)  # 1, and 0 where nothing moves


def test_the_same_seed_trains_the_same_model(tmp_path: Path):
    assert same(weights(trained(tmp_path)), weights(trained(tmp_path)))


def keeping(folder: Path, **options: Any) -> list[Any]:
    best = {"dirpath": folder, "filename": "best", "monitor": "val/loss", "enable_version_counter": False}
    return [BestOnceAnnealed(**{**best, **options})]


def test_the_best_model_is_kept_only_once_annealed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    annealing = {"function": "linear", "kl_start": 1, "annealtime": 2}  # weight 1 from epoch 3 on
    module = tiny_module(annealing=annealing)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, 3, callbacks=keeping(tmp_path)).fit(module, datamodule=datamodule())
    assert not (tmp_path / "best.ckpt").exists()
    assert "no best model was kept" in caplog.text
    trainer(tmp_path, 5, callbacks=keeping(tmp_path)).fit(tiny_module(annealing=annealing), datamodule=datamodule())
    content = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert content["epoch"] >= 3


def test_waiting_for_a_better_model_begins_once_annealed(tmp_path: Path):
    stop = StopOnceAnnealed(monitor="val/loss", patience=1, min_delta=1e9)  # nothing is ever better
    annealing = {"function": "linear", "kl_start": 1, "annealtime": 4}
    training = trainer(tmp_path, 20, callbacks=[stop])
    training.fit(tiny_module(annealing=annealing), datamodule=datamodule())
    assert training.current_epoch == 7  # epochs 0 to 5 are annealed, 5 is the first to count, 6 no better


def test_a_run_that_is_resumed_ends_as_one_that_was_not(tmp_path: Path):
    whole = trained(tmp_path, 4)
    torch.manual_seed(0)
    first = trainer(tmp_path, 2)
    first.fit(tiny_module(), datamodule=datamodule())
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(1)
    again = tiny_module()
    trainer(tmp_path, 4).fit(again, datamodule=datamodule(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    found, expected = weights(again), weights(whole)
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in found.items())


def test_resuming_goes_on_annealing_as_the_run_began(tmp_path: Path):
    first = trainer(tmp_path, 1)
    first.fit(tiny_module(annealing=None), datamodule=datamodule())
    first.save_checkpoint(tmp_path / "half.ckpt")
    again = tiny_module()
    trainer(tmp_path, 2).fit(again, datamodule=datamodule(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert again.annealing is None


@pytest.mark.parametrize(
    "scheduler",
    [
        {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.1},
        {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "factor": 0.1, "patience": 0, "threshold": 1e9},
    ],
)
def test_the_learning_rate_falls_by_epochs(tmp_path: Path, scheduler: dict[str, Any]):
    training = trainer(tmp_path, 4)
    training.fit(tiny_module(scheduler=scheduler), datamodule=datamodule())
    rate = training.optimizers[0].param_groups[0]["lr"]
    assert rate < 1e-3
    assert training.optimizers[0].param_groups[0]["amsgrad"]


def test_a_schedule_by_steps_is_told_their_number(tmp_path: Path):
    target = "crystalvae.vae_module.learning_rate.WarmupCosine"
    training = trainer(tmp_path, 2)
    scheduler = {"_target_": target, "warmup_steps": 2, "min_factor": 0.01}
    training.fit(tiny_module(scheduler=scheduler), datamodule=datamodule())
    assert training.optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-5, rel=0.05)


def test_a_loss_that_is_not_finite_stops_training_and_names_the_trajectories(tmp_path: Path):
    optimizer = {"_target_": "torch.optim.SGD", "lr": 1e30}
    with pytest.raises(TrainingError, match=r"not finite .* windows of t\d"):
        trainer(tmp_path, 5).fit(tiny_module(optimizer=optimizer), datamodule=datamodule())


def test_trajectories_too_short_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = Recordings([*recordings(3).load(), swinging("brief", frames=11)])
    data = datamodule(source, val_fraction=0.3, test_fraction=0.3)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, 1).fit(tiny_module(), datamodule=data)
    assert "1 of 4 trajectories are shorter than a window of 12 frames and are left out: brief" in caplog.text
    assert {part.id for split in ("train", "val", "test") for part in data.parts(split)} == {"t0", "t1", "t2"}
    with pytest.raises(DataError, match="no trajectories"):
        datamodule(Recordings([])).prepare_data()


def test_training_without_a_validation_part_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data\.val_fraction: got 0"):
        trainer(tmp_path, 1).fit(tiny_module(), datamodule=datamodule(val_fraction=0.0))


def test_windows_of_other_lengths_than_the_models_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="windows have 13 frames, future included; the model's have 12"):
        trainer(tmp_path, 1).fit(tiny_module(), datamodule=datamodule(window=9))
    module = tiny_module(model={**TINY, "future_decoder": False})
    with pytest.raises(ConfigError, match="windows have 12 frames, future included; the model's have 8"):
        trainer(tmp_path, 1).fit(module, datamodule=datamodule())


def test_without_a_future_decoder_nothing_is_predicted(tmp_path: Path):
    module = tiny_module(model={**TINY, "future_decoder": False})
    training = trainer(tmp_path, 1)
    training.fit(module, datamodule=datamodule(future_decoder=False))
    assert "val/future" not in training.callback_metrics


def test_the_test_part_is_evaluated(tmp_path: Path):
    module = trained(tmp_path)
    training = trainer(tmp_path)
    training.test(module, datamodule=datamodule(), verbose=False)
    assert float(training.callback_metrics["test/mse"]) > 0


# ---- encode ----------------------------------------------------------------------------------------------------------


def test_latents_are_those_of_each_window_of_each_trajectory():
    module, given = built(), [swinging("a", frames=20), swinging("b", frames=5), swinging("c", frames=9)]
    frames = module.frames(given)
    latents = module.latents(frames, batch_size=4)
    assert frames.window_counts(8) == [13, 0, 2]
    assert latents.shape == (15, 4)
    alone = module.latents(module.frames([given[2]]))
    torch.testing.assert_close(latents[13:], alone)
    expected = module.model.encode(frames.frames[None, 3:11]).mean
    torch.testing.assert_close(latents[3], expected[0])
    with pytest.raises(DataError, match="no window of 8 frames"):
        module.latents(module.frames([given[1]]))


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [None, LATENTS, EMBEDDING], ids=["geometry", "latents", "embedding"])
def test_a_checkpoint_is_plain_data_and_all_that_is_needed(tmp_path: Path, features: Any):
    module = trained(tmp_path, 2, features=features)
    path = tmp_path / "model.ckpt"
    module.save_checkpoint(path)
    torch.load(path, weights_only=True)
    again = SequenceModule.load_from_checkpoint(path)
    assert not again.training
    assert again.statistics == module.statistics
    assert again.config == module.config
    given = [swinging("new", phase=0.5)]
    module.eval()
    torch.testing.assert_close(again.latents(again.frames(given)), module.latents(module.frames(given)))
    with pytest.raises(CheckpointError, match="holds a 'sequence' model"):
        VAEModule.load_from_checkpoint(path)


def test_a_checkpoint_of_another_kind_or_damaged_is_refused(tmp_path: Path):
    VAEModule(**tiny_config()).save_checkpoint(tmp_path / "vae.ckpt")
    with pytest.raises(CheckpointError, match="expected 'sequence'"):
        SequenceModule.load_from_checkpoint(tmp_path / "vae.ckpt")
    built().save_checkpoint(tmp_path / "whole.ckpt")
    content = checkpoints.read(tmp_path / "whole.ckpt", plain_data_only=True)
    meta = content[checkpoints.KEY]
    for change in ({"model": {**TINY, "latent_dim": 5}}, {"features": {"_target_": "torch.optim.Adam"}}):
        checkpoints.write(
            {**content, checkpoints.KEY: {**meta, "config": {**meta["config"], **change}}}, tmp_path / "odd.ckpt"
        )
        with pytest.raises(CheckpointError):
            SequenceModule.load_from_checkpoint(tmp_path / "odd.ckpt")


def test_a_model_that_has_not_seen_its_system_cannot_be_saved(tmp_path: Path):
    with pytest.raises(CheckpointError, match="has not seen its system"):
        tiny_module().save_checkpoint(tmp_path / "no.ckpt")


def test_resuming_with_another_vae_is_refused(tmp_path: Path):
    torch.manual_seed(0)
    first = trainer(tmp_path, 1)
    first.fit(tiny_module(LATENTS), datamodule=datamodule())
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(1)
    with pytest.raises(ConfigError, match="another VAE"):
        trainer(tmp_path, 2).fit(
            tiny_module(LATENTS), datamodule=datamodule(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
        )


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"features": {"_target_": "torch.optim.Adam"}}, "expected FrameFeatures"),
        ({"features": {"_target_": "crystalvae.nowhere.Nothing"}}, "there is no such class"),
        ({"loss": {"beta": -1.0}}, r"loss\.beta"),
        ({"loss": {"clusters": 0}}, r"loss\.clusters"),
        ({"loss": {"gamma": 1.0}}, "sequence_module.loss: .*gamma"),
        ({"loss": {"future_reduction": "max"}}, "future_reduction: got 'max'; expected mean or sum"),
        ({"annealing": {"function": "cosine"}}, "linear or sigmoid"),
        ({"annealing": {"annealtime": 0}}, "annealtime: got 0"),
        ({"noise": -0.1}, "noise: got -0.1"),
        ({"model": {**TINY, "depth": 3}, "atom_types": [55, 17]}, "sequence_module.model: .*depth"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_options_that_cannot_be_are_named(options: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        tiny_module(**options)
