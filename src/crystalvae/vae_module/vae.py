"""The variational autoencoder itself: a plain module that encodes, decodes and knows its losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import bound_angles, lattice_from_parameters
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.bottlenecks.base import Posterior, as_bottleneck
from crystalvae.vae_module.conditions.injection import Conditioning, Part
from crystalvae.vae_module.decoders.heads import DecodedCrystals
from crystalvae.vae_module.layers.precision import full_precision
from crystalvae.vae_module.objectives.elbo import ELBO, PUBLISHED_WEIGHTS

SCALED_LENGTH_RANGE = (0.5, 60.0)
"""Decoded lengths / n^(1/3) are clamped to this range (Å); MP-20 spans 1.03 to 20.1."""
MIN_VOLUME_PER_ATOM = 2.0
"""Smaller decoded cells are blown up to this (Å^3); the densest crystals of MP-20 and diamond have 5.7."""


@runtime_checkable
class Encoder(Protocol):
    """What the VAE asks of an encoder: its width, and one vector of that width per atom.

    One whose layer norms adapt to conditions is built with `d_condition`, keeps it under that name, and is called with
    `condition` (B, C) as well.
    """

    d_model: int

    def __call__(self, crystals: CrystalBatch) -> Float[Tensor, "N D"]:
        """Encode crystals."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """What the VAE asks of a decoder; conditions as for an encoder."""

    d_model: int
    atom_type_predict: bool
    atom_type_input: bool

    def __call__(self, tokens: Float[Tensor, "N D"], crystals: CrystalBatch) -> DecodedCrystals:
        """Decode hidden vectors for crystals of known atom counts."""
        ...


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What became of crystals that were encoded and decoded: `decoded` from `latents` of `posterior`, for `target`."""

    target: CrystalBatch
    posterior: Posterior
    latents: Float[Tensor, "N L"]
    decoded: DecodedCrystals


