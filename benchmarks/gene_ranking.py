"""How well genes of a formula are put in order: by votes of known crystals, by a network, by the gene model, mixed.

python benchmarks/gene_ranking.py --ckpt mp20-symmetric-small --crystals 1000 --seed 0

Structures are those of the known crystals, with elements exchanged and volumes adapted; nothing is sampled.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from rich.progress import track

import src  # noqa: F401  # the package of this checkout
from benchmarks.true_genes import load
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.symmetric.source import ORBIT_SITES, SPACE_GROUP
from crystalvae.evaluation.matching.pairs import TOLERANCES
from crystalvae.prior_module.gene_lookup import GeneLookup
from crystalvae.prior_module.gene_proposals import GeneProposals
from crystalvae.prior_module.gene_ranker import RankedLookup
from crystalvae.prior_module.gene_steps import Wanted, formula_of
from crystalvae.prior_module.genes import Gene, Genes
from crystalvae.prior_module.symmetric_flow import SymmetricFlow
from crystalvae.vae_module import VAEModule

COMPARED = 12
KS = (1, 5, COMPARED)


@dataclass
class Found:
    """One crystal's candidates: p of each gene by votes, learned votes, ranking and model; RMS of those that match."""

    p: dict[str, np.ndarray]
    rms: np.ndarray


def candidates(prior: SymmetricFlow, lookups: dict[str, GeneLookup], target: CrystalBatch) -> Found | None:
    """Return the first genes of all lookups together for the formula of one crystal, and what is thought of them."""
    formula = formula_of(target.atom_types.tolist())
    of_lookups = {name: dict(lookup.likeliest(formula)) for name, lookup in lookups.items()}
    genes: list[Gene] = list({gene: 0 for found in of_lookups.values() for gene in list(found)[:COMPARED]})
    if not genes:
        return None
    wanted = Wanted(target.num_nodes, formula)
    of_model = GeneProposals(prior.gene.model).log_likelihoods(genes, wanted, prior.gene.conditions({}, 1))
    p = {name: np.exp([found.get(gene, -math.inf) for gene in genes]) for name, found in of_lookups.items()}
    p["model"] = np.exp(of_model)
    batch = Genes.from_list(genes)
    properties = {SPACE_GROUP: batch.space_groups.float(), ORBIT_SITES: batch.sites}
    asked = CrystalBatch.empty(batch.num_atoms).replace(atom_types=batch.atom_types(), properties=properties)
    structures = prior.analogues.find(asked, batch).crystals.to_structure()
    matcher, wanted_structure = StructureMatcher(**TOLERANCES), target.to_structure()[0]
    distances = [matcher.get_rms_dist(structure, wanted_structure) for structure in structures]
    return Found(p, np.array([np.nan if entry is None else entry[0] for entry in distances]))


def main() -> None:
    """Print a row for each way to put genes in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="mp20-symmetric-small")
    parser.add_argument("--data", default="mp_20")
    parser.add_argument("--crystals", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    prior = VAEModule.load_from_checkpoint(arguments.ckpt).prior
    if not isinstance(prior, SymmetricFlow) or prior.ranker is None:
        sys.exit(f"{arguments.ckpt} holds no prior that ranks genes")
    known = prior.analogues
    lookups = {
        "votes": GeneLookup(known.genes()),
        "learned": GeneLookup(known.genes(), known.similarity),
        "ranked": RankedLookup(known, prior.ranker),
    }
    targets = load(arguments.data, arguments.crystals, arguments.seed)
    rows = track(range(len(targets)), "looking genes up")
    found = [candidates(prior, lookups, targets[[row]]) for row in rows]
    ways: dict[str, Callable[[Found], np.ndarray]] = {
        "votes (group and period)": lambda f: f.p["votes"],
        "votes (similarity learned)": lambda f: f.p["learned"],
        "gene model": lambda f: f.p["model"],
        "0.7 learned votes + 0.3 gene model": lambda f: 0.7 * f.p["learned"] + 0.3 * f.p["model"],
        "ranked": lambda f: f.p["ranked"],
        "0.7 ranked + 0.3 gene model": lambda f: 0.7 * f.p["ranked"] + 0.3 * f.p["model"],
    }
    for name, score in ways.items():
        ordered = [entry.rms[np.argsort(-score(entry), kind="stable")] for entry in found if entry is not None]
        first = np.array([rms[0] for rms in ordered])
        rates = [sum(bool(np.isfinite(rms[:k]).any()) for rms in ordered) / len(targets) for k in KS]
        shown = ", ".join(f"@{k} {rate:.1%}" for k, rate in zip(KS, rates, strict=True))
        print(f"{name}: {shown}, RMSE of the first {np.nanmean(first):.4f}")


if __name__ == "__main__":
    main()
