"""`sample method=analogy` and `ranked`: candidates for a composition from known crystals of similar elements."""

from __future__ import annotations

import logging
import time

import numpy as np
from omegaconf import DictConfig

from crystalvae import checks
from crystalvae.build import to_plain
from crystalvae.checkpoints.format import package_versions
from crystalvae.commands.cli import is_main_process
from crystalvae.commands.inputs import Inputs
from crystalvae.commands.relaxing import Relaxer
from crystalvae.data.analogy import Analogue
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.composition import parse_composition
from crystalvae.data.writers import FORMATS, check_output_dir, write_crystals
from crystalvae.errors import ConfigError
from crystalvae.evaluation.validity.contacts import sample_facts

log = logging.getLogger(__name__)

METHODS = ("model", "analogy", "ranked")


def asks_for_analogy(config: DictConfig) -> bool:
    """Say whether the config's method does without a model; `ConfigError` for an unknown one, and for unused data."""
    if config.method not in METHODS:
        raise ConfigError(f"method: got {config.method!r}; expected one of {', '.join(METHODS)}")
    if config.method == "model" and config.get("data") is not None:
        raise ConfigError("data: a model is sampled without data; it only has a meaning with method=analogy or ranked")
    return config.method != "model"


def sample_by_analogy(config: DictConfig) -> str:
    """Write up to `num_samples` analogues of `composition` as `config` says; returns what to tell the user.

    `samples.csv` has, for each, the training crystal it came from, the distance of its elements and the similarity by
    which the candidates are ordered. Raises `ConfigError` for options that only a model has, and where no training
    crystal has such numbers of atoms.
    """
    if not is_main_process():  # a look-up is nothing to share
        return ""
    _refuse_options(config)
    count = checks.check_count("num_samples", config.num_samples)
    formats = checks.check_choices("formats", config.formats, FORMATS)
    output_dir = checks.check_path("output_dir", config.output_dir)
    unit = np.array(parse_composition(config.composition))
    sizes = None if config.formula_units is None else [checks.check_count("formula_units", config.formula_units)]
    check_output_dir(output_dir, overwrite=config.overwrite)
    relaxer = Relaxer.from_config(config)
    inputs = Inputs(config, "csp")
    library = inputs.analogies(learned=config.method == "ranked")
    started = time.perf_counter()
    found = library.search_formula(unit, sizes=sizes, count=count)
    seconds = time.perf_counter() - started
    library.genes.save()
    if not found:
        raise ConfigError(
            f"composition={config.composition}: no training crystal of {inputs.dataset_name} has such numbers of atoms"
            + (" in a cell of so many formula units" if sizes else "")
            + "; method=model does without"
        )
    crystals = CrystalBatch.from_arrays(entry.arrays for entry in found)
    outcomes = None
    if relaxer is not None:
        crystals, outcomes = relaxer(crystals)
    facts = sample_facts(crystals)
    table = facts.assign(**_columns(found))
    if outcomes is not None:
        table = table.join(outcomes)
    info = {
        "method": config.method,
        "library": f"{inputs.dataset_name} train",
        "library_crystals": len(library),
        "composition": config.composition,
        "formula_units": config.formula_units,
        "seconds": round(seconds, 3),
        "relaxation": None if relaxer is None else relaxer.settings(),
        "versions": package_versions(),
    }
    write_crystals(crystals, output_dir, table=table, formats=formats, overwrite=config.overwrite, info=info)
    if len(found) < count:
        log.warning("%d candidates instead of %d: the library has no more genes that fit", len(found), count)
    first = found[0]
    return (
        f"{len(found)} candidates in {output_dir.absolute()}: {' + '.join(formats) or 'no structure files'} and "
        f"samples.csv; the first is {first.source} with its elements exchanged, at a distance of {first.distance:.1f}; "
        f"looked up in {len(library)} crystals in {seconds:.1f} s"
    )


def _columns(found: list[Analogue]) -> dict[str, list[object]]:
    return {
        "analogue_of": [entry.source for entry in found],
        "element_distance": [round(entry.distance, 3) for entry in found],
        "similarity": [float(f"{entry.similarity:.4g}") for entry in found],
        "space_group": [entry.space_group or None for entry in found],
    }


def _refuse_options(config: DictConfig) -> None:
    if config.composition is None:
        raise ConfigError(f"method={config.method}: say for which composition, such as composition=LiFePO4")
    conditions, sampler = to_plain(config.conditions) or {}, to_plain(config.sampler) or {}
    asked = {
        "temperature": config.temperature != 1.0,
        "num_atoms": config.num_atoms is not None,
        "chemical_system": config.chemical_system is not None,
        "chemical_system_subsets": bool(config.chemical_system_subsets),
        "cuda_graphs": bool(config.cuda_graphs),
        **{f"conditions.{name}": value is not None for name, value in conditions.items()},
        **{f"sampler.{name}": value is not None for name, value in sampler.items()},
    }
    given = [name for name, used in asked.items() if used]
    if given:
        raise ConfigError(f"{', '.join(given)}: only a model can be asked for that; leave out method={config.method}")
