"""Does a prior do what it is asked? Shares of samples in the asked crystal system, against samples asked for nothing.

python benchmarks/conditions.py --ckpt mp20-small --samples 200 --guidance 1 2 --seed 0
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from src.commands.template import sample_template
from src.data.batch import CrystalBatch
from src.data.canonical import CRYSTAL_SYSTEMS, crystal_system
from src.evaluation.composition import check_compositions, reduced_compositions
from src.evaluation.runner import Runner
from src.evaluation.symmetry import find_space_groups
from src.evaluation.validity import describe
from src.vae_module import VAEModule


def measure(crystals: CrystalBatch, tolerance: float) -> tuple[np.ndarray, float, float]:
    """Return the crystal system of each crystal (-1: none found), and the valid shares, structure and composition."""
    groups = find_space_groups(crystals, runner=Runner(progress=False), tolerances=(tolerance,))
    systems = crystal_system(torch.as_tensor(np.asarray(groups).reshape(len(crystals), -1)[:, 0].astype(float)))
    compositions = [check.valid for check in check_compositions(reduced_compositions(crystals))]
    return systems.numpy(), float(describe(crystals)["valid"].mean()), float(np.mean(compositions))


def main() -> None:
    """Sample for nothing and for each crystal system, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", default="mp20-small")
    parser.add_argument("--samples", type=int, default=200, help="for each crystal system")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0])
    parser.add_argument("--tolerance", type=float, default=0.1, help="of the symmetry search, Å")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    module = VAEModule.load_from_checkpoint(arguments.ckpt)

    def draw(count: int, **options: object) -> CrystalBatch:
        generator = torch.Generator().manual_seed(arguments.seed)
        template = sample_template(
            module, count, num_atoms=None, composition=None, formula_units=None, generator=generator
        )
        return module.sample_crystals(template, generator=generator, **options)

    free, structure, composition = measure(draw(len(CRYSTAL_SYSTEMS) * arguments.samples), arguments.tolerance)
    print(f"asked for nothing: structure valid {structure:.1%}, composition valid {composition:.1%}")
    for scale in arguments.guidance:
        print(f"\nguidance scale {scale:g}")
        print("| asked | in it | in it without asking | structure valid | composition valid |")
        print("|---|---|---|---|---|")
        hits = []
        for number, name in enumerate(CRYSTAL_SYSTEMS):
            options = {"conditions": {"crystal_system": name}, "sampler": {"guidance_scale": scale}}
            systems, structure, composition = measure(draw(arguments.samples, **options), arguments.tolerance)
            hits.append(float((systems == number).mean()))
            without = float((free == number).mean())
            print(f"| {name} | {hits[-1]:.1%} | {without:.1%} | {structure:.1%} | {composition:.1%} |", flush=True)
        print(f"| mean | {np.mean(hits):.1%} | {np.mean([(free == i).mean() for i in range(7)]):.1%} | | |")


if __name__ == "__main__":
    main()
