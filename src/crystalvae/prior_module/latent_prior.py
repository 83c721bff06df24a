"""The Lightning module that trains a prior over the latents of a frozen VAE."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from crystalvae.checks import check_choice
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.prior_module.flow import logit_normal
from crystalvae.prior_module.latent_diffusion import LatentDiffusion
from crystalvae.prior_module.latent_flow import LatentFlow, PriorNoise
from crystalvae.prior_module.symmetric_flow import SymmetricFlow
from crystalvae.vae_module.conditions.values import Values, condition_ranges, condition_values, drop_conditions
from crystalvae.vae_module.frozen import OverFrozenVAE
from crystalvae.vae_module.lightning import build_optimizer, log_training, named, plain_arguments
from crystalvae.vae_module.reconstruction_errors import check_finite
from crystalvae.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)

Latents = Literal["sample", "mean"]
Part = Literal["flow", "composition", "gene"]


class LatentPrior(OverFrozenVAE):
    """A frozen VAE and the prior over its latents, which is trained.

    All arguments are plain config, and are kept in the checkpoint: `vae`, the VAE's own config (its weights come from
    its checkpoint); `prior` with a `_target_`, see `LatentFlow` and `LatentDiffusion`; `latents`, whether training sees
    draws from the posterior or its mean; `time` {mean, std} of the logit-normal distribution of times;
    `condition_dropout` {all, each}; `self_condition_probability`; `composition_weight`, nats of the composition or
    gene model against the flow's loss; `trained`, which of flow, composition and gene model learn, the others staying
    as they are;
    `optimizer` and `scheduler` as for `VAEModule`.
    """

    kind = kinds = "prior"

    def __init__(
        self,
        *,
        vae: Mapping[str, Any],
        prior: Mapping[str, Any],
        latents: Latents = "sample",
        time: Mapping[str, float] | None = None,
        condition_dropout: Mapping[str, float] | None = None,
        analogue_dropout: float = 0.2,
        self_condition_probability: float = 0.5,
        composition_weight: float = 0.1,
        trained: Sequence[str] = ("flow", "composition"),
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = plain_arguments(locals())
        check_choice("prior_module.latents", latents, get_args(Latents))
        self.vae_module = VAEModule(**{**self.config["vae"], "prior": self.config["prior"]})
        if not isinstance(self.vae_module.prior, (LatentFlow, LatentDiffusion)):
            raise ConfigError("prior_module.prior._target_: expected a LatentFlow or a LatentDiffusion")
        self.vae_module.vae.requires_grad_(requires_grad=False)
        self.time = _checked("time", {"mean": 0.5, "std": 1.3}, self.config["time"])
        self.condition_dropout = _checked(
            "condition_dropout", {"all": 0.3, "each": 0.3}, self.config["condition_dropout"]
        )
        if not self.time["std"] > 0:
            raise ConfigError(f"prior_module.time.std: got {self.time['std']}; expected a number above 0")
        shares = {
            **self.condition_dropout,
            "self_condition_probability": self_condition_probability,
            "analogue_dropout": analogue_dropout,
        }
        for key, value in shares.items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"prior_module: {key} is {value}; expected a share in [0, 1]")
        if not composition_weight >= 0:
            raise ConfigError(f"prior_module.composition_weight: got {composition_weight}; expected at least 0")
        self.analogue_dropout = analogue_dropout
        self.self_condition_probability, self.composition_weight = self_condition_probability, composition_weight
        self.trained = self._check_trained(self.config["trained"])

    @property
    def prior(self) -> LatentFlow | LatentDiffusion:
        """The prior that is trained."""
        return cast("LatentFlow | LatentDiffusion", self.vae_module.prior)

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """Sample crystals: `VAEModule.sample`, which uses the prior."""
        return self.vae_module.sample(*args, **kwargs)

    # ---- training ----------------------------------------------------------------------------------------------------

    def _check_trained(self, parts: Sequence[str]) -> set[str]:
        """Return which parts learn, after taking gradients from the others."""
        found = set(parts)
        if not found or not found <= set(get_args(Part)) or isinstance(parts, str):
            raise ConfigError(f"prior_module.trained: got {parts}; expected some of {', '.join(get_args(Part))}")
        parts_of = {"composition": self.prior.composition, "gene": getattr(self.prior, "gene", None)}
        found -= {name for name, part in parts_of.items() if part is None}
        if not found:
            raise ConfigError(
                f"prior_module.trained: this prior has no {' and '.join(parts)} model that could be trained alone"
            )
        for name, parameter in self.prior.named_parameters():
            part = name.split(".")[0].removesuffix("_conditions")
            if (part if part in parts_of else "flow") not in found:
                parameter.requires_grad = False
        return found

    def losses(self, batch: TrainingBatch, *, training: bool) -> dict[str, Tensor]:
        """Return the weighted `loss` and its parts; validation draws the same noise every time.

        The loss is of what is `trained`; in validation the other part is measured as well.
        """
        crystals, generator = batch.crystals, batch.generator()
        device, prior = crystals.device, self.prior

        def normal(rows: int, *columns: int) -> Tensor:
            return torch.randn(rows, *columns, generator=generator, device=device)

        values = condition_values(crystals, prior.names, classes=prior.classes)
        times = logit_normal(normal(batch.total_crystals), **self.time)
        noise = batch.per_atom(normal(batch.total_atoms, prior.latent_dim))
        posterior_noise = batch.per_atom(normal(batch.total_atoms, prior.latent_dim))
        uniform = torch.rand(batch.total_crystals, len(prior.names) + 1, generator=generator, device=device)
        again = float(torch.rand(1, generator=generator, device=device)) < self.self_condition_probability
        chosen = None
        if training and isinstance(prior, SymmetricFlow):
            uniforms = torch.rand(batch.total_crystals, 2, generator=generator, device=device)
            chosen = batch.per_crystal(torch.where(uniforms[:, 0] < self.analogue_dropout, torch.nan, uniforms[:, 1]))
        if training:
            values = self._dropped(values, batch.per_crystal(uniform))
        parts: dict[str, Tensor] = {}
        loss = normal(1).new_zeros(())
        if "flow" in self.trained or not training:
            with torch.no_grad():
                posterior = self.vae_module.vae.encode(crystals)
                exact = self.config["latents"] == "mean" or not training
                latents = posterior.mode() if exact else posterior.reparameterize(posterior_noise)
            if isinstance(prior, LatentDiffusion):
                steps = batch.per_crystal(torch.rand(batch.total_crystals, generator=generator, device=device))
                per_atom = prior.losses(latents, crystals, values, noise=noise, uniform=steps)
            else:
                hints = None
                if isinstance(prior, SymmetricFlow):
                    hints = prior.hints(crystals, self.vae_module.vae, noise=chosen)
                draws = PriorNoise(noise=noise, time=batch.per_crystal(times), self_condition=again or not training)
                per_atom = {"flow_loss": prior.flow_loss(latents, crystals, values, draws, hints)}
            parts |= {name: errors.sum() / batch.mean_atoms for name, errors in per_atom.items()}
            loss = loss + ("flow" in self.trained) * next(iter(parts.values()))
        if (
            isinstance(prior, LatentFlow)
            and prior.composition is not None
            and ("composition" in self.trained or not training)
        ):
            parts["composition_nll"] = prior.composition_loss(crystals, values).sum() / batch.mean_crystals
            loss = loss + ("composition" in self.trained) * self.composition_weight * parts["composition_nll"]
        if isinstance(prior, SymmetricFlow) and ("gene" in self.trained or not training):
            given = batch.per_crystal(torch.rand(batch.total_crystals, generator=generator, device=device)) < 0.5
            gene_nll = prior.gene_loss(crystals, values, given if training else None)
            parts["gene_nll"] = gene_nll.sum() / batch.mean_crystals
            loss = loss + ("gene" in self.trained) * self.composition_weight * parts["gene_nll"]
        return {"loss": loss, **parts}

    def _dropped(self, values: Values, uniform: Tensor) -> Values:
        shares = self.condition_dropout
        return drop_conditions(values, uniform, drop_all=shares["all"], drop_each=shares["each"])

    def training_step(self, batch: TrainingBatch | CrystalBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of one batch and log its parts; stop with the crystals' ids where it is not finite."""
        shard = batch if isinstance(batch, TrainingBatch) else TrainingBatch.whole(batch)
        losses = self.losses(shard, training=True)
        check_finite(losses, shard, getattr(self._trainer, "datamodule", None))
        return log_training(self, losses, batch_size=shard.crystals.num_graphs, world_size=shard.world_size)

    def validation_step(self, batch: TrainingBatch | CrystalBatch, batch_idx: int) -> None:
        """Log the losses; the noise is the same in every epoch."""
        crystals = batch.crystals if isinstance(batch, TrainingBatch) else batch
        losses = self.losses(TrainingBatch.whole(crystals, seed=(0, 0, batch_idx)), training=False)
        self.log_dict(named("val", losses), batch_size=crystals.num_graphs, sync_dist=True)

    def train(self, mode: bool = True) -> LatentPrior:
        """Switch to training; the VAE stays as it is used, in evaluation."""
        super().train(mode)
        self.vae_module.vae.eval()
        return self

    def on_fit_start(self) -> None:
        """Take the training set's statistics, its latents' included, into the model and so into its checkpoints."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            return
        self.vae_module.statistics = datamodule.statistics()
        self.fit_statistics(datamodule.dataset("train").crystals)

    @torch.no_grad()
    def fit_statistics(self, crystals: CrystalBatch, *, batch_size: int = 1024) -> None:
        """Take over the statistics of crystals' latents and conditions, for the parts that are trained."""
        values = condition_values(crystals, self.prior.names, classes=self.prior.classes)
        if ranges := condition_ranges(values, self.prior.classes):
            self.vae_module.statistics = {**self.statistics, "conditions": ranges}
        if "composition" in self.trained and isinstance(self.prior, LatentFlow) and self.prior.composition is not None:
            self.prior.composition_conditions.fit(values)
        if "gene" in self.trained and isinstance(self.prior, SymmetricFlow):
            self.prior.gene.conditions.fit(values)
            self.prior.fit_known(crystals)
        if "flow" not in self.trained:
            return
        if self.prior.conditions is not None:
            self.prior.conditions.fit(values)
        if isinstance(self.prior, SymmetricFlow):
            self.prior.analogues.fit(crystals)
        starts = range(0, len(crystals), batch_size)
        console = Console(stderr=True)
        means, variances = [], []
        self.vae_module.vae.eval()
        for start in track(starts, "encoding the training set", console=console, transient=True):
            posterior = self.vae_module.vae.encode(crystals[start : start + batch_size].to(self.device))
            means.append(posterior.mean)
            variances.append(posterior.var)
        self.prior.fit_latents(torch.cat(means), torch.cat(variances))

    def configure_optimizers(self) -> Any:
        """Build the optimiser over what is `trained`, and the learning-rate schedule."""
        learning = (parameter for parameter in self.prior.parameters() if parameter.requires_grad)
        return build_optimizer(self.config, learning, self.trainer, section="prior_module")


def _checked(name: str, defaults: dict[str, float], given: Mapping[str, float] | None) -> dict[str, float]:
    for key, value in (given or {}).items():
        if key not in defaults or isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"prior_module.{name}.{key}: got {value!r}; expected numbers for {', '.join(defaults)}")
    return {**defaults, **(given or {})}
