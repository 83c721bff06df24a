"""How well a prior of symmetric crystals finds geometry, given the true space groups, elements and Wyckoff sites.

python benchmarks/true_genes.py --ckpt mp20-symmetric-small --crystals 300 --seed 0
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from omegaconf import OmegaConf
from pymatgen.analysis.structure_matcher import StructureMatcher

import src  # noqa: F401  # the package of this checkout
from crystalvae.build import build
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.symmetric.source import ORBIT_SITES, SPACE_GROUP
from crystalvae.evaluation.matching.pairs import TOLERANCES
from crystalvae.evaluation.validity.contacts import MIN_CONTACT, contacts
from crystalvae.prior_module.genes import Genes
from crystalvae.prior_module.symmetric_flow import SymmetricFlow
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.latent_source import DrawOptions

SAMPLERS = (
    {"trust": 1.0},
    {"trust": 0.9},
    {"trust": 0.0},
    {"trust": 0.0, "projection": False},
    {"trust": 0.0, "analogues": "none"},
)


def load(name: str, count: int, seed: int) -> CrystalBatch:
    """Return validation crystals in their symmetric description."""
    config = OmegaConf.create({"data": OmegaConf.load(Path("configs/data") / f"{name}.yaml"), "seed": seed})
    config.data.canonical = "symmetric"
    OmegaConf.resolve(config)
    crystals = build("data", config.data).dataset("val").crystals
    return crystals[torch.randperm(len(crystals), generator=torch.Generator().manual_seed(seed))[:count]]


def main() -> None:
    """Print a row for each sampler: match rate and RMSE of one candidate, of those with a known crystal and others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", default="mp20-symmetric-small")
    parser.add_argument("--data", default="mp_20")
    parser.add_argument("--crystals", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    module = VAEModule.load_from_checkpoint(arguments.ckpt)
    prior = module.prior
    if not isinstance(prior, SymmetricFlow):
        sys.exit(f"{arguments.ckpt} holds no prior of symmetric crystals")
    targets = load(arguments.data, arguments.crystals, arguments.seed)
    known = prior.analogues.find(targets, Genes.of(targets)).known.numpy()
    print(f"{known.mean():.1%} have a training crystal with the same sites")
    asked = CrystalBatch.empty(targets.num_atoms).replace(
        atom_types=targets.atom_types,
        properties={name: targets.properties[name] for name in (SPACE_GROUP, ORBIT_SITES)},
    )
    wanted = targets.to_structure()
    matcher = StructureMatcher(**TOLERANCES)
    for sampler in SAMPLERS:
        started = time.process_time()
        generator = torch.Generator().manual_seed(arguments.seed)
        found = module.draw(asked, DrawOptions(sampler=sampler), generator=generator, batch_size=512)
        seconds = time.process_time() - started
        pairs = zip(found.to_structure(), wanted, strict=True)
        distances = [matcher.get_rms_dist(one, other) for one, other in pairs]
        rms = np.array([np.nan if entry is None else entry[0] for entry in distances])
        hit = np.isfinite(rms)
        print(
            f"{sampler}: match {hit.mean():.1%} (known {hit[known].mean():.1%}, others {hit[~known].mean():.1%}), "
            f"RMSE {rms[hit].mean():.4f}, contacts {(contacts(found) >= MIN_CONTACT).mean():.1%}, {seconds:.0f} s"
        )


if __name__ == "__main__":
    main()
