"""Sampling from a published latent diffusion, against the published way: all crystals padded to the largest, masked.

    python benchmarks/diffusion.py                                  # the published widths, with random weights
    python benchmarks/diffusion.py --width 384 --layers 6 --heads 6 --crystals 256 --rounds 5

A row is one evaluation of the network for all crystals of a batch, which is nearly all of a sampler's time; the two
ways take turns. Sizes are those of MP-20 where it is at hand, else of the prototypes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
import torch  # noqa: E402
from torch_geometric.utils import to_dense_batch  # noqa: E402

import src  # noqa: E402, F401  # the package of this checkout
from benchmarks.machine import once  # noqa: E402
from benchmarks.training import load_crystals  # noqa: E402
from crystalvae.data.batch import CrystalBatch  # noqa: E402
from crystalvae.evaluation.speed import describe_machine  # noqa: E402
from crystalvae.prior_module.latent_diffusion import LatentDiffusion  # noqa: E402

LATENT_DIM = 8


@torch.no_grad()
def main() -> None:
    """Time both ways and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--crystals", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", choices=["mp_20", "prototypes"], default="mp_20")
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    torch.manual_seed(0)
    counts = load_crystals(options).num_atoms
    crystals = CrystalBatch.empty(counts[torch.randperm(len(counts))[: options.crystals]])
    prior = LatentDiffusion(
        latent_dim=LATENT_DIM, elements_given=False, d_model=options.width, nhead=options.heads,
        num_layers=options.layers,
    ).eval()  # fmt: skip
    noisy = torch.randn(crystals.num_nodes, LATENT_DIM)
    time = torch.full((len(crystals),), 500)
    padded, mask = to_dense_batch(noisy, crystals.batch)

    def ours() -> None:
        prior.predict(noisy, time, crystals, {})

    def published() -> None:
        prior.denoiser(padded, time.float(), None, mask)

    seconds: dict[str, list[float]] = {"ours": [], "published": []}
    for _ in range(options.rounds + 1):  # the first to warm up
        for name, way in (("ours", ours), ("published", published)):
            _, cpu, _ = once(way)  # of the process, which a busy machine does not lengthen
            seconds[name].append(cpu)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print(describe_machine("cpu"))
    print(f"{options.crystals} crystals, {crystals.num_nodes} atoms, {mask.numel()} places padded to the largest")
    for name, value in medians.items():
        print(f"{name:>10}: {value:.3f} CPU s for each evaluation")
    print(f"     ratio: {medians['published'] / medians['ours']:.2f}")


if __name__ == "__main__":
    main()
