"""Checkpoints as the published Chemeleon2 package writes them, made on the spot from plain torch modules.

Written from the description of that format (see the model documentation), so that the converter is tested against
`torch.nn.TransformerEncoder` itself wherever the suite runs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from omegaconf import OmegaConf
from torch import nn

from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.decoders import transformer as decoder_module
from crystalvae.vae_module.encoders import transformer as encoder_module

WIDTH, HEADS, LATENT = 16, 4, 6


def _stack(layers: int, activation: nn.Module) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 24, dropout=0.0, activation=activation, batch_first=True, norm_first=True
    )  # fmt: skip
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)


def _embedder(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, WIDTH, bias=False), nn.SiLU(), nn.Linear(WIDTH, WIDTH))


def _positions(crystals: CrystalBatch) -> torch.Tensor:
    rows = []
    for i in crystals.token_idx.tolist():
        phase = [i * torch.pi / 2048 ** (2 * k / WIDTH) for k in range(WIDTH // 2)]
        rows.append(torch.cat((torch.sin(torch.tensor(phase)), torch.cos(torch.tensor(phase)))))
    return torch.stack(rows)


def _attend(transformer: nn.TransformerEncoder, tokens: torch.Tensor, crystals: CrystalBatch) -> torch.Tensor:
    """Run crystals one by one: no padding that could go wrong."""
    parts = [transformer(part.unsqueeze(0)).squeeze(0) for part in tokens.split(crystals.num_atoms.tolist())]
    return torch.cat(parts)


class PublishedEncoder(nn.Module):
    def __init__(self, layers: int, activation: nn.Module) -> None:
        super().__init__()
        self.max_num_elements, self.d_model, self.num_layers = 100, WIDTH, layers
        self.atom_type_embedder = nn.Embedding(100, WIDTH)
        self.lattices_embedder, self.frac_coords_embedder = _embedder(9), _embedder(3)
        self.transformer = _stack(layers, activation)

    def forward(self, crystals: CrystalBatch) -> torch.Tensor:
        tokens = self.atom_type_embedder(crystals.atom_types) + self.frac_coords_embedder(crystals.frac_coords)
        tokens = tokens + self.lattices_embedder(crystals.lattices.flatten(1))[crystals.batch] + _positions(crystals)
        return _attend(self.transformer, tokens, crystals)


class PublishedDecoder(nn.Module):
    def __init__(self, layers: int, activation: nn.Module, atom_type_predict: bool) -> None:
        super().__init__()
        self.max_num_elements, self.d_model, self.num_layers = 100, WIDTH, layers
        self.atom_type_predict = atom_type_predict
        self.transformer = _stack(layers, activation)
        if atom_type_predict:
            self.atom_types_head = nn.Linear(WIDTH, 100)
        self.frac_coords_head = nn.Linear(WIDTH, 3, bias=False)
        self.lattice_head = nn.Linear(WIDTH, 6, bias=False)

    def forward(self, tokens: torch.Tensor, crystals: CrystalBatch) -> dict[str, torch.Tensor]:
        hidden = _attend(self.transformer, tokens + _positions(crystals), crystals)
        means = torch.stack([part.mean(0) for part in hidden.split(crystals.num_atoms.tolist())])
        output = {"frac_coords": self.frac_coords_head(hidden), "lattices": self.lattice_head(means)}
        if self.atom_type_predict:
            output["atom_types"] = self.atom_types_head(hidden)
        return output


class PublishedVAE(nn.Module):
    """The published model: what a converted checkpoint must compute."""

    def __init__(
        self, *, atom_type_predict: bool = True, approximate: str = "none", fused: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        activation = nn.GELU(approximate=approximate)
        self.encoder = PublishedEncoder(2, activation)
        self.decoder = PublishedDecoder(3, activation, atom_type_predict)
        self.quant_conv = nn.Linear(WIDTH, 2 * LATENT, bias=False)
        self.post_quant_conv = nn.Linear(LATENT, WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=0.2)
        if not fused:  # torch's own mark for "take the path that runs the activation as it is"
            for layer in (*self.encoder.transformer.layers, *self.decoder.transformer.layers):
                layer.activation_relu_or_gelu = 0
        self.eval()

    @torch.no_grad()
    def run(self, crystals: CrystalBatch) -> dict[str, torch.Tensor]:
        """Encode and decode with the posterior mean."""
        hidden = self.encoder(crystals)
        mean, logvar = self.quant_conv(hidden).chunk(2, dim=-1)
        return {"x": hidden, "mean": mean, "logvar": logvar, **self.decoder(self.post_quant_conv(mean), crystals)}


def save_published(vae: PublishedVAE, path: Path, **extra: Any) -> Path:
    """Write a Lightning checkpoint with live objects, pickled by the published classes' paths."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    content = {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": vae.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}}},
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "encoder": vae.encoder,
            "decoder": vae.decoder,
            "latent_dim": LATENT,
            "loss_weights": OmegaConf.create({"atom_types": 1.0, "kl": 1e-5}),
            "atom_type_predict": vae.decoder.atom_type_predict,
            "structure_matcher": StructureMatcher(),
            "optimizer": partial(torch.optim.AdamW, lr=3e-4, weight_decay=0.01),
            "scheduler": None,
            **extra,
        },
    }
    names = {
        PublishedEncoder: (encoder_module, "TransformerEncoder"),
        PublishedDecoder: (decoder_module, "TransformerDecoder"),
    }
    before = {kind: (kind.__module__, kind.__name__, kind.__qualname__) for kind in names}
    with (
        patch.object(encoder_module, "TransformerEncoder", PublishedEncoder),
        patch.object(decoder_module, "TransformerDecoder", PublishedDecoder),
    ):
        try:
            for kind, (module, name) in names.items():  # the published package is imported as `src`
                kind.__module__, kind.__name__, kind.__qualname__ = (
                    f"src.{module.__name__.partition('.')[2]}",
                    name,
                    name,
                )
            torch.save(content, path)
        finally:
            for kind, (module_name, name, qualname) in before.items():
                kind.__module__, kind.__name__, kind.__qualname__ = module_name, name, qualname
    return path
