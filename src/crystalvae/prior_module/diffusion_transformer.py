"""The network of the published latent diffusion: a transformer with adaptive layer norm over padded crystals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crystalvae.checks import check_count
from crystalvae.errors import ConfigError
from crystalvae.prior_module.denoiser import fourier
from crystalvae.vae_module.layers.transformer import sinusoidal_positions

FREQUENCIES = 256
EPS = 1e-6


class DiffusionBlock(nn.Module):
    """Attention and a feed-forward network, each shifted, scaled and gated by the crystal's vector.

    Source: Peebles & Xie, "Scalable diffusion models with transformers" (2023), section 3.2 (adaLN-Zero).
    """

    def __init__(self, *, d_model: int, nhead: int, dim_feedforward: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False, eps=EPS)
        self.attention = nn.MultiheadAttention(d_model, nhead, batch_first=True)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.modulation = nn.Linear(d_model, 6 * d_model)

    def forward(
        self, tokens: Float[Tensor, "B S D"], context: Float[Tensor, "B D"], padding: Bool[Tensor, "B S"] | None
    ) -> Float[Tensor, "B S D"]:
        """Apply the block; nothing attends to `padding` (None: there is none)."""
        parts = self.modulation(F.silu(context))[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        hidden = self.norm(tokens) * (1 + scale1) + shift1
        attended, _ = self.attention(hidden, hidden, hidden, key_padding_mask=padding, need_weights=False)
        tokens = tokens + gate1 * attended
        hidden = self.norm(tokens) * (1 + scale2) + shift2
        return tokens + gate2 * self.linear2(F.gelu(self.linear1(hidden), approximate="tanh"))


class DiffusionTransformer(nn.Module):
    """From noisy latents and the time to the noise in them and to v, which says how sure the next step is.

    The published weights write both for S places as 2·S rows of L numbers: the 2·L outputs of each place are cut in two
    rows, the first S rows are the noise of places 0 to S-1 and the last S their v. So the noise of place i comes from
    place i // 2, and its v from place (S + i) // 2, which makes v depend on the padding; here a crystal is padded only
    where it is given with a mask.
    """

    def __init__(
        self, *, latent_dim: int, d_model: int, nhead: int, num_layers: int, dim_feedforward: int | None = None
    ) -> None:
        super().__init__()
        if d_model < 1 or nhead < 1 or d_model % nhead or d_model % 2:
            raise ConfigError(f"prior.d_model: got {d_model} with nhead {nhead}; expected an even multiple of nhead")
        check_count("prior.num_layers", num_layers)
        hidden = 4 * d_model if dim_feedforward is None else check_count("prior.dim_feedforward", dim_feedforward)
        self.latent_dim, self.d_model = latent_dim, d_model
        self.latent_embedder = nn.Linear(latent_dim, d_model)
        self.time_embedder = nn.Sequential(nn.Linear(FREQUENCIES, d_model), nn.SiLU(), nn.Linear(d_model, d_model))
        blocks = [DiffusionBlock(d_model=d_model, nhead=nhead, dim_feedforward=hidden) for _ in range(num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False, eps=EPS)
        self.modulation = nn.Linear(d_model, 2 * d_model)
        self.head = nn.Linear(d_model, 2 * latent_dim)
        for linear in (*(block.modulation for block in blocks), self.modulation, self.head):
            nn.init.zeros_(linear.weight)  # every block starts as the identity
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        noisy: Float[Tensor, "B S L"],
        time: Float[Tensor, "B"],
        context: Float[Tensor, "B D"] | None = None,
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> tuple[Float[Tensor, "B S L"], Float[Tensor, "B S L"]]:
        """Return (ε̂, v), zero at padding; `mask` says what is an atom, and `context` holds conditions, if any."""
        real = torch.ones_like(noisy[..., 0], dtype=torch.bool) if mask is None else mask
        places = real.cumsum(dim=1) - 1
        tokens = self.latent_embedder(noisy) + sinusoidal_positions(places.flatten(), self.d_model).view(
            *places.shape, -1
        )
        embedded = self.time_embedder(fourier(time, FREQUENCIES))
        embedded = embedded if context is None else embedded + context
        padding = None if mask is None else ~mask
        for block in self.blocks:
            tokens = block(tokens, embedded, padding)
        shift, scale = self.modulation(F.silu(embedded))[:, None].chunk(2, dim=-1)
        output = self.head(self.norm(tokens) * (1 + scale) + shift)
        rows = output.reshape(len(output), -1, self.latent_dim) * real.repeat(1, 2)[..., None]
        noise, v = rows.chunk(2, dim=1)
        return noise, v
