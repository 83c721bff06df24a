"""How well a prior knows the clean latents at each time, beside the noisy ones it is given and the VAE's own error.

python benchmarks/denoising.py --ckpt mp20-small --crystals 400 --seed 0
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from omegaconf import OmegaConf
from torch import Tensor

import src  # noqa: F401  # the package of this checkout
from crystalvae.build import build
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import periodic_difference
from crystalvae.prior_module.latent_flow import LatentFlow
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.conditions.values import condition_values

TIMES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


def load(name: str, count: int, seed: int) -> CrystalBatch:
    """Return validation crystals in their canonical description."""
    config = OmegaConf.create({"data": OmegaConf.load(Path("configs/data") / f"{name}.yaml"), "seed": seed})
    config.data.canonical = True
    OmegaConf.resolve(config)
    crystals = build("data", config.data).dataset("val").crystals
    return crystals[torch.randperm(len(crystals), generator=torch.Generator().manual_seed(seed))[:count]]


@torch.no_grad()
def main() -> None:
    """Print a table, a row a time: errors of the estimate and of x_t in standardised latents and decoded, in Å."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", default="mp20-small")
    parser.add_argument("--data", default="mp_20")
    parser.add_argument("--crystals", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    module = VAEModule.load_from_checkpoint(arguments.ckpt)
    prior = module.prior
    if not isinstance(prior, LatentFlow):
        sys.exit(f"{arguments.ckpt} holds no prior")
    crystals = load(arguments.data, arguments.crystals, arguments.seed)
    clean = prior.standardize(module.vae.encode(crystals).mode())
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(arguments.seed))
    values = condition_values(crystals, prior.names)

    def displacement(latents: Tensor) -> float:
        decoded = module.vae.decode(latents * prior.latent_std + prior.latent_mean, crystals)
        difference = periodic_difference(module.vae.to_crystals(decoded, crystals).frac_coords, crystals.frac_coords)
        return float(torch.einsum("ni,nij->nj", difference, crystals.lattices[crystals.batch]).norm(dim=-1).median())

    weights = prior.signal / prior.signal.sum()
    print(f"median displacement of atoms by the VAE alone: {displacement(clean):.3f} Å\n")
    print(
        "| t | RMS error of the estimate | of x_t | atoms of the estimate, median Å | of x_t |\n|---|---|---|---|---|"
    )
    for time in TIMES:
        noisy = (1 - time) * noise + time * clean
        estimate = prior.estimate(noisy, time, crystals, values, None)
        estimate = prior.estimate(noisy, time, crystals, values, estimate)
        error, given = (float((x - clean).square().mul(weights).sum(-1).mean().sqrt()) for x in (estimate, noisy))
        row = f"{time:g} | {error:.3f} | {given:.3f} | {displacement(estimate):.3f} | {displacement(noisy):.3f}"
        print(f"| {row} |")


if __name__ == "__main__":
    main()
