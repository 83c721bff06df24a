"""The straightforward published way of training a crystal VAE, which the benchmarks compare with.

A list of PyG `Data`, one per crystal, collated crystal by crystal into a `Batch`; dense batches padded to the largest
crystal (`to_dense_batch`), through `torch.nn.TransformerEncoder` with a key-padding mask, heads on real atoms alone;
float32, eager, plain AdamW. Features, layers, losses and parameter names are ours, so that weights and losses can be
compared: `Reference.like(module)`.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from pymatgen.core import Structure
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.utils import scatter, to_dense_batch

from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module import VAEModule


def to_data_list(crystals: CrystalBatch) -> list[Data]:
    """Return one `Data` per crystal, as published datasets keep them."""
    return [
        Data(
            atom_types=torch.from_numpy(numbers.copy()),
            frac_coords=torch.from_numpy(coords).float(),
            lattices=torch.from_numpy(lattice).float()[None],
            num_atoms=torch.tensor([len(numbers)]),
            num_nodes=len(numbers),
        )
        for numbers, coords, lattice in crystals.to_arrays()
    ]


def parse_cif(text: str) -> Data:
    """Read a crystal as CDVAE's preprocessing does: pymatgen, Niggli reduction, canonical lattice (Xie et al. 2022)."""
    with warnings.catch_warnings():  # of coordinates moved onto thirds
        warnings.simplefilter("ignore")
        crystal = Structure.from_str(text, fmt="cif").get_reduced_structure()
    lattice = crystal.lattice.from_parameters(*crystal.lattice.parameters)
    return Data(
        atom_types=torch.tensor(crystal.atomic_numbers),
        frac_coords=torch.tensor(crystal.frac_coords % 1.0, dtype=torch.float32),
        lattices=torch.tensor(lattice.matrix.copy(), dtype=torch.float32)[None],
        num_atoms=torch.tensor([len(crystal)]),
        num_nodes=len(crystal),
    )


def _encoder(d_model: int, nhead: int, num_layers: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        d_model, nhead, 4 * d_model, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, num_layers, norm=nn.LayerNorm(d_model), enable_nested_tensor=False)


def _padded(transformer: nn.TransformerEncoder, tokens: Tensor, batch: Batch) -> Tensor:
    dense, mask = to_dense_batch(tokens, batch.batch)  # (B, M, D), (B, M)
    return transformer(dense, src_key_padding_mask=~mask)[mask]


def _embedder(features: int, d_model: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, d_model, bias=False), nn.SiLU(), nn.Linear(d_model, d_model))


class ReferenceEncoder(nn.Module):
    """Embeds elements, coordinates and the lattice, and mixes atoms in a padded batch."""

    def __init__(self, d_model: int, nhead: int, num_layers: int, num_frequencies: int = 8) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.atom_type_embedder = nn.Embedding(100, d_model)
        self.lattices_embedder = _embedder(6, d_model)
        self.frac_coords_embedder = _embedder(6 * num_frequencies, d_model)
        self.transformer = _encoder(d_model, nhead, num_layers)

    def forward(self, batch: Batch) -> Tensor:
        """Return one hidden vector for each atom (N, D)."""
        phase = 2 * math.pi * batch.frac_coords[:, :, None] * torch.arange(1, self.num_frequencies + 1)
        phase = phase.to(batch.frac_coords).flatten(1)
        lengths, angles = scaled_parameters(batch)
        lattice = self.lattices_embedder(torch.cat((lengths, angles - math.pi / 2), dim=-1))
        hidden = self.atom_type_embedder(batch.atom_types) + lattice[batch.batch]
        hidden = hidden + self.frac_coords_embedder(torch.cat((phase.sin(), phase.cos()), dim=-1))
        return _padded(self.transformer, hidden, batch)


