"""How quick the evaluation is, against the plain way: pymatgen called crystal by crystal in one process.

    python benchmarks/evaluation.py                         # on MP-20: 9,047 pairs, 10,000 samples, all of train
    python benchmarks/evaluation.py --pairs 200 --samples 200 --plain 20

The plain way is timed on a choice of the same crystals in the same run and scaled to all of them. Nothing is taken from
a cache, except where the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher

import src  # noqa: F401  # the package of this checkout
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.sources import MP20
from crystalvae.evaluation.distributions.coverage import fingerprints
from crystalvae.evaluation.matching.pairs import STRICT_TOLERANCES, TOLERANCES, match_pairs
from crystalvae.evaluation.novelty.section import uniqueness_section
from crystalvae.evaluation.parallel.cache import ResultCache
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.speed import describe_machine
from crystalvae.evaluation.validity.section import validity_section


def main() -> None:
    """Time matching, then validity, uniqueness and novelty, then coverage's fingerprints."""
    options = arguments()
    source = MP20(data_dir=options.data_dir)
    val, train = source.load("val").crystals, source.load("train").crystals
    runner = Runner(n_jobs=options.n_jobs)
    rows = [matching(val, options, runner), judging(val, train, options, runner)]
    rows += [coverage(val, options, runner)] if options.fingerprints else []
    machine = describe_machine()
    print(f"{machine['processor']}, {machine['cores']} cores, n_jobs={options.n_jobs}")
    for row in rows:
        print(json.dumps(row))
    if options.output:
        Path(options.output).write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("CRYSTALVAE_MP20_DIR"))
    parser.add_argument("--pairs", type=int, default=9047)
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--plain", type=int, default=100, help="crystals that the plain way is timed on")
    parser.add_argument("--fingerprints", type=int, default=200, help="crystals whose fingerprints are timed")
    parser.add_argument("--n-jobs", type=int, default=-1)
    parser.add_argument("--output", help="a JSON file")
    return parser.parse_args()


