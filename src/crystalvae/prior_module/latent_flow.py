"""The prior itself: a plain module over a VAE's latents that knows its losses and draws new latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystalvae.checks import check_choice
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.canonical import element_order
from crystalvae.errors import ConfigError
from crystalvae.prior_module.composition_model import CompositionModel, Compositions
from crystalvae.prior_module.denoiser import Denoiser
from crystalvae.prior_module.flow import Prediction, SamplerOptions, interpolate, preconditioning, solve
from crystalvae.prior_module.hints import Hints
from crystalvae.vae_module.conditions.embedder import ConditionEmbedder
from crystalvae.vae_module.conditions.values import Classes, Values, known_classes, told
from crystalvae.vae_module.distribution import normal_noise
from crystalvae.vae_module.latent_source import Drawn, DrawOptions


@dataclass(frozen=True, eq=False)
class PriorNoise:
    """All random numbers of one training step: noise (N, L), time (B,), whether to self-condition."""

    noise: Float[Tensor, "N L"]
    time: Float[Tensor, "B"]
    self_condition: bool


class LatentFlow(nn.Module):
    """Flow matching over the latents of the atoms of a crystal, given atom counts, conditions and maybe elements.

    Where the VAE decodes elements (`elements_given` false) the latents hold them. Where it is given them, they are an
    input here too, and `composition` {d_model, nhead, num_layers, dropout, max_atoms} describes the model that
    proposes them; without it the prior can only predict structures of given compositions. `prediction`: what the
    network's output stands for, "x1" the clean latents, "velocity", or "preconditioned", what is missing from the best
    linear estimate of the clean latents (see `preconditioning`). `self_conditioning` feeds the network its last
    estimate. `sampler` holds the default `SamplerOptions`. Latents are standardised with the mean and standard
    deviation over the training set, kept as buffers.
    """

    own_prior = "learned prior"
    genes_given: ClassVar[bool] = False
    """Whether the network is told genes: `SymmetricFlow`."""
    latent_mean: Tensor
    latent_std: Tensor
    signal: Tensor

    def __init__(
        self,
        *,
        latent_dim: int,
        elements_given: bool,
        d_model: int,
        nhead: int,
        num_layers: int,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        prediction: Prediction = "preconditioned",
        self_conditioning: bool = True,
        conditions: Sequence[str] = (),
        classes: Mapping[str, int | Sequence[str]] | None = None,
        composition: Mapping[str, Any] | None = None,
        sampler: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("prior.prediction", prediction, get_args(Prediction))
        if composition is not None and not elements_given:
            raise ConfigError("prior.composition: the VAE decodes elements from its latents; set composition=null")
        self.latent_dim, self.elements_given, self.prediction = latent_dim, elements_given, prediction
        self.self_conditioning = self_conditioning
        self.sampler = SamplerOptions(**(sampler or {}))
        told = {"names": conditions, "classes": known_classes(classes, key="prior.classes")}
        self.conditions = ConditionEmbedder(**told, d_model=d_model)
        self.denoiser = Denoiser(
            latent_dim=latent_dim,
            d_model=d_model,
            nhead=nhead,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            elements_given=elements_given,
            self_conditioning=self_conditioning,
            genes_given=self.genes_given,
        )
        self.composition = None
        if composition is not None:
            self.composition = CompositionModel(**composition)
            width = self.composition.element_embedder.embedding_dim
            self.composition_conditions = ConditionEmbedder(**told, d_model=width)
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_std", torch.ones(latent_dim))
        self.register_buffer("signal", torch.ones(latent_dim))

    @property
    def names(self) -> list[str]:
        """The conditions this prior was built for."""
        return self.conditions.names

    @property
    def classes(self) -> Classes:
        """All conditions that are classes, with the names of their labels."""
        return self.conditions.classes

    @property
    def proposes_elements(self) -> bool:
        """Whether there is a model of compositions, so that elements need not be given."""
        return self.composition is not None

    def fit_latents(self, mean: Float[Tensor, "N L"], variance: Float[Tensor, "N L"]) -> None:
        """Take over the statistics of the posteriors N(mean, variance) of a whole training set.

        `signal` is the share of each latent dimension's variance that tells crystals apart, Var μ / (Var μ + E σ²); the
        flow's loss weighs the numbers with it, as the rest is noise that no estimate can know.
        """
        mean, variance = (values.cpu().double() for values in (mean, variance))  # Apple's devices have no float64
        between = mean.var(dim=0)
        total = between + variance.mean(dim=0)
        self.latent_mean.copy_(mean.mean(dim=0).float())
        self.latent_std.copy_(total.sqrt().clamp_min(1e-6).float())
        self.signal.copy_((between / total.clamp_min(1e-12)).float())

    def standardize(self, latents: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:
        """Return (z - mean) / std."""
        return (latents - self.latent_mean) / self.latent_std

    # ---- training ----------------------------------------------------------------------------------------------------

    def flow_loss(
        self,
        latents: Float[Tensor, "N L"],
        crystals: CrystalBatch,
        values: Values,
        draws: PriorNoise,
        hints: Hints | None = None,
    ) -> Float[Tensor, "N"]:
        """Return each atom's squared error of the prediction, averaged over latent dimensions with weight `signal`.

        For "x1" it is |x̂_1 - x_1|², for "velocity" |v̂ - (x_1 - ε)|², for "preconditioned" |x̂_1 - x_1|² / c_out²; all of
        standardised latents.
        """
        clean = self.standardize(latents)
        noisy = interpolate(clean, draws.noise, draws.time[crystals.batch])
        context = self.conditions(values, crystals.num_graphs)
        estimate = None
        if self.self_conditioning and draws.self_condition:
            with torch.no_grad():
                first = self.denoiser(noisy, draws.time, crystals, context, None, hints)
                estimate = self._to_clean(first, noisy, draws.time[crystals.batch][:, None])
        output = self.denoiser(noisy, draws.time, crystals, context, estimate, hints)
        target = self._target(clean, noisy, draws.noise, draws.time[crystals.batch][:, None])
        weights = self.signal / self.signal.sum()
        return ((output - target).square() * weights).sum(dim=-1)

    def composition_loss(self, crystals: CrystalBatch, values: Values) -> Float[Tensor, "B"]:
        """Return -log p(composition | number of atoms, conditions) in nats for each crystal."""
        if self.composition is None:
            raise ConfigError("this prior has no composition model")
        context = self.composition_conditions(values, crystals.num_graphs)
        return self.composition.negative_log_likelihood(Compositions.of(crystals), context)

    def _to_clean(
        self, output: Float[Tensor, "N L"], noisy: Float[Tensor, "N L"], time: Float[Tensor, "..."]
    ) -> Float[Tensor, "N L"]:
        if self.prediction == "preconditioned":
            skip, scale = preconditioning(time)
            return skip * noisy + scale * output
        return output if self.prediction == "x1" else noisy + (1 - time) * output

    def _target(
        self,
        clean: Float[Tensor, "N L"],
        noisy: Float[Tensor, "N L"],
        noise: Float[Tensor, "N L"],
        time: Float[Tensor, "N 1"],
    ) -> Float[Tensor, "N L"]:
        """Return what the network's output should be."""
        if self.prediction == "preconditioned":
            skip, scale = preconditioning(time)
            return (clean - skip * noisy) / scale.clamp_min(1e-4)
        return clean if self.prediction == "x1" else clean - noise

    # ---- sampling ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample_latents(
        self,
        crystals: CrystalBatch,
        values: Values,
        *,
        options: SamplerOptions,
        noise: Callable[[], Float[Tensor, "N L"]],
        hints: Hints | None = None,
        projected: Callable[[Float[Tensor, "N L"]], Float[Tensor, "N L"]] | None = None,
    ) -> Float[Tensor, "N L"]:
        """Draw latents for the atom counts (and elements, where they are given) of `crystals`.

        `noise()` gives standard normal noise, one row per atom. `projected` takes standardised latents to those of the
        nearest symmetric crystals; the estimate of every step but the last goes through it.
        """
        count = crystals.num_graphs
        asked = self.conditions(values, count)
        unknown = None
        if options.guidance_scale != 1.0:
            nothing = {name: torch.full_like(given, torch.nan) for name, given in values.items()}
            unknown = self.conditions(nothing, count)

        last_time = options.times()[-2]

        def estimate(x: Float[Tensor, "N L"], time: float, last: Float[Tensor, "N L"] | None) -> Float[Tensor, "N L"]:
            clean = self._clean(x, time, crystals, asked, last, hints)
            if unknown is not None:
                free = self._clean(x, time, crystals, unknown, last, hints)
                clean = free + options.guidance_scale * (clean - free)
            if hints is not None and time < options.trust:
                clean = torch.where(hints.elements[:, None] > 0, hints.latents, clean)
            return clean if projected is None or time >= last_time else projected(clean)

        latents = solve(estimate, noise(), options, noise)
        return latents * self.latent_std + self.latent_mean

    @torch.no_grad()
    def estimate(
        self,
        noisy: Float[Tensor, "N L"],
        time: float,
        crystals: CrystalBatch,
        values: Values,
        last: Float[Tensor, "N L"] | None,
        hints: Hints | None = None,
    ) -> Float[Tensor, "N L"]:
        """Return what noisy standardised latents at time t are estimated to be; `last` is an earlier estimate."""
        return self._clean(noisy, time, crystals, self.conditions(values, crystals.num_graphs), last, hints)

    def _clean(
        self, x: Tensor, time: float, crystals: CrystalBatch, context: Tensor, last: Tensor | None, hints: Hints | None
    ) -> Float[Tensor, "N L"]:
        times = x.new_full((crystals.num_graphs,), time)
        return self._to_clean(self.denoiser(x, times, crystals, context, last, hints), x, x.new_tensor(time))

    @torch.no_grad()
    def sample_elements(
        self, num_atoms: Int[Tensor, "B"], values: Values, *, generator: torch.Generator, **options: Any
    ) -> Int[Tensor, "N"]:
        """Draw the elements of crystals with these atom counts; `options` are those of `CompositionModel.sample`."""
        if self.composition is None:
            raise ConfigError("this prior has no composition model: give the elements with composition=…")
        context = self.composition_conditions(values, len(num_atoms))
        return self.composition.sample(num_atoms, context, generator=generator, **options).atom_types()

    # ---- as a source of latents (`LearnedPrior`) ---------------------------------------------------------------------

    def sampler_options(self, changes: Mapping[str, Any] | None) -> SamplerOptions:
        """Return the default options with some changed; `ConfigError` lists what there is where one is unknown."""
        allowed = {entry.name for entry in fields(SamplerOptions)}
        unknown = sorted(set(changes or {}) - allowed)
        if unknown:
            raise ConfigError(f"sampler: unknown {', '.join(unknown)}; expected some of {', '.join(sorted(allowed))}")
        if not self.genes_given and (unanswered := sorted(set(changes or {}) & {"projection", "analogues", "trust"})):
            raise ConfigError(f"sampler: {', '.join(unanswered)} needs a prior with a gene model")
        return replace(self.sampler, **(changes or {}))

    def check(self, options: DrawOptions) -> None:
        """Raise `ConfigError` for options of the sampler, a temperature, or space groups to be met by construction."""
        self.check_sampler(options)
        if options.needs_genes:
            raise ConfigError(f"{', '.join(options.needs_genes)}: this prior has no gene model; ask with conditions=")

    def check_sampler(self, options: DrawOptions) -> None:
        """Raise `ConfigError` for a temperature, which a learned prior has none of, and for options of the sampler."""
        if options.temperature != 1.0:
            raise ConfigError(
                f"temperature: got {options.temperature}; expected 1.0, as a learned prior has no temperature: use "
                "sampler.composition_temperature or sampler.stochasticity"
            )
        self.sampler_options(options.sampler)

    def draw(self, crystals: CrystalBatch, *, options: DrawOptions, generator: torch.Generator) -> Drawn:
        """Draw elements, where there are none, then latents, for atoms in the order that the prior was trained on.

        The conditions that `crystals` carry are the prior's; the VAE gets none.
        """
        sampler, values = self.sampler_options(options.sampler), told(crystals, self.names)
        placed, order = self._with_elements(crystals.replace(conditions={}), values, sampler, options, generator)
        noise = partial(normal_noise, (placed.num_nodes, self.latent_dim), placed.device, generator)
        latents = self.sample_latents(placed, values, options=sampler, noise=noise)
        return Drawn(latents, placed, order, redraws=sampler.redraws)

    def _with_elements(
        self,
        crystals: CrystalBatch,
        values: Values,
        sampler: SamplerOptions,
        options: DrawOptions,
        generator: torch.Generator,
    ) -> tuple[CrystalBatch, Tensor | None]:
        """Return crystals with elements in the order of `element_order`, and what puts them back in theirs."""
        unknown = crystals.atom_types == 0
        if not self.elements_given:
            if not bool(unknown.all()):
                raise ConfigError(
                    "composition: this model decodes elements from its latents and cannot take them; use a "
                    "checkpoint for structure prediction"
                )
            return crystals, None
        if bool(unknown.all()):
            drawn = self.sample_elements(
                crystals.num_atoms,
                values,
                generator=generator,
                temperature=sampler.composition_temperature,
                chemical_system=options.elements,
                subsystems=options.chemical_system_subsets,
            )
            return crystals.replace(atom_types=drawn), None
        elements = options.elements
        if elements is not None and not bool(torch.isin(crystals.atom_types.cpu(), torch.tensor(elements)).all()):
            raise ConfigError(
                "composition and chemical_system exclude each other: the composition has elements outside the system"
            )
        ranks = element_order().to(crystals.device)[crystals.atom_types]
        order = (crystals.batch * len(element_order()) + ranks).argsort(stable=True)
        return crystals.replace(atom_types=crystals.atom_types[order]), order.argsort()