class ReferenceDecoder(nn.Module):
    """Mixes latent vectors in a padded batch and reads off elements, coordinates on the circle and the lattice."""

    def __init__(self, d_model: int, nhead: int, num_layers: int) -> None:
        super().__init__()
        self.transformer = _encoder(d_model, nhead, num_layers)
        self.atom_types_head = nn.Linear(d_model, 100)
        self.frac_coords_head = nn.Linear(d_model, 6, bias=False)
        self.lattice_head = nn.Linear(d_model, 6, bias=False)

    def forward(self, tokens: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (N, 100), vectors on the circle (N, 3, 2) and the lattice's parameters (B, 6)."""
        hidden = _padded(self.transformer, tokens, batch)
        mean = scatter(hidden, batch.batch, dim=0, reduce="mean")
        vectors = self.frac_coords_head(hidden).unflatten(-1, (3, 2))
        return self.atom_types_head(hidden), vectors, self.lattice_head(mean)


class Reference(nn.Module):
    """The published VAE: encoder, posterior, decoder and losses, on padded batches."""

    def __init__(
        self, *, d_model: int, nhead: int, num_layers: int, latent_dim: int, weights: dict[str, float]
    ) -> None:
        super().__init__()
        self.encoder = ReferenceEncoder(d_model, nhead, num_layers)
        self.decoder = ReferenceDecoder(d_model, nhead, num_layers)
        self.quant_conv = nn.Linear(d_model, 2 * latent_dim, bias=False)
        self.post_quant_conv = nn.Linear(latent_dim, d_model, bias=False)
        self.latent_dim, self.weights = latent_dim, weights

    @classmethod
    def like(cls, module: VAEModule) -> Reference:
        """Return the reference of a VAE with transformers in their default form, with copies of its weights."""
        size = module.config["encoder"]
        model = cls(
            d_model=size["d_model"],
            nhead=size["nhead"],
            num_layers=size["num_layers"],
            latent_dim=module.latent_dim,
            weights=module.loss_weights,
        )
        model.load_state_dict(module.vae.state_dict())
        return model

    def losses(self, batch: Batch, *, shifts: Tensor | None = None, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Return the losses of a training step: a random translation for each crystal, and a sample of the latents.

        `shifts` (B, 3) and `noise` (N, L) are drawn where they are not given.
        """
        shifts = torch.rand(batch.num_graphs, 3, device=batch.frac_coords.device) if shifts is None else shifts
        batch.frac_coords = (batch.frac_coords + shifts[batch.batch]) % 1.0
        mean, log_variance = self.quant_conv(self.encoder(batch)).chunk(2, dim=-1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        noise = torch.randn_like(mean) if noise is None else noise
        latents = mean + (0.5 * log_variance).exp() * noise
        logits, vectors, lattice = self.decoder(self.post_quant_conv(latents), batch)
        phase = 2 * math.pi * batch.frac_coords
        points = torch.stack((phase.cos(), phase.sin()), dim=-1)
        lengths, angles = scaled_parameters(batch)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=-1).mean()
        parts = {
            "atom_types": F.cross_entropy(logits, batch.atom_types),
            "frac_coords": (vectors - points).square().sum(dim=-1).mean() / (2 * math.pi) ** 2,
            "lengths": F.mse_loss(lattice[:, :3], lengths),
            "angles": F.mse_loss(lattice[:, 3:], angles),
        }
        recon = torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()
        return {"loss": recon + self.weights["kl"] * kl, "recon_loss": recon, "kl_loss": kl, **parts}


def scaled_parameters(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return cell lengths over the cube root of the number of atoms, and angles in radians, both (B, 3)."""
    lengths = batch.lattices.norm(dim=-1)
    a, b, c = (batch.lattices / lengths[..., None]).unbind(dim=-2)
    cosines = torch.stack([(b * c).sum(-1), (a * c).sum(-1), (a * b).sum(-1)], dim=-1)
    return lengths / batch.num_atoms[:, None] ** (1 / 3), torch.acos(cosines.clamp(-1.0, 1.0))
