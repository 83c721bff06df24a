"""A transformer that looks at noisy latents and says what they were: flat tokens, adaptive layer norm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.checks import feedforward_width
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.prior_module.hints import HintEmbedder, Hints
from crystalvae.vae_module.layers.attention import PaddingPlan
from crystalvae.vae_module.layers.precision import full_precision
from crystalvae.vae_module.layers.transformer import SelfAttention, sinusoidal_positions


class ModulatedLayer(nn.Module):
    """Attention and a feed-forward network, shifted, scaled and gated per crystal (adaptive layer norm).

    Source: Peebles & Xie, "Scalable diffusion models with transformers" (2023), section 3.2; the six vectors come from
    one network shared by all layers plus an offset of the layer's own (Chen et al., PixArt-α, 2023, section 2.3).
    """

    def __init__(self, *, d_model: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(d_model=d_model, nhead=nhead, dropout=dropout)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(d_model, elementwise_affine=False)
        self.offset = nn.Parameter(torch.zeros(6, d_model))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "N D"], modulation: Float[Tensor, "N 6 D"], plan: PaddingPlan
    ) -> Float[Tensor, "N D"]:
        """Apply the layer; `modulation` holds, for each atom, the vectors of its crystal."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.offset).unbind(1)
        attended = self.attention(self.norm1(tokens) * (1 + scale1) + shift1, plan)
        tokens = tokens + gate1 * self.dropout(attended)
        hidden = F.gelu(self.linear1(self.norm2(tokens) * (1 + scale2) + shift2))
        return tokens + gate2 * self.dropout(self.linear2(hidden))


class Denoiser(nn.Module):
    """From noisy latents, time, atom counts, elements (where given) and conditions to one output per latent dimension.

    Atoms are marked by their place in the list, so the list must be in `canonical` order where elements are given.
    `genes_given`: it is also told the crystals' space groups and sites, and by how much it can rely on a crystal like
    it, if one is known (`Hints`).
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        d_model: int,
        nhead: int,
        num_layers: int,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        elements_given: bool,
        self_conditioning: bool,
        genes_given: bool = False,
        max_num_elements: int = 100,
    ) -> None:
        super().__init__()
        if d_model < 1 or nhead < 1 or d_model % nhead or d_model % 2:
            raise ConfigError(f"prior.d_model: got {d_model} with nhead {nhead}; expected an even multiple of nhead")
        if num_layers < 1:
            raise ConfigError(f"prior.num_layers: got {num_layers}; expected at least 1")
        self.d_model, self.self_conditioning = d_model, self_conditioning
        self.latent_embedder = nn.Linear(latent_dim * (2 if self_conditioning else 1), d_model)
        self.element_embedder = nn.Embedding(max_num_elements, d_model) if elements_given else None
        self.time_embedder = _embedder(d_model)
        self.size_embedder = _embedder(d_model)
        widen = nn.Linear(d_model, 6 * d_model)
        self.modulation = nn.Sequential(nn.SiLU(), widen)
        hidden = feedforward_width("prior.dim_feedforward", dim_feedforward, d_model)
        self.layers = nn.ModuleList(
            ModulatedLayer(d_model=d_model, nhead=nhead, dim_feedforward=hidden, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, latent_dim)
        for linear in (widen, self.head):  # every layer starts as the identity
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.hint_embedder = HintEmbedder(latent_dim=latent_dim, d_model=d_model) if genes_given else None

    def forward(
        self,
        noisy: Float[Tensor, "N L"],
        time: Float[Tensor, "B"],
        crystals: CrystalBatch,
        conditions: Float[Tensor, "B D"],
        estimate: Float[Tensor, "N L"] | None,
        hints: Hints | None = None,
    ) -> Float[Tensor, "N L"]:
        """Return the network's output; of `crystals` only atom counts and, where given, elements are read.

        `estimate` is the network's own earlier estimate of the clean latents (self-conditioning, Chen et al., "Analog
        bits", 2023); None stands for no estimate.
        """
        if self.self_conditioning:
            noisy = torch.cat((noisy, torch.zeros_like(noisy) if estimate is None else estimate), dim=-1)
        with full_precision(noisy):  # late in sampling x_t is right to more digits than bfloat16 has
            tokens = self.latent_embedder(noisy) + sinusoidal_positions(crystals.token_idx, self.d_model)
        if self.element_embedder is not None:
            tokens = tokens + self.element_embedder(crystals.atom_types)
        sizes = crystals.num_atoms.to(time.dtype)
        context = (
            self.time_embedder(fourier(1000 * time, self.d_model))
            + self.size_embedder(fourier(10 * sizes, self.d_model))
            + conditions
        )
        if self.hint_embedder is not None:
            if hints is None or self.element_embedder is None:
                raise ValueError("a denoiser that is told genes got none")
            atoms, of_crystals = self.hint_embedder(hints, crystals, self.element_embedder.weight)
            tokens, context = tokens + atoms, context + of_crystals
        # Gathered once for all layers: as many numbers as 6 hidden layers, and slow to gather.
        modulation = self.modulation(context).index_select(0, crystals.batch).view(-1, 6, self.d_model)
        plan = PaddingPlan.of(crystals)
        for layer in self.layers:
            tokens = layer(tokens, modulation, plan)
        with full_precision(noisy):
            return self.head(self.norm(tokens))


def fourier(values: Float[Tensor, "B"], d_model: int) -> Float[Tensor, "B D"]:
    """Return cos and sin of values times d/2 frequencies from 1 down to 1/10000 (Vaswani et al. 2017, section 3.5)."""
    half = d_model // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=values.device, dtype=values.dtype) / half)
    phase = values[:, None] * frequencies
    return torch.cat((phase.cos(), phase.sin()), dim=-1)


def _embedder(d_model: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d_model, d_model), nn.SiLU(), nn.Linear(d_model, d_model))
