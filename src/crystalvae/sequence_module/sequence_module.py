"""The Lightning module that trains a `SequenceVAE` on windows of trajectories, and encodes trajectories with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.utils import get_class
from jaxtyping import Float
from torch import Tensor

from crystalvae.build import build
from crystalvae.checkpoints import format as checkpoints
from crystalvae.checks import check_count, check_number
from crystalvae.data.trajectories import Trajectory
from crystalvae.errors import CheckpointError, ConfigError, DataError, TrainingError
from crystalvae.former_names import current_name
from crystalvae.sequence_module.features import FrameFeatures, VAEFeatures
from crystalvae.sequence_module.losses import (
    AnnealingFunction,
    Reduction,
    check_reduction,
    cluster_loss,
    future_reconstruction_loss,
    gaussian,
    kl_annealing,
    kullback_leibler_loss,
    reconstruction_loss,
)
from crystalvae.sequence_module.sequence_vae import SequenceVAE
from crystalvae.sequence_module.windows import FrameSet, WindowBatch
from crystalvae.vae_module.lightning import CrystalModule, build_optimizer, log_training, named, plain_arguments
from crystalvae.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)

Options = TypeVar("Options")


@dataclass(frozen=True)
class LossOptions:
    """Reductions of both squared errors, β of the KL, and λ (`cluster_weight`) of the cluster loss over `clusters`."""

    reconstruction_reduction: Reduction = "sum"
    future_reduction: Reduction = "sum"
    beta: float = 1.0
    clusters: int = 30
    cluster_weight: float = 0.1

    def __post_init__(self) -> None:
        check_reduction("loss.reconstruction_reduction", self.reconstruction_reduction)
        check_reduction("loss.future_reduction", self.future_reduction)
        check_number("loss.beta", self.beta)
        check_number("loss.cluster_weight", self.cluster_weight)
        check_count("loss.clusters", self.clusters)


@dataclass(frozen=True)
class AnnealingOptions:
    """Arguments of `kl_annealing`."""

    function: AnnealingFunction = "linear"
    kl_start: int = 2
    annealtime: int = 4

    def __post_init__(self) -> None:
        check_count("annealing.kl_start", self.kl_start, at_least=0)
        check_count("annealing.annealtime", self.annealtime)
        kl_annealing(0, self.kl_start, self.annealtime, self.function)

    def weight(self, epoch: int) -> float:
        """Return the weight of an epoch."""
        return kl_annealing(epoch, self.kl_start, self.annealtime, self.function)


class SequenceModule(CrystalModule):
    """Features of frames, a `SequenceVAE` over windows of them, its loss and its optimiser.

    All arguments are plain config, and are kept in the checkpoint: `features` with a `_target_`, see `FrameFeatures`;
    `model`, the arguments of `SequenceVAE` but for the number of features; `loss` as `LossOptions`; `annealing` as
    `AnnealingOptions` (None: no annealing, weight 1); `noise`, what the encoder's input is blurred by in training, see
    `gaussian`; `optimizer` and `scheduler` with a `_target_` each; a schedule of `torch.optim.lr_scheduler` takes a
    step an epoch, and one that watches a loss watches val/loss. `atom_types` are the elements of the system, None until
    training has read them off the trajectories.

    The loss of a window is reconstruction + future + w(epoch) · (β · KL + λ · cluster).
    """

    kind = kinds = "sequence"

    def __init__(
        self,
        *,
        features: Mapping[str, Any],
        model: Mapping[str, Any],
        loss: Mapping[str, Any] | None = None,
        annealing: Mapping[str, Any] | None = None,
        noise: float = 0.8,
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        atom_types: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.config = plain_arguments(locals())
        self.statistics = {}

        check_number("noise", noise)
        self.noise = noise
        self.loss_options = _options("loss", LossOptions, self.config["loss"])
        self._anneal(self.config["annealing"])
        self._sets: dict[str, FrameSet] = {}
        self._parts: dict[str, list[Trajectory]] = {}
        self._given_vae: list[VAEModule] = []  # in a list, or it would be part of this module
        if atom_types is not None or not _features_class(self.config["features"]).per_atom:
            self._build()

    # ---- parts -------------------------------------------------------------------------------------------------------

    features: FrameFeatures
    model: SequenceVAE

    @property
    def built(self) -> bool:
        """Whether features and model are there: where features are per atom, training has to see the system first."""
        return hasattr(self, "model")

    def _build(self) -> None:
        described = {**self.config["features"], "_recursive_": False}  # a VAE's config stays config
        self.features = build("sequence_module.features", described, atom_types=self.config["atom_types"])
        try:
            self.model = SequenceVAE(**{**self.config["model"], "num_features": self.features.num_features})
        except TypeError as error:
            raise ConfigError(f"sequence_module.model: {error}") from error

    def _anneal(self, described: Mapping[str, Any] | None) -> None:
        self.config["annealing"] = described
        self.annealing = None if described is None else _options("annealing", AnnealingOptions, described)

    def describe(self, trajectories: Sequence[Trajectory]) -> None:
        """Build the parts that depend on the system, if they are not there yet."""
        if not self.built:
            self.config["atom_types"] = trajectories[0].atom_types.tolist()
            self._build()
            self._take_over_vae()

    def start_from_vae(self, vae: VAEModule) -> None:
        """Use the weights of a trained VAE for the features, now or as soon as they are built."""
        self._given_vae = [vae]
        if self.built:
            self._take_over_vae()

    def _take_over_vae(self) -> None:
        if self._given_vae and isinstance(self.features, VAEFeatures):
            self.features.load_vae(self._given_vae[0])

    # ---- encode ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def frames(self, trajectories: Sequence[Trajectory], *, cache_dir: Path | str | None = None) -> FrameSet:
        """Return the standardised features of trajectories, each a segment, on the model's device."""
        raw = [self.features.of(entry, cache_dir=cache_dir) for entry in trajectories]
        return FrameSet.of([self.features.standardized(values).to(self.device) for values in raw])

    @torch.no_grad()
    def latents(self, frames: FrameSet, *, batch_size: int = 4096) -> Float[Tensor, "W L"]:
        """Return the latent (posterior mean) of every window, in order: segment by segment, frame by frame.

        `frames.window_counts(module.model.window)` says how many are each segment's. Raises `DataError` where no
        segment is as long as a window.
        """
        starts = frames.starts(self.model.window)
        if len(starts) == 0:
            raise DataError(
                f"no window of {self.model.window} frames: the segments have {min(frames.lengths)} to "
                f"{max(frames.lengths)}"
            )
        parts = [self.model.encode(frames.gather(part, self.model.window)).mean for part in starts.split(batch_size)]
        return torch.cat(parts)

    # ---- training ----------------------------------------------------------------------------------------------------

    @property
    def annealing_weight(self) -> float:
        """w(epoch): the weight of KL and cluster loss in this epoch."""
        return 1.0 if self.annealing is None else self.annealing.weight(self.current_epoch)

    def losses(
        self, windows: Float[Tensor, "B T F"], *, training: bool, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted `loss` and its unweighted parts for windows with the frames that follow them.

        Training blurs what the encoder sees and draws the latent; otherwise it is the posterior mean. Where the errors
        are not finite the cluster loss, which could not be computed, is not finite either.
        """
        model, options, weight = self.model, self.loss_options, self.annealing_weight
        past, future = windows[:, : model.window], windows[:, model.window :]
        seen = gaussian(past, self.noise, generator=generator) if training and self.noise > 0 else past
        posterior = model.encode(seen)
        latents = posterior.sample(generator) if training else posterior.mean
        decoded = model.decode(latents)
        error = reconstruction_loss(past, decoded, options.reconstruction_reduction)
        parts = {"reconstruction": error, "kl": kullback_leibler_loss(posterior.mean, posterior.logvar)}
        loss = error
        if model.future_decoder is not None:
            parts["future"] = future_reconstruction_loss(future, model.predict(latents, past), options.future_reduction)
            loss = loss + parts["future"]
        if bool(torch.isfinite(latents).all()):
            parts["cluster"] = cluster_loss(latents, options.clusters, options.cluster_weight)
        else:  # which the singular values of would be an error
            parts["cluster"] = latents.sum()
        loss = loss + weight * (options.beta * parts["kl"] + parts["cluster"])
        return {"loss": loss, **parts, "mse": (decoded - past).square().mean().detach()}

    def setup(self, stage: str) -> None:
        """Build what depends on the system, before the optimiser asks for its parameters."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            raise ConfigError("a sequence module is trained with trainer.fit(module, datamodule=SequenceDataModule(…))")
        parts = datamodule.parts("test" if stage == "test" else "train")
        self.describe(parts)
        if datamodule.length != self.model.window + self.model.future_steps:
            raise ConfigError(
                f"data: windows have {datamodule.length} frames, future included; the model's have "
                f"{self.model.window + self.model.future_steps}: give data.window, data.future_decoder and "
                "data.future_steps as in sequence_module.model"
            )

    def on_fit_start(self) -> None:
        """Compute the features of training and validation part, fit their standardisation, take over statistics."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        train = datamodule.parts("train")
        self.features.prepare(train)
        raw = [self.features.of(entry, cache_dir=datamodule.cache_dir) for entry in train]
        self.features.fit(torch.cat(raw))
        self._keep("train", train, FrameSet.of([self.features.standardized(values) for values in raw]))
        val = datamodule.parts("val")
        self._keep("val", val, self.frames(val, cache_dir=datamodule.cache_dir))
        if self.model.linear_forecast is not None:
            self.model.linear_forecast.fit(self._sets["train"], self._sets["val"])
        self.statistics = datamodule.statistics()

    def on_test_start(self) -> None:
        """Compute the features of the test part."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        parts = datamodule.parts("test")
        self._keep("test", parts, self.frames(parts, cache_dir=datamodule.cache_dir))

    def _keep(self, split: str, trajectories: list[Trajectory], frames: FrameSet) -> None:
        self._parts[split], self._sets[split] = trajectories, frames.to(self.device)

    def _gathered(self, batch: WindowBatch, split: str) -> Tensor:
        return self._sets[split].gather(batch.starts, self.model.window + self.model.future_steps)

    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of one batch and log its parts; stop with the trajectories' ids where it is not finite."""
        losses = self.losses(self._gathered(batch, "train"), training=True, generator=batch.generator())
        self._check_finite(losses, batch)
        self.log("train/annealing_weight", self.annealing_weight, batch_size=len(batch))
        return log_training(self, losses, batch_size=len(batch), world_size=self.trainer.world_size)

    def on_validation_epoch_start(self) -> None:
        """Weigh the future decoder against the linear forecast, where there is one."""
        if self.model.linear_forecast is not None and "val" in self._sets:
            self.model.fit_future_share(self._sets["val"])

    def validation_step(self, batch: WindowBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Log the loss and its parts with the posterior mean."""
        self._evaluation_step(batch, "val")

    def test_step(self, batch: WindowBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Log the loss and its parts with the posterior mean."""
        self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: WindowBatch, split: str) -> None:
        losses = self.losses(self._gathered(batch, split), training=False)
        self.log_dict(named(split, losses), batch_size=len(batch), sync_dist=self.trainer.world_size > 1)

    def _check_finite(self, losses: Mapping[str, Tensor], batch: WindowBatch) -> None:
        if bool(torch.isfinite(losses["loss"])):
            return
        owners = torch.searchsorted(self._sets["train"].ptr, batch.starts, right=True) - 1
        names = sorted({self._parts["train"][owner].id for owner in owners.tolist()})
        parts = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in losses.items())
        raise TrainingError(
            f"the loss is not finite ({parts}) for a batch of {len(batch)} windows of {', '.join(names[:10])}"
            f"{' …' if len(names) > 10 else ''}. The last checkpoint is good: look at these trajectories or lower the "
            "learning rate, then continue with resume_from="
        )

    def configure_optimizers(self) -> Any:
        """Build the optimiser over the model's parameters, and the learning-rate schedule."""
        return build_optimizer(self.config, self.model.parameters(), self.trainer, section="sequence_module")

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on as that run began, annealing included; `ConfigError` where features come from another VAE."""
        meta = checkpoints.check_metadata(checkpoint, self.kind)
        self.statistics = meta["statistics"]
        self._anneal(meta["config"].get("annealing"))
        prefix = "features.vae_module."
        own = {name: value for name, value in self.state_dict().items() if name.startswith(prefix)}
        saved = checkpoint["state_dict"]
        if not all(name in saved and torch.equal(saved[name].to(value), value) for name, value in own.items()):
            raise ConfigError(
                "resume_from: that run's features come from another VAE than this one is given; repeat "
                "sequence_module.features.vae_ckpt_path of the run"
            )

    def save_checkpoint(self, path: str | Path) -> None:
        """Write all of it (no optimiser) as a checkpoint that `load_from_checkpoint` reads, atomically."""
        if not self.built:
            raise CheckpointError("this module has not seen its system yet: train it, or give atom_types")
        super().save_checkpoint(path)


def _features_class(config: Any) -> type[FrameFeatures]:
    """Return the class that a config of features names; `ConfigError` where it names another."""
    target = config.get("_target_") if isinstance(config, Mapping) else None
    try:
        named = get_class(current_name(str(target)))
    except Exception as error:
        raise ConfigError(f"sequence_module.features._target_: got {target!r}; there is no such class") from error
    if not issubclass(named, FrameFeatures):
        raise ConfigError(f"sequence_module.features._target_: got {target}; expected FrameFeatures")
    return named


def _options(section: str, kind: type[Options], config: Mapping[str, Any] | None) -> Options:
    try:
        return kind(**(config or {}))
    except TypeError as error:
        raise ConfigError(f"sequence_module.{section}: {error}") from error
