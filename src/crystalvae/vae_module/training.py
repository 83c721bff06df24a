"""How a `CrystalVAE` is trained, validated and watched: what Lightning calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crystalvae.data.augmentation import Augmentation, InputNoise
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.bottlenecks.base import Posterior
from crystalvae.vae_module.conditions.injection import Conditioning
from crystalvae.vae_module.decoders.transformer import DecodedCrystals
from crystalvae.vae_module.lightning import Trained
from crystalvae.vae_module.objectives.latent_statistics import LatentStatistics
from crystalvae.vae_module.reconstruction_errors import check_finite, reconstruction_errors
from crystalvae.vae_module.vae import CrystalVAE


class VAETraining(Trained):
    """The steps of training and validation, for a module that has made the parts named here."""

    vae: CrystalVAE
    objective: nn.Module
    condition: Conditioning
    augmentation: Augmentation
    noise: InputNoise
    prior: Any
    config: dict[str, Any]
    statistics: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self._latents: list[LatentStatistics] = []

    def losses(self, batch: TrainingBatch, *, training: bool) -> dict[str, Tensor]:
        """Return the weighted `loss` and its unweighted parts; training augments, adds noise and samples the latent."""
        return self._weigh(*self._pass(batch, training=training), batch)

    def _pass(self, batch: TrainingBatch, *, training: bool) -> tuple[DecodedCrystals, Posterior, Tensor, CrystalBatch]:
        target = batch.crystals
        if training:
            generator = batch.generator()
            target = self.condition.dropped(self.augmentation(batch, generator), batch, generator)
            posterior = self.vae.encode(self.noise(batch, target, generator))
            noise = torch.randn(batch.total_atoms, self.vae.latent_dim, generator=generator, device=target.device)
            latents = posterior.reparameterize(batch.per_atom(noise))
        else:
            target = self.condition.known(target)
            posterior = self.vae.encode(target)
            latents = posterior.mode()
        return self.vae.decode(latents, target), posterior, latents, target

    def _weigh(
        self,
        decoded: DecodedCrystals,
        posterior: Posterior,
        latents: Tensor,
        target: CrystalBatch,
        batch: TrainingBatch,
    ) -> dict[str, Tensor]:
        bottleneck = self.vae.bottleneck
        losses = self.objective(
            decoded,
            target,
            batch,
            means=posterior.mode(),
            kl=bottleneck.kl(posterior, latents, target),
            penalties=bottleneck.penalties(posterior, atoms=batch.mean_atoms),
            penalty_weights=bottleneck.penalty_weights,
            step=self.global_step,
            epoch=self.current_epoch,
        )
        return {**losses, **bottleneck.metrics(posterior, latents, target)}

    def training_step(self, batch: TrainingBatch | CrystalBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of one batch and log its parts; stop with the crystals' ids where it is not finite."""
        shard = batch if isinstance(batch, TrainingBatch) else TrainingBatch.whole(batch)
        decoded, posterior, latents, target = self._pass(shard, training=True)
        losses = self._weigh(decoded, posterior, latents, target, shard)
        check_finite(losses, shard, getattr(self._trainer, "datamodule", None))
        self.vae.bottleneck.update(posterior, shard)
        # Each rank's sums are divided by the global batch's share, so their mean over ranks is the global loss.
        options: dict[str, Any] = {"batch_size": shard.crystals.num_graphs, "sync_dist": shard.world_size > 1}
        self.log("train/loss", losses["loss"], prog_bar=True, **options)
        self.log_dict({f"train/{name}": value for name, value in losses.items() if name != "loss"}, **options)
        return losses["loss"]

    def validation_step(self, batch: TrainingBatch | CrystalBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Log losses and reconstruction errors with the posterior mean."""
        self._evaluation_step(batch, "val")

    def test_step(self, batch: TrainingBatch | CrystalBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Log losses and reconstruction errors with the posterior mean."""
        self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: TrainingBatch | CrystalBatch, stage: str) -> None:
        shard = batch if isinstance(batch, TrainingBatch) else TrainingBatch.whole(batch)
        whole = TrainingBatch.whole(shard.crystals)
        decoded, posterior, latents, target = self._pass(whole, training=False)
        losses = self._weigh(decoded, posterior, latents, target, whole)
        kl = self.vae.bottleneck.kl(posterior, latents, target)
        self._latents.append(LatentStatistics.of(posterior.mode(), kl))
        errors = reconstruction_errors(self.vae.to_crystals(decoded, target), target)
        values = {f"{stage}/{name}": value for name, value in {**losses, **errors}.items()}
        self.log_dict(values, batch_size=target.num_graphs, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log how much of the latent space is used, so that posterior collapse is seen."""
        self._log_latents("val")

    def on_test_epoch_end(self) -> None:
        """Log how much of the latent space is used."""
        self._log_latents("test")

    def _log_latents(self, stage: str) -> None:
        statistics = LatentStatistics.merged(self._latents)
        self._latents = []
        if self.trainer.world_size > 1:
            statistics = statistics.gathered(self.all_gather)
        self.log_dict({f"{stage}/{name}": value for name, value in statistics.metrics().items()}, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Build the optimiser and the learning-rate schedule, which is told the number of steps of the whole run."""
        if self.prior is not None:
            raise ConfigError("vae_module.prior: a VAE is trained before its prior, which train_prior trains; set null")
        return self.build_optimizer("vae_module", self.parameters())

    def on_fit_start(self) -> None:
        """Take the training set's statistics into the model, and so into its checkpoints."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            self.statistics = datamodule.statistics()
            self.condition.fit(self.vae, datamodule.dataset("train").crystals)
