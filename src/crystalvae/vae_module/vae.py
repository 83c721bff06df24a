"""The variational autoencoder itself: a plain module that encodes and decodes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import bound_angles, lattice_from_parameters
from crystalvae.errors import ConfigError
from crystalvae.vae_module.bottlenecks.base import Bottleneck, Posterior
from crystalvae.vae_module.decoders.transformer import DecodedCrystals
from crystalvae.vae_module.layers.precision import full_precision

SCALED_LENGTH_RANGE = (0.5, 60.0)
"""Decoded lengths / n^(1/3) are clamped to this range (Å); MP-20 spans 1.03 to 20.1."""
MIN_VOLUME_PER_ATOM = 2.0
"""Smaller decoded cells are blown up to this (Å^3); the densest crystals of MP-20 and diamond have 5.7."""


@runtime_checkable
class Encoder(Protocol):
    """What the VAE asks of an encoder: its width, and one vector of that width an atom."""

    d_model: int

    def __call__(self, crystals: CrystalBatch) -> Float[Tensor, "N D"]:
        """Encode crystals."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """What the VAE asks of a decoder."""

    d_model: int
    atom_type_predict: bool
    atom_type_input: bool

    def __call__(self, tokens: Float[Tensor, "N D"], crystals: CrystalBatch) -> DecodedCrystals:
        """Decode hidden vectors for crystals of known atom counts."""
        ...


class CrystalVAE(nn.Module):
    """Encoder, `quant_conv`, the bottleneck with a latent an atom, `post_quant_conv`, decoder.

    `bound_lattice` keeps decoded cells sensible: lengths clamped to `SCALED_LENGTH_RANGE`, angles through
    `bound_angles`, and a volume of at least `MIN_VOLUME_PER_ATOM`; the published format has no such bounds.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        bottleneck: nn.Module,
        bound_lattice: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(bottleneck, Bottleneck):
            raise ConfigError(f"bottleneck: got a {type(bottleneck).__name__}; expected a Bottleneck")
        if not isinstance(encoder, Encoder) or not isinstance(decoder, Decoder):
            raise ConfigError("encoder, decoder: expected modules with d_model, and atom_type_predict for the decoder")
        self.encoder, self.decoder, self.bottleneck = encoder, decoder, bottleneck
        self.bound_lattice = bound_lattice
        self.quant_conv = nn.Linear(encoder.d_model, bottleneck.input_dim, bias=False)
        self.post_quant_conv = nn.Linear(bottleneck.output_dim, decoder.d_model, bias=False)

    @property
    def latent_dim(self) -> int:
        """Latent numbers an atom, as `decode` takes them."""
        return self.bottleneck.latent_dim

    @property
    def atom_type_predict(self) -> bool:
        """Whether the decoder predicts elements; otherwise they are given (structure prediction)."""
        return bool(self.decoder.atom_type_predict)

    def hidden(self, crystals: CrystalBatch) -> Float[Tensor, "N D"]:
        """Return the encoder's output."""
        return self.encoder(crystals)

    def posterior(self, hidden: Float[Tensor, "N D"], crystals: CrystalBatch) -> Posterior:
        """Return the posterior of the latents for the encoder's output."""
        with full_precision(hidden):
            return self.bottleneck.posterior(self.quant_conv(hidden.float()), crystals)

    def encode(self, crystals: CrystalBatch) -> Posterior:
        """Return q(z | crystal) over `latent_dim` numbers an atom."""
        return self.posterior(self.hidden(crystals), crystals)

    def decode(self, latents: Float[Tensor, "N L"], crystals: CrystalBatch) -> DecodedCrystals:
        """Decode latents; of `crystals` only the atom counts are read, and the elements in structure prediction."""
        with full_precision(latents):
            features = self.bottleneck.features(latents, crystals)
        return self.decoder(self.post_quant_conv(features), crystals)

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
