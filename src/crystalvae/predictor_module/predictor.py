"""The Lightning module that trains a property head on the latents of a frozen VAE, and searches with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchmetrics import MeanAbsoluteError, R2Score

from crystalvae.build import build
from crystalvae.checks import check_count
from crystalvae.data.augmentation import translate
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.predictor_module.property_head import PropertyHead
from crystalvae.predictor_module.search import SearchOptions, search_latents
from crystalvae.vae_module.frozen import OverFrozenVAE
from crystalvae.vae_module.latent_space.inputs import property_values
from crystalvae.vae_module.latent_space.latents import continuous_latents
from crystalvae.vae_module.lightning import build_optimizer, plain_arguments
from crystalvae.vae_module.reconstruction_errors import check_finite
from crystalvae.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)

DEFAULT_ORIGINS = 4


class LatentPredictor(OverFrozenVAE):
    """A frozen VAE and a head that predicts `target`, a property of the data set, from its latents.

    All arguments are plain config, and are kept in the checkpoint, which holds the VAE too: `vae`, its own config (its
    weights come from its checkpoint); `head` with a `_target_`, see `PropertyHead`; `origins`, how many origins of its
    cell each crystal is encoded with, the given one and random ones (null: 4 where the VAE was trained with any origin,
    else 1); `noise`, standard deviation of what is added to the latents in training, in their standard deviations;
    `optimizer` and `scheduler` as for `VAEModule`. Each crystal is encoded once, before training; minimised is the
    Huber loss (Huber 1964, δ = 1) of the standardised target. Crystals whose property is unknown are left out.
    """

    kind = kinds = "predictor"

    def __init__(
        self,
        *,
        vae: Mapping[str, Any],
        head: Mapping[str, Any],
        target: str,
        origins: int | None = None,
        noise: float = 0.1,
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = plain_arguments(locals())
        self.vae_module = VAEModule(**{**self.config["vae"], "prior": None})
        self.vae_module.requires_grad_(requires_grad=False)
        vae_model = self.vae_module.vae
        self.head = build(
            "predictor.head",
            self.config["head"],
            latent_dim=vae_model.latent_dim,
            elements_given=not vae_model.atom_type_predict,
        )
        if not isinstance(self.head, PropertyHead):
            raise ConfigError(f"predictor.head._target_: got {type(self.head).__name__}; expected a PropertyHead")
        if not isinstance(target, str) or not target:
            raise ConfigError(f"predictor.target: got {target!r}; expected the name of a property of the data set")
        if not noise >= 0:
            raise ConfigError(f"predictor.noise: got {noise}; expected at least 0")
        free = self.vae_module.any_origin
        self.origins = (DEFAULT_ORIGINS if free else 1) if origins is None else origins
        check_count("predictor.origins", self.origins)
        if self.origins > 1 and not free:
            raise ConfigError(f"predictor.origins: got {origins}; expected 1, as this VAE was trained at fixed origins")
        self.target, self.noise = target, noise
        self.val_mae, self.val_r2 = MeanAbsoluteError(), R2Score()
        self._encoded: dict[str, tuple[Tensor, Tensor]] = {}

    # ---- predict and search ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, structures: Any, *, batch_size: int = 512) -> Float[Tensor, "B"]:
        """Return the predicted property of crystals, given in any form that `VAEModule.embed` takes."""
        crystals = self.vae_module.taken("structures", structures)
        parts = [crystals[start : start + batch_size] for start in range(0, len(crystals), batch_size)]
        return torch.cat([self.head.predict(self._latents(part), part) for part in parts])

    def search(
        self,
        structures: Any,
        target: float,
        *,
        steps: int = 200,
        learning_rate: float = 0.1,
        penalty: float = 1.0,
        project_every: int = 20,
        batch_size: int = 256,
    ) -> CrystalBatch:
        """Move crystals' latents until the property is predicted to be `target`, and return the decoded crystals.

        See `search.search_latents`. Properties of the result: `predicted_before` of the given crystals,
        `predicted_latent` of the latents found, `predicted_after` of the decoded crystals, encoded anew: this is the
        value to trust; and `latent_distance` between first and last latents.
        """
        options = SearchOptions(steps=steps, learning_rate=learning_rate, penalty=penalty, project_every=project_every)
        crystals = self.vae_module.taken("structures", structures)
        parts = [crystals[start : start + batch_size] for start in range(0, len(crystals), batch_size)]
        return CrystalBatch.cat(search_latents(self.vae_module.vae, self.head, part, target, options) for part in parts)

    def _latents(self, crystals: CrystalBatch) -> Float[Tensor, "N L"]:
        return continuous_latents(self.vae_module.vae, crystals, "a property head")

    # ---- training ----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Encode training and validation set, and take over the training set's statistics."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            raise ConfigError("datamodule: got none; train with trainer.fit(predictor, datamodule=…)")
        self.encode_set("train", datamodule.dataset("train").crystals, origins=self.origins)
        self.encode_set("val", datamodule.dataset("val").crystals, origins=1)
        self.vae_module.statistics = datamodule.statistics()
        latents, targets = self._encoded["train"]
        self.head.fit(latents.flatten(0, 1), targets[targets.isfinite()])

    @torch.no_grad()
    def encode_set(self, split: str, crystals: CrystalBatch, *, origins: int, batch_size: int = 1024) -> None:
        """Encode a set's crystals with `origins` origins each, the given one first, for training or validation."""
        targets = property_values(crystals, self.target, key="predictor.target")
        if int(targets.isfinite().sum()) < 2:
            raise ConfigError(f"predictor.target: {self.target} is known of fewer than two crystals of the {split} set")
        generator = torch.Generator().manual_seed(0)
        starts = range(0, len(crystals), batch_size)
        views = []
        for view in range(origins):
            shifts = torch.rand(len(crystals), 3, generator=generator) if view else torch.zeros(len(crystals), 3)
            moved = translate(crystals, shifts) if view else crystals
            shown = track(
                starts, f"encoding {split}, {view + 1} of {origins}", console=Console(stderr=True), transient=True
            )
            parts = [self._latents(moved[start : start + batch_size].to(self.device)) for start in shown]
            views.append(torch.cat(parts))
        self._encoded[split] = torch.stack(views), targets.to(self.device)

    def losses(self, batch: TrainingBatch, *, training: bool) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the loss, and prediction and target (B,) of the batch's crystals in the property's own unit."""
        latents, targets = self._encoded["train" if training else "val"]
        crystals, generator = batch.crystals, batch.generator()
        data = self.trainer.datamodule.dataset("train" if training else "val").crystals  # type: ignore[attr-defined]
        rows = data.ptr[:-1][batch.indices.to("cpu")].to(crystals.device)
        atoms = rows[crystals.batch] + crystals.token_idx
        view = torch.randint(len(latents), (batch.total_crystals,), generator=generator, device=crystals.device)
        given = latents[batch.per_crystal(view)[crystals.batch], atoms]
        if training and self.noise > 0:
            normal = torch.randn(batch.total_atoms, given.shape[1], generator=generator, device=crystals.device)
            given = given + self.noise * self.head.latent_std * batch.per_atom(normal)
        target = targets[batch.indices.to(targets.device)]
        known = target.isfinite()
        predicted = self.head(given, crystals)
        scaled = (target - self.head.target_mean) / self.head.target_std
        loss = F.huber_loss(predicted[known], scaled[known], reduction="sum") / batch.mean_crystals
        predictions = self.head.target_mean + self.head.target_std * predicted
        return {"loss": loss}, predictions.detach()[known], target[known]

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of one batch and log it; stop with the crystals' ids where it is not finite."""
        losses, predicted, target = self.losses(batch, training=True)
        check_finite(losses, batch, getattr(self._trainer, "datamodule", None))
        options: dict[str, Any] = {"batch_size": batch.crystals.num_graphs, "sync_dist": batch.world_size > 1}
        self.log("train/loss", losses["loss"], prog_bar=True, **options)
        if len(target):
            self.log("train/mae", (predicted - target).abs().mean(), **options)
        return losses["loss"]

    def validation_step(self, batch: TrainingBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Log the loss, and over the whole set the mean absolute error (the property's unit) and R²."""
        losses, predicted, target = self.losses(batch, training=False)
        self.log("val/loss", losses["loss"], batch_size=batch.crystals.num_graphs, sync_dist=True)
        if len(target):
            self.val_mae.update(predicted, target)
            self.val_r2.update(predicted, target)
        self.log("val/mae", self.val_mae, on_epoch=True, prog_bar=True)
        self.log("val/r2", self.val_r2, on_epoch=True)

    def train(self, mode: bool = True) -> LatentPredictor:
        """Switch to training; the VAE stays as it is used, in evaluation."""
        super().train(mode)
        self.vae_module.eval()
        return self

    def configure_optimizers(self) -> Any:
        """Build the optimiser over the head's parameters, and the learning-rate schedule."""
        return build_optimizer(self.config, self.head.parameters(), self.trainer, section="predictor")