def matching(val: CrystalBatch, options: argparse.Namespace, runner: Runner) -> dict[str, object]:
    """Match validation crystals with copies that are off by about 0.1 Å, at both tolerances."""
    targets = val[: options.pairs]
    predictions = perturbed(targets, 0.02, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        cached = Runner(n_jobs=runner.n_jobs, cache=ResultCache(folder))
        pairs = list(zip(targets.to_arrays(), predictions.to_arrays(), strict=True))
        seconds, found = timed(lambda: match_pairs(*map(list, zip(*pairs, strict=True)), runner=cached))
        again, _ = timed(lambda: match_pairs(*map(list, zip(*pairs, strict=True)), runner=cached))
    chosen = choice(len(targets), options.plain)
    ours, theirs = targets[chosen].to_structure(), predictions[chosen].to_structure()

    def plain() -> list[object]:
        matchers = StructureMatcher(**TOLERANCES), StructureMatcher(**STRICT_TOLERANCES)
        return [[matcher.get_rms_dist(b, a) for matcher in matchers] for a, b in zip(ours, theirs, strict=True)]

    slow, expected = timed(plain)
    same = sum((row[0] is None) == (found[i].rms is None) for i, row in zip(chosen.tolist(), expected, strict=True))
    result = compared("match pairs at two tolerances", len(targets), seconds, slow, len(chosen))
    matched = sum(pair.rms is not None for pair in found) / len(found)
    return {
        **result,
        "second_run_seconds": round(again, 1),
        "matched": round(matched, 4),
        "agree": f"{same}/{len(chosen)}",
    }


def judging(val: CrystalBatch, train: CrystalBatch, options: argparse.Namespace, runner: Runner) -> dict[str, object]:
    """Work out validity, uniqueness and novelty: half new crystals, a third known ones, the rest repetitions."""
    count = options.samples
    new, known = val[choice(len(val), count // 2)], train[choice(len(train), count // 3)]
    repeated = new[choice(len(new), count - len(new) - len(known))]
    parts = [perturbed(part, 0.01, seed=seed) for seed, part in enumerate((new, known, repeated))]
    generated = CrystalBatch.cat(parts)

    def ours() -> dict[str, float]:
        sections = (
            validity_section(generated=generated, reference=val),
            uniqueness_section(generated=generated, train=train, runner=runner),
        )
        metrics = {name: metric.value for section in sections for name, metric in section.metrics.items()}
        return {name: metrics[name] for name in ("valid", "unique", "novel", "vun", "vun_loose")}

    seconds, found = timed(ours)
    chosen = choice(len(generated), options.plain)
    slow, _ = timed(lambda: judged_plainly(generated, chosen.tolist(), train))
    result = compared("validity, uniqueness, novelty", len(generated), seconds, slow, len(chosen))
    return {**result, "train": len(train), **{name: round(value, 4) for name, value in found.items()}}


def judged_plainly(generated: CrystalBatch, chosen: list[int], train: CrystalBatch) -> list[tuple[bool, ...]]:
    """Judge some crystals as a script does: distance matrices, SMACT, and `fit` with all of the same formula."""
    from smact.screening import smact_validity

    structures = generated.to_structure()
    known, others = defaultdict(list), defaultdict(list)
    formulas = {structures[i].composition.reduced_formula for i in chosen}
    for structure in train.to_structure():
        if structure.composition.reduced_formula in formulas:
            known[structure.composition.reduced_formula].append(structure)
    for index, structure in enumerate(structures):
        others[structure.composition.reduced_formula].append((index, structure))
    result = []
    for index in chosen:
        structure = structures[index]
        formula = structure.composition.reduced_formula
        verdict = [structure.is_valid(0.5), smact_validity(structure.composition)]
        for tolerances in (STRICT_TOLERANCES, TOLERANCES):
            matcher = StructureMatcher(**tolerances)
            earlier = (other for place, other in others[formula] if place < index)
            verdict.append(not any(matcher.fit(other, structure) for other in earlier))
            verdict.append(not any(matcher.fit(other, structure) for other in known[formula]))
        result.append(tuple(verdict))
    return result


def coverage(val: CrystalBatch, options: argparse.Namespace, runner: Runner) -> dict[str, object]:
    """Compute the fingerprints that coverage compares; their own rate, as there is no quicker way than matminer's."""
    chosen = val[choice(len(val), options.fingerprints)]
    seconds, _ = timed(lambda: fingerprints(chosen, runner))
    rate = round(len(chosen) / seconds, 2)
    return {"what": "fingerprints", "crystals": len(chosen), "seconds": round(seconds, 1), "per_second": rate}


def compared(what: str, count: int, seconds: float, plain_seconds: float, plain_count: int) -> dict[str, object]:
    """Return both times, the plain one scaled to all crystals, and how many times longer it is."""
    scaled = plain_seconds / plain_count * count
    return {
        "what": what,
        "crystals": count,
        "seconds": round(seconds, 1),
        "per_second": round(count / seconds, 1),
        "plain_seconds_scaled": round(scaled, 1),
        "plain_on": plain_count,
        "ratio": round(scaled / seconds, 2),
    }


def perturbed(crystals: CrystalBatch, size: float, *, seed: int) -> CrystalBatch:
    """Return copies with noise on coordinates and cells, of a relative size."""
    generator = torch.Generator().manual_seed(seed)
    shift = size * torch.randn(crystals.frac_coords.shape, generator=generator)
    strain = torch.eye(3) + size * torch.randn(len(crystals), 3, 3, generator=generator)
    return crystals.replace(frac_coords=crystals.frac_coords + shift, lattices=crystals.lattices @ strain)


def choice(total: int, count: int) -> torch.Tensor:
    """Return a seeded choice, in ascending order."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].sort().values


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Return the seconds that a piece of work takes, and what it returns."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
