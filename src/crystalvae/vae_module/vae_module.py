"""The Lightning module: trains a `CrystalVAE`, and is what research code loads and calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn

from crystalvae.build import build
from crystalvae.checks import check_count, check_switch
from crystalvae.data.augmentation import Augmentation, FeatureScales, InputNoise
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.dataset import CrystalDataset
from crystalvae.data.soundness import sound_crystals
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.atom_counts import draw_atom_counts
from crystalvae.vae_module.bottlenecks.base import DEFAULT_BOTTLENECK, Bottleneck, as_bottleneck
from crystalvae.vae_module.conditions.injection import Conditioning
from crystalvae.vae_module.conditions.values import asked_values, condition_ranges, told
from crystalvae.vae_module.decoders.heads import DecodedCrystals
from crystalvae.vae_module.distribution import LOG_VARIANCE_RANGE, DiagonalGaussianDistribution, normal_noise
from crystalvae.vae_module.draw_crystals import Spread, check_elements, draw_crystals, one_by_one
from crystalvae.vae_module.latent_source import DrawOptions, GeneSource, LatentSource, LearnedPrior
from crystalvae.vae_module.latent_space import interpolation
from crystalvae.vae_module.latent_space.bare_latents import crystals_of_latents
from crystalvae.vae_module.latent_space.embedding import embed
from crystalvae.vae_module.latent_space.index import EmbeddingIndex, Neighbours
from crystalvae.vae_module.latent_space.inputs import as_crystals, given_crystals, to_crystal, to_crystals
from crystalvae.vae_module.latent_space.interpolation import Mode
from crystalvae.vae_module.latent_space.latents import reconstruct
from crystalvae.vae_module.latent_space.maps import Method, latent_map
from crystalvae.vae_module.lightning import CrystalModule, build_optimizer, log_training, named, plain_arguments
from crystalvae.vae_module.objectives.elbo import ELBO, check_weights
from crystalvae.vae_module.objectives.latent_statistics import LatentStatistics
from crystalvae.vae_module.objectives.reconstruction import CoordLoss
from crystalvae.vae_module.output import VAEOutput
from crystalvae.vae_module.reconstruction_errors import check_finite, reconstruction_errors
from crystalvae.vae_module.vae import CrystalVAE, Reconstruction

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure
    from torch_geometric.data import Batch

    OneCrystal = CrystalBatch | Structure | Atoms
    Structures = OneCrystal | Batch | Sequence[Structure] | Sequence[Atoms]

__all__ = ["DiagonalGaussianDistribution", "VAEModule"]  # published research code imports both from here
log = logging.getLogger(__name__)


class VAEModule(CrystalModule):
    """A crystal VAE with its objective, its augmentation and its optimiser.

    All arguments are plain config, and are kept in the checkpoint: `encoder`, `decoder` and `bottleneck` (None: the
    Gaussian) with a `_target_` each; `loss_weights` for atom_types, frac_coords, lengths, angles and kl; `objective`
    with a `_target_`, which turns the parts into the loss (None: `ELBO`); `augmentation` {translate, rotate}; `noise`
    as `InputNoise`; `optimizer` and `scheduler` with a `_target_` that takes the parameters, or the optimiser and the
    number of steps; `prior` with a `_target_` where a prior was trained for these latents (`LearnedPrior`);
    `condition` as `Conditioning` where encoder and decoder are given conditions. `load_from_checkpoint` also reads the
    published Chemeleon2 format, takes names of bundled models, and finds the VAE in the checkpoint of a prior, from
    which `sample` draws then, or of a predictor.
    """

    kind, kinds = "vae", "vae|prior|predictor"

    def __init__(
        self,
        *,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        latent_dim: int,
        bottleneck: Mapping[str, Any] | Bottleneck | None = None,
        atom_type_predict: bool = True,
        coord_loss: CoordLoss = "periodic",
        bound_lattice: bool = True,
        loss_weights: Mapping[str, float | None] | None = None,
        objective: Mapping[str, Any] | None = None,
        augmentation: Mapping[str, bool] | None = None,
        noise: Mapping[str, float] | None = None,
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        prior: Mapping[str, Any] | None = None,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = plain = plain_arguments(locals())
        self.statistics = {}
        check_switch("vae_module.atom_type_predict", atom_type_predict)
        check_switch("vae_module.bound_lattice", bound_lattice)
        conditioning = Conditioning.of(plain["condition"])
        built_decoder = conditioning.build("decoder", plain["decoder"], atom_type_predict=atom_type_predict)
        built_encoder = conditioning.build("encoder", plain["encoder"])
        built_bottleneck = as_bottleneck(
            build("bottleneck", plain["bottleneck"] or DEFAULT_BOTTLENECK, latent_dim=latent_dim)
        )
        weights = check_weights(plain["loss_weights"])
        self.vae = CrystalVAE(
            encoder=built_encoder,
            decoder=built_decoder,
            bottleneck=built_bottleneck,
            bound_lattice=bound_lattice,
            conditioning=conditioning,
            objective=build(
                "objective",
                plain["objective"] or {"_target_": f"{ELBO.__module__}.{ELBO.__name__}"},
                weights=weights,
                coord_loss=coord_loss,
                latent_dim=built_bottleneck.latent_dim,
            ),
        )
        self.loss_weights: dict[str, float] = dict(getattr(self.vae.objective, "weights", weights))
        self.prior = None
        if plain["prior"] is not None:
            given = not self.vae.atom_type_predict
            self.prior = build("prior", plain["prior"], latent_dim=self.latent_dim, elements_given=given)
            if not isinstance(self.prior, LearnedPrior):
                raise ConfigError(f"prior._target_: got a {type(self.prior).__name__}; expected a learned prior")
        self.augmentation = Augmentation.of(plain["augmentation"])
        self.noise = InputNoise(**(plain["noise"] or {}))
        self.noise_scales: FeatureScales | None = None
        self._latents: list[LatentStatistics] = []
        self._index: EmbeddingIndex | None = None

    @property
    def latent_dim(self) -> int:
        """Latent dimensions per atom."""
        return self.vae.latent_dim

    @property
    def atom_type_predict(self) -> bool:
        """Whether elements are decoded; otherwise they are given (structure prediction)."""
        return self.vae.atom_type_predict

    @property
    def condition(self) -> Conditioning:
        """Which conditions encoder and decoder are given."""
        return self.vae.conditioning

    @property
    def objective(self) -> nn.Module:
        """What turns the parts of the loss into one."""
        return self.vae.objective

    @property
    def any_origin(self) -> bool:
        """Whether the model was trained with crystals at any origin, so that origins may be shifted."""
        return self.augmentation.translate

    # ---- encode, decode, reconstruct: the research interface ---------------------------------------------------------

    def forward(
        self, batch: Structures, *, deterministic: bool | None = None, generator: torch.Generator | None = None
    ) -> VAEOutput:
        """Encode, take latents and decode them: what a VAE is called for, without a loss; keeps gradients.

        z is the posterior's mean where `deterministic`, else drawn from it; None: drawn in training mode (`train()`),
        the mean in evaluation. Crystals in any form that `encode` takes; nothing is augmented.
        """
        crystals = self.condition.known(self._crystals(batch))
        posterior = self.vae.encode(crystals)
        mean_alone = not self.training if deterministic is None else deterministic
        z = posterior.mode() if mean_alone else posterior.sample(generator)
        decoded = self.vae.decode(z, crystals)
        return VAEOutput(
            reconstruction=self.vae.to_crystals(decoded, crystals),
            mean=posterior.mean,
            log_var=getattr(posterior, "logvar", None),
            z=z,
            posterior=posterior,
            decoded=decoded,
        )

    def _crystals(self, batch: Any) -> CrystalBatch:
        crystals = given_crystals("batch", batch)
        return crystals if crystals.device == self.device else crystals.to(self.device)

    def encode(self, batch: Structures) -> dict[str, Any]:
        """Encode: {"posterior", "x": encoder output (N, D), "atom_types", "num_atoms", "batch", "token_idx"}.

        `batch` is a `CrystalBatch`, a PyG batch, or pymatgen structures or ASE atoms, one or a list of them.
        "conditions" holds what a conditional model was told of the crystals: what they are, as far as that is known.
        """
        crystals = self.condition.known(sound_crystals("encode", self._crystals(batch)))
        hidden = self.vae.hidden(crystals)
        return {
            "x": hidden,
            "posterior": self.vae.posterior(hidden, crystals),
            "atom_types": crystals.atom_types,
            "num_atoms": crystals.num_atoms,
            "batch": crystals.batch,
            "token_idx": crystals.token_idx,
            "conditions": told(crystals, self.condition.names),
        }

    def decode(
        self,
        encoded: Mapping[str, Any] | Float[Tensor, "N L"],
        *,
        num_atoms: int | Sequence[int] | Tensor | None = None,
        atom_types: Int[Tensor, "N"] | None = None,
        conditions: Mapping[str, object] | None = None,
    ) -> dict[str, Tensor]:
        """Decode latents `encoded["x"]` (N, L) for crystals of `encoded["num_atoms"]` atoms; writes nothing into it.

        Or decode a bare tensor (N, L) with `num_atoms` beside it (a count for each crystal, or one that all have), the
        elements `atom_types` (N,) in structure prediction, and `conditions` as `sample` takes them.

        Returns "atom_types" (N, 100) logits (absent in structure prediction), "frac_coords" (N, 3), "lattices" (B, 6),
        the same as "lengths" (B, 3), scaled, Å, and "angles" (B, 3), radians, and "coord_vectors" (N, 3, 2) where
        coordinates are decoded on the circle. Structure prediction reads the elements from `encoded["atom_types"]`, and
        a conditional model what it is told from `encoded["conditions"]`, if it is there.
        """
        if isinstance(encoded, Tensor):
            latents, crystals = encoded, crystals_of_latents(encoded, num_atoms, atom_types)
            crystals = self.condition.asked(crystals, conditions) if conditions else crystals
        else:
            if any(given is not None for given in (num_atoms, atom_types, conditions)):
                raise ConfigError(
                    "decode: got num_atoms, atom_types or conditions with a mapping; they belong into it, not beside it"
                )
            latents, atom_types = encoded["x"], encoded.get("atom_types")
            crystals = CrystalBatch.empty(encoded["num_atoms"], device=latents.device)
            crystals = crystals.replace(conditions=encoded.get("conditions", {}))
            crystals = crystals if atom_types is None else crystals.replace(atom_types=atom_types)
        if latents.shape[-1] != self.latent_dim:
            raise ConfigError(
                f"decode: got {latents.shape[-1]} numbers per atom; expected the latent dimension {self.latent_dim}, "
                'which encoded["posterior"].sample() and .mode() have'
            )
        if atom_types is None and self.vae.decoder.atom_type_input:
            raise ConfigError("decode: this model is given the elements; expected atom_types= (N,)")
        return self.vae.decode(latents, crystals).to_mapping()

    def reconstruct(self, decoder_out: Mapping[str, Tensor], batch: CrystalBatch | Batch) -> CrystalBatch:
        """Turn what `decode` returned into crystals with the atom counts of `batch` (and its elements if not told)."""
        return self.vae.to_crystals(DecodedCrystals.from_mapping(decoder_out), as_crystals(batch))

    @torch.no_grad()
    def reconstruct_crystals(
        self, crystals: CrystalBatch, *, conditions: Mapping[str, object] | None = None
    ) -> CrystalBatch:
        """Encode and decode with the posterior mean; gradients off, the model as it is.

        A conditional model encodes with what the crystals are, and decodes with the same or with `conditions`.
        """
        crystals = self.condition.known(sound_crystals("reconstruct_crystals", crystals))
        target = crystals if conditions is None else self.condition.asked(crystals, conditions)
        return self.vae.to_crystals(self.vae.reconstruct(crystals, target).decoded, target)

    # ---- sample ------------------------------------------------------------------------------------------------------

    @property
    def source(self) -> LatentSource:
        """What draws latents: the learned prior where there is one, else the bottleneck."""
        return self.vae.bottleneck if self.prior is None else cast("LearnedPrior", self.prior)

    def sample(
        self,
        batch: CrystalBatch | Batch | int | None = None,
        return_atoms: bool = False,
        return_structures: bool = False,
        *,
        n_samples: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int = 512,
        advance: Callable[[int], object] = lambda _done: None,
        **options: Any,
    ) -> CrystalBatch | list[Atoms] | list[Structure]:
        """Sample crystals with the atom counts of `batch` (`CrystalBatch.empty`), and its elements where given.

        For a number n, or `n_samples`, n crystals are sampled, with atom counts drawn from those of the training set;
        without either, one.

        Where the checkpoint holds a learned prior, latents are drawn from it, otherwise from the bottleneck's own; the
        log says which. `options` are those of `DrawOptions`: temperature, conditions, chemical_system,
        chemical_system_subsets, sampler. `batch_size` crystals are drawn at once, and `advance` is called after each
        batch how many it held. Returns ASE atoms or pymatgen structures where asked.
        """
        if return_atoms and return_structures:
            raise ValueError("sample: return_atoms and return_structures exclude each other")
        if batch is not None and n_samples is not None:
            raise ConfigError("sample: got both batch and n_samples; the number of crystals is said once")
        asked = DrawOptions.of(options)
        batch = n_samples if batch is None else batch
        if batch is None or isinstance(batch, Integral):
            count = 1 if batch is None else cast("int", batch)
            template = CrystalBatch.empty(self.draw_sizes(count, asked, generator))
        else:
            template = as_crystals(cast("CrystalBatch | Batch", batch))
        spread = partial(one_by_one, advance=advance)
        crystals = self.draw(template, asked, generator=generator, batch_size=batch_size, spread=spread)
        if return_atoms:
            return crystals.to_atoms()
        return crystals.to_structure() if return_structures else crystals

    def generate(self, batch: CrystalBatch | Batch | int | None = None, **options: Any) -> Any:
        """Sample crystals: another name of `sample`, with its options."""
        return self.sample(batch, **options)

    def sample_crystals(self, template: CrystalBatch, **options: Any) -> CrystalBatch:
        """Sample as `sample` does; always returns a `CrystalBatch`."""
        return cast("CrystalBatch", self.sample(template, **options))

    def draw(
        self,
        template: CrystalBatch,
        options: DrawOptions,
        *,
        generator: torch.Generator | None = None,
        batch_size: int = 512,
        spread: Spread = one_by_one,
    ) -> CrystalBatch:
        """Sample as `sample` does, from typed options; `spread` does the batches, here or in several processes."""
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        if not self.atom_type_predict:
            check_elements(template, proposed=self.prior is not None)
        asked = self.asked(template, options.conditions)
        without = ": this model holds no learned prior" if self.prior is None else ""
        log.info("sampling latents from %s%s", self.source.own_prior, without)
        how = {"generator": generator, "batch_size": batch_size, "spread": spread}
        return draw_crystals(self.vae, self.source, asked, options=options, **how)

    def asked(self, crystals: CrystalBatch, conditions: Mapping[str, object] | None) -> CrystalBatch:
        """Return crystals that carry the conditions asked for; unchanged where there are none.

        Raises `ConfigError` for a condition that the prior, or without one the VAE, was not trained on.
        """
        if not conditions:
            return crystals
        if self.prior is None:
            return self.condition.asked(crystals, conditions)
        prior = cast("LearnedPrior", self.prior)
        values = asked_values(conditions, prior.names, len(crystals), classes=prior.classes)
        return crystals.replace(conditions={name: value.to(crystals.device) for name, value in values.items()})

    def draw_sizes(self, count: int, options: DrawOptions, generator: torch.Generator | None) -> Int[Tensor, "B"]:
        """Draw atom counts from those of the training set, given what is asked for as far as the model knows."""
        source, weights_of = self.source, None
        if isinstance(source, GeneSource) and options.needs_genes:
            weights_of = partial(source.size_weights, options=options)
        return draw_atom_counts(
            self.statistics, count, generator=generator, elements=self.elements_needed(options), weights_of=weights_of
        )

    def elements_needed(self, options: DrawOptions) -> int:
        """Return how many different elements each crystal will have to have."""
        every = not self.atom_type_predict and not options.chemical_system_subsets
        return len(options.elements) if options.elements is not None and every else 0

    # ---- latent space ------------------------------------------------------------------------------------------------
    #
    # Crystals may be given as `CrystalBatch`, PyG batch, pymatgen structures or ASE atoms, one or a list, and are taken
    # as they are: reduce cells first where the model was trained on reduced ones (`data.readers` does). Unless said
    # otherwise, a `CrystalBatch` comes back, whose `properties` tell what belongs to each crystal, and which
    # `latent_space.write_series` writes as CIFs or as a trajectory. Gradients are off, the model as it is.
    #
    # A conditional model reconstructs and walks knowing what the given crystals are; embeddings are made without, so
    # that they do not depend on what happens to be known of a crystal.

    def taken(self, name: str, structures: Any, *, single: bool = False) -> CrystalBatch:
        """Return crystals in any of the forms above as a batch on the model's device; `name` is for errors."""
        return sound_crystals(name, (to_crystal if single else to_crystals)(name, structures)).to(self.device)

    def reparameterize(
        self, mean: Float[Tensor, "N L"], logvar: Float[Tensor, "N L"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "N L"]:
        """Draw z = μ + exp(½ log σ²) ε with ε from N(0, I); with gradients to both (Kingma & Welling 2014, 2.4).

        log σ² is clamped to `LOG_VARIANCE_RANGE`, as that of a posterior is.
        """
        if mean.shape != logvar.shape:
            raise ConfigError(f"logvar: got shape {tuple(logvar.shape)}; expected that of mean, {tuple(mean.shape)}")
        std = torch.exp(0.5 * logvar.clamp(*LOG_VARIANCE_RANGE))
        return mean + std * normal_noise(mean.shape, mean.device, generator).to(mean)

    def reconstruct_structures(
        self,
        structures: Structures,
        deterministic: bool = True,
        *,
        generator: torch.Generator | None = None,
        batch_size: int = 512,
    ) -> list[Structure]:
        """Encode, decode, and return pymatgen structures: of the posterior's mode, else of a draw from it."""
        crystals = self.condition.known(self.taken("structures", structures))
        made = reconstruct(self.vae, crystals, deterministic=deterministic, generator=generator, batch_size=batch_size)
        return made.to_structure()

    def embed(self, structures: Structures, *, batch_size: int = 512) -> Float[Tensor, "B D"]:
        """Return one vector per crystal, which depends on neither origin nor order of atoms: see `embedding.embed`."""
        crystals = self.taken("structures", structures)
        return embed(self.vae, crystals, every_origin=self.any_origin, batch_size=batch_size)

    def interpolate(self, a: OneCrystal, b: OneCrystal, steps: int = 9, mode: Mode = "linear") -> CrystalBatch:
        """Return `steps` crystals on the way from a to b, both included; see `interpolation.interpolate`."""
        one, other = (self.condition.known(self.taken(name, c, single=True)) for name, c in (("a", a), ("b", b)))
        return interpolation.interpolate(self.vae, one, other, steps=steps, mode=mode, shift_origin=self.any_origin)

    def latent_traversal(
        self,
        structure: OneCrystal,
        dim: int,
        range: tuple[float, float] = (-3.0, 3.0),  # noqa: A002  the name that VAE libraries have for it
        steps: int = 7,
        *,
        range_vals: tuple[float, float] | None = None,
        atom: int | None = None,
    ) -> CrystalBatch:
        """Return crystals in which latent dimension `dim` is moved by offsets in `range`: `interpolation.traverse`.

        `range_vals` is another name of `range`.
        """
        if range_vals is not None:
            if tuple(range) != (-3.0, 3.0):
                raise ConfigError("latent_traversal: got both range and range_vals; they are the same, give one")
            range = range_vals  # noqa: A001
        crystal = self.condition.known(self.taken("structure", structure, single=True))
        return interpolation.traverse(self.vae, crystal, dim=dim, limits=range, steps=steps, atom=atom)

    def build_index(
        self, dataset: CrystalDataset, *, cache_dir: Path | str | None = None, batch_size: int = 512
    ) -> EmbeddingIndex:
        """Embed a data set for `nearest`, which uses the index built last; with `cache_dir` it is kept on disk."""
        self._index = EmbeddingIndex.build(
            self.vae, dataset, every_origin=self.any_origin, batch_size=batch_size, cache_dir=cache_dir
        )
        return self._index

    def nearest(self, structure: OneCrystal, k: int = 5, *, index: EmbeddingIndex | None = None) -> Neighbours:
        """Return the `k` crystals whose embeddings are nearest, from `index` or the one that `build_index` made.

        Raises `ConfigError` where there is none, or it was made with other weights than the model has now.
        """
        index = self._index if index is None else index
        if index is None:
            raise ConfigError(
                "nearest: no index to search; make one of the training set, as in "
                'vae.build_index(MP20().load("train")), or give index='
            )
        return index.nearest_to(self.vae, self.taken("structure", structure, single=True), k)

    def latent_map(
        self,
        structures: Structures | CrystalDataset,
        path: Path | str,
        *,
        color: str | None = None,
        method: Method = "pca",
        seed: int = 0,
    ) -> Float[Tensor, "B 2"]:
        """Draw a 2-D map of embeddings as a PNG, coloured by the property `color`, and return its points.

        Raises `ConfigError` for a property that the crystals do not have, listing those they have.
        """
        crystals = to_crystals("structures", structures)
        return latent_map(self.embed, crystals, path, color=color, method=method, seed=seed)

    # ---- training ----------------------------------------------------------------------------------------------------

    def losses(
        self,
        batch: TrainingBatch | Structures,
        *,
        step: int | None = None,
        epoch: int | None = None,
        beta: float | None = None,
        training: bool | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted `loss` and its unweighted parts; `training` augments, adds noise and samples the latent.

        None: as the module is, `train()` or `eval()`. A `TrainingBatch` brings the seed of its noise; other crystals
        (in any form that `encode` takes) get noise that is a function of `step`, and without one is drawn by PyTorch's
        global generator. `step` and `epoch`, counted from 0, are for schedules of the KL weight and of the capacity; a
        Trainer at work knows them. `beta` is a KL weight that takes the place of the schedule's for this call.

        Raises `ConfigError` where the objective changes with time and neither a Trainer nor the caller tells it.
        """
        step, epoch = self._time(step, epoch)
        training = self.training if training is None else training
        shard = self._shard(batch, step if training else 0)
        made = self._reconstruction(shard, training=training)
        return self.vae.losses(made, shard, step=step, epoch=epoch, beta=beta)

    def create_loss_fn(
        self, step: int, *, epoch: int | None = None, beta: float | None = None, training: bool | None = None
    ) -> Callable[[TrainingBatch | Structures], Tensor]:
        """Return a function from crystals to the loss at this step, a number with gradients; options as `losses`."""
        return lambda batch: self.losses(batch, step=step, epoch=epoch, beta=beta, training=training)["loss"]

    def train_step(
        self,
        batch: TrainingBatch | Structures,
        optimizer: torch.optim.Optimizer,
        step: int,
        *,
        epoch: int | None = None,
        gradient_clip_val: float | None = None,
    ) -> dict[str, Tensor]:
        """Take one step of training, number `step` from 0, as a Trainer would, and return the losses before it.

        Codebooks learn, too; a learning-rate schedule is the caller's. `gradient_clip_val` is the largest norm of the
        gradient. The module stays in the mode it is in: call `train()` where there is dropout. Before the first step,
        `vae.fit_conditions(crystals)` tells a conditional model the scale of its conditions. Raises `TrainingError`
        for a loss that is not finite.
        """
        _, epoch = self._time(step, epoch)
        losses = self._training_losses(self._shard(batch, step), step, epoch)
        optimizer.zero_grad()
        losses["loss"].backward()
        if gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def _time(self, step: int | None, epoch: int | None) -> tuple[int | None, int | None]:
        """Return step and epoch: as given, else those of a Trainer at work; None where there is none."""
        for name, value in (("step", step), ("epoch", epoch)):
            if value is not None:
                check_count(name, value, at_least=0)
        trainer = self._trainer
        if trainer is None or trainer.state.status != TrainerStatus.RUNNING:
            return step, epoch
        return self.global_step if step is None else step, self.current_epoch if epoch is None else epoch

    def _shard(self, batch: TrainingBatch | Structures, step: int | None) -> TrainingBatch:
        if isinstance(batch, TrainingBatch):
            return batch
        number = int(torch.randint(2**31, ())) if step is None else step
        return TrainingBatch.whole(self._crystals(batch), seed=(0, 0, number))

    def _training_losses(self, shard: TrainingBatch, step: int | None, epoch: int | None) -> dict[str, Tensor]:
        made = self._reconstruction(shard, training=True)
        losses = self.vae.losses(made, shard, step=step, epoch=epoch)
        check_finite(losses, shard, getattr(self._trainer, "datamodule", None))
        self.vae.bottleneck.update(made.posterior, shard)
        return losses

    def _reconstruction(self, batch: TrainingBatch, *, training: bool) -> Reconstruction:
        target = batch.crystals
        if not training:
            target = self.condition.known(target)
            return self.vae.reconstruct(target, target)
        generator = batch.generator()
        target = self.condition.dropped(self.augmentation(batch, generator), batch, generator)
        seen = self.noise(batch, target, generator, self.noise_scales)
        noise = torch.randn(batch.total_atoms, self.latent_dim, generator=generator, device=target.device)
        return self.vae.reconstruct(seen, target, noise=batch.per_atom(noise))

    def training_step(self, batch: TrainingBatch | CrystalBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of one batch and log its parts; stop with the crystals' ids where it is not finite."""
        shard = self._shard(batch, self.global_step)
        losses = self._training_losses(shard, *self._time(None, None))
        return log_training(self, losses, batch_size=shard.crystals.num_graphs, world_size=shard.world_size)

    def validation_step(self, batch: TrainingBatch | CrystalBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Log losses and reconstruction errors with the posterior mean."""
        self._evaluation_step(batch, "val")

    def test_step(self, batch: TrainingBatch | CrystalBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Log losses and reconstruction errors with the posterior mean."""
        self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: TrainingBatch | CrystalBatch, stage: str) -> None:
        whole = TrainingBatch.whole(as_crystals(batch))
        made = self._reconstruction(whole, training=False)
        self._latents.append(LatentStatistics.of(made.posterior.mode(), self.vae.kl(made)))
        errors = reconstruction_errors(self.vae.to_crystals(made.decoded, made.target), made.target)
        step, epoch = self._time(None, None)
        losses = self.vae.losses(made, whole, step=step, epoch=epoch)
        self.log_dict(named(stage, {**losses, **errors}), batch_size=made.target.num_graphs, sync_dist=True)

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
        self.log_dict(named(stage, statistics.metrics()), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Build the optimiser and the learning-rate schedule over the number of steps of the whole run."""
        if self.prior is not None:
            raise ConfigError(
                "vae_module.prior: expected null in training; a prior is trained afterwards, by crystalvae train-prior"
            )
        return build_optimizer(self.config, self.parameters(), self.trainer, section="vae_module")

    def on_fit_start(self) -> None:
        """Take the training set's statistics into the model, and so into its checkpoints."""
        if (warning := getattr(self.objective, "too_light", None)) and self.trainer.is_global_zero:
            log.warning("%s", warning)
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            crystals = datamodule.dataset("train").crystals
            ranges = condition_ranges(self.condition.values(crystals), self.condition.known_classes)
            self.statistics = {**datamodule.statistics(), **({"conditions": ranges} if ranges else {})}
            self.vae.fit_conditions(crystals)
            if self.noise.relative > 0:
                self.noise_scales = FeatureScales.of(crystals)
