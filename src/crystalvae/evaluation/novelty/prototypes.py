"""Anonymised prototypes: which sites of which space group are taken, whatever by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.wyckoff_genes import SYMPREC, GeneFinder
from crystalvae.evaluation.crystal_arrays import Arrays
from crystalvae.evaluation.metric import HERE, Metric
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.validity.structure import map_valid

_VERSION = 1


def anonymous_prototypes(crystals: CrystalBatch, *, runner: Runner) -> list[str]:
    """Return space group and Wyckoff letters per element, elements unnamed, such as 225_a_b for rock salt.

    Crystals with the same are isopointal (International Tables A, 8.2.5), whatever their elements, origins and axes.
    Empty for those that are structurally invalid, or in which moyopy finds no symmetry at 0.1 Å.
    """
    return map_valid(
        anonymous_prototype,
        crystals,
        runner=runner,
        otherwise=lambda _: "",
        description="prototypes",
        namespace=f"anonymous_prototype/{_VERSION}/moyopy {version('moyopy')}/{SYMPREC}",
        chunk=64,
    )


def anonymous_prototype(crystal: Arrays) -> str:
    """Return the prototype of one crystal; see `anonymous_prototypes`."""
    gene = _finder()(crystal)
    if gene.space_group == 0:
        return ""
    return "_".join((str(gene.space_group), *min(tuple(sorted(way)) for way in gene.sites)))


def prototype_metrics(found: Sequence[str], train: Sequence[str] | None, total: int) -> dict[str, Metric]:
    """Return how many prototypes there are and, with those of the training set, the share of crystals of a new one."""
    what = "space group and Wyckoff letters per element, elements unnamed, at 0.1 Å"
    source = f"{HERE}; moyopy {version('moyopy')}"
    metrics = {
        "unique_prototype": Metric.share(
            len({name for name in found if name}),
            total,
            f"number of different prototypes ({what}) over the number of crystals",
            source,
        )
    }
    if train is not None:
        known = set(train) | {""}
        metrics["novel_prototype"] = Metric.share(
            sum(name not in known for name in found),
            total,
            f"share of crystals whose prototype ({what}) is not in the training set; those without one are not new",
            source,
        )
    return metrics


@lru_cache(maxsize=1)
def _finder() -> GeneFinder:
    return GeneFinder()
