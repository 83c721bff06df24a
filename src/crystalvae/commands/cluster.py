"""Cluster the crystals of a data set by their embeddings, and say what each cluster holds."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig

from crystalvae.checkpoints.format import package_versions
from crystalvae.checks import check_choice, check_path
from crystalvae.commands.inputs import Inputs
from crystalvae.data.sources import SPLITS
from crystalvae.data.writers import write_crystals
from crystalvae.evaluation.clusters import Cluster, cluster_crystals
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.validity.structure import describe
from crystalvae.output_dir import check_output_dir

_NAMED = 4
_SHOWN = 10


def cluster(config: DictConfig) -> str:
    """Embed and cluster as `config` says, and write the results; returns what to tell the user."""
    import pandas as pd

    output_dir = check_path("output_dir", config.output_dir)
    check_choice("split", config.split, SPLITS)
    check_output_dir(output_dir, overwrite=config.overwrite)
    inputs = Inputs(config, "reconstruction")
    module, data = inputs.module(), inputs.reference()
    embeddings = module.embed(data.crystals, batch_size=config.batch_size)
    runner = Runner(n_jobs=config.n_jobs)
    options = {"k": config.k, "seed": config.seed, "tolerance": config.tolerance}
    found = cluster_crystals(embeddings, data.crystals, runner=runner, **options)
    columns = {
        "source": data.ids,
        "cluster": found.labels,
        "distance": found.distances,
        "prototype": found.prototypes,
    }
    table = pd.concat([pd.DataFrame(columns), describe(data.crystals)], axis=1)
    info = {
        "ckpt_path": str(config.ckpt_path),
        "crystals_of": data.name,
        **options,
        **found.summary(),
        "versions": package_versions(),
    }
    write_crystals(data.crystals, output_dir, table=table, formats=[], overwrite=config.overwrite, info=info)
    table_path = output_dir.absolute() / "samples.csv"
    lines = [f"{len(data.crystals)} crystals in {config.k} clusters; each crystal in {table_path}"]
    if found.prototype_information is not None:
        lines[0] += f"; information on prototypes {found.prototype_information:.2f} (0 none, 1 all)"
    shown = found.clusters if config.verbose else found.clusters[:_SHOWN]
    lines += [_line(entry, data.ids[entry.medoid]) for entry in shown]
    if len(shown) < len(found.clusters):
        lines.append(f"  … and {len(found.clusters) - len(shown)} clusters more; verbose=true shows all")
    return "\n".join(lines)


def _line(found: Cluster, medoid: str) -> str:
    elements = _first({name: f"{share:.0%}" for name, share in found.elements.items()})
    prototypes = _first({name or "none": f"{count}" for name, count in found.prototypes.items()})
    return f"{found.number:4d}: {found.size} around {medoid}; elements {elements}; prototypes {prototypes}"


def _first(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in list(values.items())[:_NAMED])
