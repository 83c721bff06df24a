"""The VAE: encoders, decoders, the latent between them, and the Lightning module that trains them."""

from crystalvae.vae_module.distribution import DiagonalGaussianDistribution
from crystalvae.vae_module.vae import CrystalVAE
from crystalvae.vae_module.vae_module import VAEModule

__all__ = ["CrystalVAE", "DiagonalGaussianDistribution", "VAEModule"]
