"""A network from the latents of a crystal's atoms to one of its properties."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.checks import check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.layers.mlp import PooledMLP
from crystalvae.vae_module.layers.pooling import mean_over_atoms


class PropertyHead(nn.Module):
    """Standardised latents, a linear map, a `PooledMLP`, the mean over atoms, a linear map: one number per crystal.

    Latents are divided by their standard deviation in the training set after their mean is taken off; targets are
    standardised likewise, and the output is given in the target's own unit. Where the VAE is given the elements
    (`elements_given`), which its latents then need not hold, their embedding is added.
    """

    latent_mean: Tensor
    latent_std: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        *,
        latent_dim: int,
        elements_given: bool,
        d_model: int = 128,
        num_layers: int = 3,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        max_num_elements: int = 100,
    ) -> None:
        super().__init__()
        check_count("predictor.head.d_model", d_model)
        check_count("predictor.head.max_num_elements", max_num_elements)
        self.embed = nn.Linear(latent_dim, d_model)
        self.atom_type_embedder = nn.Embedding(max_num_elements, d_model) if elements_given else None
        self.layers = PooledMLP(
            part="predictor.head",
            d_model=d_model,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
        )
        self.read_off = nn.Linear(d_model, 1)
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_std", torch.ones(latent_dim))
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_std", torch.ones(()))

    def fit(self, latents: Float[Tensor, "N L"], targets: Float[Tensor, "B"]) -> None:
        """Take over mean and standard deviation of a training set's latents and targets."""
        self.latent_mean.copy_(latents.mean(dim=0))
        self.latent_std.copy_(latents.std(dim=0, correction=0).clamp_min(1e-6))
        self.target_mean.copy_(targets.mean())
        self.target_std.copy_(targets.std(correction=0).clamp_min(1e-6))

    def standardized(self, latents: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:
        """Return latents in units of their standard deviation, from their mean."""
        return (latents - self.latent_mean) / self.latent_std

    def forward(self, latents: Float[Tensor, "N L"], crystals: CrystalBatch) -> Float[Tensor, "B"]:
        """Predict the property, standardised; of `crystals` the atom counts are read, and the elements where given."""
        tokens = self.embed(self.standardized(latents))
        if self.atom_type_embedder is not None:
            tokens = tokens + self.atom_type_embedder(crystals.atom_types)
        return self.read_off(mean_over_atoms(self.layers(tokens, crystals), crystals)).squeeze(-1)

    def predict(self, latents: Float[Tensor, "N L"], crystals: CrystalBatch) -> Float[Tensor, "B"]:
        """Predict the property in its own unit."""
        return self.target_mean + self.target_std * self(latents, crystals)
