"""Seconds that relaxing takes under each potential, and whether CHGNet gains by evaluating many crystals at once.

    python benchmarks/potentials.py chgnet sevennet --number 10
    python benchmarks/potentials.py chgnet --number 10 --batched

Crystals are sampled from the bundled model (seed 0). Times are processor seconds of one thread, which a busy machine
does not change much.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch

import crystalvae
from crystalvae.commands.relaxing import potential_named
from crystalvae.evaluation.stability.potentials import Potential
from crystalvae.evaluation.stability.relaxation import Relaxation, relax


def relaxations(potential: Potential, crystals: crystalvae.CrystalBatch, max_steps: int) -> str:
    """Return what relaxing each crystal takes, as a row of a table."""
    potential.calculator()
    settings = Relaxation(max_steps=max_steps, time_limit_s=None)
    results, seconds = [], []
    for arrays in crystals.to_arrays():
        started = time.process_time()
        results.append(relax(arrays, potential=potential, relaxation=settings))
        seconds.append(time.process_time() - started)
    done = [result for result in results if not result["failure"]]
    steps = sum(result["steps"] for result in done)
    return (
        f"| {potential.name} | {np.mean(seconds):.1f} | {np.median(seconds):.1f} | {1000 * sum(seconds) / steps:.0f} | "
        f"{steps / len(done):.0f} | {sum(result['converged'] for result in done)} of {len(results)} |"
    )


def batched(crystals: crystalvae.CrystalBatch) -> str:
    """Return what energies, forces and stresses of all crystals take under CHGNet, one by one and in batches."""
    from chgnet.model.model import CHGNet

    network = CHGNet.load(use_device="cpu", verbose=False)
    graphs = [network.graph_converter(structure) for structure in crystals.to_structure()]
    rows = []
    for size in (1, 4, 16, len(graphs)):
        started = time.process_time()
        network.predict_graph(graphs, task="efs", batch_size=size)
        rows.append(f"{size}: {1000 * (time.process_time() - started) / len(graphs):.0f}")
    started = time.process_time()
    for structure in crystals.to_structure():
        network.graph_converter(structure)
    graph_ms = 1000 * (time.process_time() - started) / len(graphs)
    return f"CHGNet, ms a crystal by batch size: {', '.join(rows)}; its graph besides: {graph_ms:.0f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potentials", nargs="+")
    parser.add_argument("--number", type=int, default=10)
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--batched", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    crystals = crystalvae.sample(options.number, seed=0)
    print(f"{options.number} crystals, {crystals.num_nodes / len(crystals):.1f} atoms on average")
    if options.batched:
        print(batched(crystals))
        return
    print("| potential | s a crystal, mean | median | ms a step | steps | converged |\n| -- | -- | -- | -- | -- | -- |")
    for name in options.potentials:
        print(relaxations(potential_named(name), crystals, options.max_steps))


if __name__ == "__main__":
    main()