class CrystalVAE(nn.Module):
    """Encoder, `quant_conv`, the bottleneck with a latent per atom, `post_quant_conv`, decoder.

    `bound_lattice` keeps decoded cells sensible: lengths clamped to `SCALED_LENGTH_RANGE`, angles through
    `bound_angles`, and a volume of at least `MIN_VOLUME_PER_ATOM`; the published format has no such bounds. `objective`
    turns what was decoded into losses (None: `ELBO` with the published weights). `conditioning` says which conditions
    of the crystals encoder and decoder are told (None: none).
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        bottleneck: nn.Module,
        bound_lattice: bool = True,
        objective: nn.Module | None = None,
        conditioning: Conditioning | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, Encoder) or not isinstance(decoder, Decoder):
            raise ConfigError("encoder, decoder: expected modules with d_model, and atom_type_predict for the decoder")
        self.conditioning = Conditioning() if conditioning is None else conditioning
        self._check_adapts("encoder", encoder)
        self._check_adapts("decoder", decoder)
        # Each part after what tells it conditions: optimisers know parameters by their order.
        self.encoder_conditions = self.conditioning.part("encoder", encoder.d_model)
        self.encoder = encoder
        self.decoder_conditions = self.conditioning.part("decoder", decoder.d_model)
        self.decoder, self.bottleneck = decoder, as_bottleneck(bottleneck)
        self.bound_lattice = bound_lattice
        self.quant_conv = nn.Linear(encoder.d_model, self.bottleneck.input_dim, bias=False)
        self.post_quant_conv = nn.Linear(self.bottleneck.output_dim, decoder.d_model, bias=False)
        self.objective = objective or ELBO(weights=PUBLISHED_WEIGHTS, coord_loss="periodic", latent_dim=self.latent_dim)

    def _check_adapts(self, part: Part, module: nn.Module) -> None:
        built, asked = getattr(module, "d_condition", None), self.conditioning.width(part)
        if built == asked:
            return
        if asked is None:
            raise ConfigError(
                f"{part}.d_condition: got {built}, but none of its layer norms takes conditions; leave it out"
            )
        raise ConfigError(
            f"condition.injection: this {part} has no layer norm to adapt; set concat"
            if built is None
            else f"{part}.d_condition: got {built}; expected condition.d_model, {asked}"
        )

    @property
    def latent_dim(self) -> int:
        """Latent dimensions per atom, as `decode` takes them."""
        return self.bottleneck.latent_dim

    @property
    def atom_type_predict(self) -> bool:
        """Whether the decoder predicts elements; otherwise they are given (structure prediction)."""
        return bool(self.decoder.atom_type_predict)

    # ---- encode and decode -------------------------------------------------------------------------------------------

    def hidden(self, crystals: CrystalBatch) -> Float[Tensor, "N D"]:
        """Return the encoder's output, which knows the conditions that the crystals carry."""
        if self.encoder_conditions is None:
            return self.encoder(crystals)
        condition = self.encoder_conditions.embed(crystals)  # (B, C)
        hidden = self.encoder(crystals, **self.encoder_conditions.arguments(condition))  # (N, D)
        return self.encoder_conditions.mix(hidden, condition, crystals.batch)

    def posterior(self, hidden: Float[Tensor, "N D"], crystals: CrystalBatch) -> Posterior:
        """Return the posterior of the latents for the encoder's output."""
        with full_precision(hidden):
            return self.bottleneck.posterior(self.quant_conv(hidden.float()), crystals)

    def encode(self, crystals: CrystalBatch) -> Posterior:
        """Return q(z | crystal) over `latent_dim` numbers per atom."""
        return self.posterior(self.hidden(crystals), crystals)

    def decode(self, latents: Float[Tensor, "N L"], crystals: CrystalBatch) -> DecodedCrystals:
        """Decode latents.

        Of `crystals` only the atom counts are read, the elements in structure prediction, and the conditions that they
        carry.
        """
        with full_precision(latents):
            features = self.bottleneck.features(latents, crystals)
        tokens = self.post_quant_conv(features)
        if self.decoder_conditions is None:
            return self.decoder(tokens, crystals)
        condition = self.decoder_conditions.embed(crystals)  # (B, C)
        tokens = self.decoder_conditions.mix(tokens, condition, crystals.batch)
        return self.decoder(tokens, crystals, **self.decoder_conditions.arguments(condition))

    def to_crystals(self, decoded: DecodedCrystals, crystals: CrystalBatch) -> CrystalBatch:
        """Pick the likeliest elements and build the cells; predicted element 0 becomes 1, as published.

        `crystals` gives the atom counts, and the elements where the decoder does not predict them.
        """
        if decoded.atom_logits is None:
            atom_types = crystals.atom_types
        else:
            atom_types = decoded.atom_logits.argmax(dim=-1).clamp_min(1)
        lengths_scaled, angles = decoded.lengths_scaled, decoded.angles
        if self.bound_lattice:
            lengths_scaled, angles = lengths_scaled.clamp(*SCALED_LENGTH_RANGE), bound_angles(angles)
        lattices = lattice_from_parameters(lengths_scaled, angles)  # of a cell with one atom's share of the volume
        if self.bound_lattice:
            volume = torch.linalg.det(lattices).abs()
            lattices = lattices * (MIN_VOLUME_PER_ATOM / volume).pow(1 / 3).clamp_min(1.0)[:, None, None]
        return CrystalBatch(
            atom_types=atom_types,
            frac_coords=decoded.frac_coords,
            lattices=lattices * crystals.num_atoms[:, None, None].to(lattices.dtype).pow(1 / 3),
            num_atoms=crystals.num_atoms,
        )

    # ---- learn -------------------------------------------------------------------------------------------------------

    def reconstruct(
        self, seen: CrystalBatch, target: CrystalBatch, *, noise: Float[Tensor, "N L"] | None = None
    ) -> Reconstruction:
        """Encode what is `seen`, and decode it for `target`, the same atoms as they are to come out.

        `noise` is the standard normal noise of the latent; None: the latents that evaluation uses.
        """
        posterior = self.encode(seen)
        latents = posterior.mode() if noise is None else posterior.reparameterize(noise)
        return Reconstruction(target, posterior, latents, self.decode(latents, target))

    def losses(
        self,
        made: Reconstruction,
        batch: TrainingBatch,
        *,
        step: int | None = None,
        epoch: int | None = None,
        beta: float | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted `loss`, its unweighted parts, and what the bottleneck reports beside them.

        Sums are divided by this process's share of the global `batch`. `step` or `epoch` is for schedules; `beta` is a
        KL weight that takes their place. Raises `ConfigError` where a schedule that moves is told no time.
        """
        losses = self.objective(
            made.decoded,
            made.target,
            batch,
            means=made.posterior.mode(),
            kl=self.kl(made),
            penalties=self.bottleneck.penalties(made.posterior, atoms=batch.mean_atoms),
            penalty_weights=self.bottleneck.penalty_weights,
            step=step,
            epoch=epoch,
            beta=beta,
        )
        return {**losses, **self.bottleneck.metrics(made.posterior, made.latents, made.target)}

    def kl(self, made: Reconstruction) -> Float[Tensor, "N L"] | None:
        """Return the KL divergence from the prior in nats, by atom and latent dimension; None where it is constant."""
        return self.bottleneck.kl(made.posterior, made.latents, made.target)

    def fit_conditions(self, crystals: CrystalBatch) -> None:
        """Take over the training set's statistics of the conditions; `ConfigError` where it does not have one."""
        values = self.conditioning.values(crystals)
        for part in (self.encoder_conditions, self.decoder_conditions):
            if part is not None:
                part.embedder.fit(values)
