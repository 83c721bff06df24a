"""What the commands that sample share: options from their config, and sampling with a progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor

from crystalvae import checks
from crystalvae.build import to_plain
from crystalvae.commands.ranks import ALONE, Ranks
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.prior_module.sampling import batches_by_size
from crystalvae.vae_module.conditions.values import asked_of
from crystalvae.vae_module.vae_module import VAEModule


def sampling_options(module: VAEModule, config: DictConfig) -> dict[str, Any]:
    """Return what is asked of the sampling, as plain data; `ConfigError` for what this checkpoint cannot do."""
    from crystalvae.data.composition import parse_chemical_system

    temperature = checks.check_number("temperature", config.temperature)
    conditions = _mapping("conditions", config.conditions)
    sampler = _mapping("sampler", config.sampler)
    system = to_plain(config.chemical_system)
    subsets = checks.check_switch("chemical_system_subsets", config.chemical_system_subsets)
    if module.prior is None:
        asked = {"sampler": sampler, "chemical_system": system, "chemical_system_subsets": subsets}
        given = [name for name, value in asked.items() if value]
        if given:
            raise ConfigError(
                f"{', '.join(given)}: this checkpoint holds no learned prior, which that needs; train one with "
                "train_prior, or use ckpt_path=mp20-small"
            )
        return {"temperature": temperature, **({"conditions": conditions} if conditions else {})}
    if temperature != 1.0:
        raise ConfigError(
            f"temperature: got {temperature}; it is of standard normal latents, and this checkpoint holds a learned "
            "prior: see sampler.composition_temperature and sampler.stochasticity"
        )
    if system is not None and config.get("composition") is not None:
        raise ConfigError("chemical_system and composition exclude each other: a composition says all elements")
    return {
        "conditions": conditions,
        "sampler": sampler,
        "chemical_system": None if system is None else parse_chemical_system(system),
        "chemical_system_subsets": subsets,
    }


def elements_needed(module: VAEModule, options: Mapping[str, Any]) -> int:
    """Return how many different elements each crystal will have to have."""
    system = options.get("chemical_system")
    return len(system) if system and not module.atom_type_predict and not options["chemical_system_subsets"] else 0


def _mapping(key: str, value: object) -> dict[str, Any]:
    plain = to_plain(value)
    if plain is None:
        return {}
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{key}: got {plain!r}; expected names with values, such as {key}.NAME=VALUE")
    return {str(name): entry for name, entry in plain.items() if entry is not None}


def options_of(options: Mapping[str, Any], rows: Tensor, count: int) -> dict[str, Any]:
    """Return the options of sampling for some of `count` crystals: of lists of conditions their own entries."""
    conditions = options.get("conditions")
    return {**options, **({"conditions": asked_of(conditions, rows.tolist(), count)} if conditions else {})}


def sample_all(
    module: VAEModule,
    template: CrystalBatch,
    batch_size: int,
    generator: torch.Generator,
    options: Mapping[str, Any],
    *,
    ranks: Ranks = ALONE,
) -> CrystalBatch:
    """Sample what `template` asks for, `batch_size` crystals at a time, with a progress bar.

    Of several processes each does some of the batches, the main one gets all crystals in the order of `template`, the
    others none. The crystals are those of one process: each batch has random numbers of its own.
    """
    options = dict(options)
    if module.prior is None:
        if conditions := options.pop("conditions", None):
            template = module.condition.asked(template, conditions)
        jobs = [(rows, generator) for rows in torch.arange(len(template)).split(batch_size)]
    else:
        jobs = batches_by_size(template.num_atoms, batch_size, generator)
    parts: list[tuple[int, CrystalBatch]] = []
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not ranks.main) as progress:
        total = sum(len(rows) for number, (rows, _) in enumerate(jobs) if ranks.mine(number))
        task = progress.add_task("sampling", total=total)
        for number, (rows, own) in enumerate(jobs):
            part = template[rows]
            if ranks.mine(number):
                asked = options_of(options, rows, len(template))
                size = {} if module.prior is None else {"batch_size": len(rows)}
                parts.append((number, module.sample_crystals(part, generator=own, **size, **asked).to("cpu")))
                progress.advance(task, len(rows))
            elif module.prior is None:  # one stream of random numbers for all batches: pass over those of the others
                module.vae.bottleneck.draw(part.to(module.device), temperature=options["temperature"], generator=own)
    found = dict(ranks.collect(parts))
    if not found:
        return CrystalBatch.empty([])
    order = torch.cat([rows for rows, _ in jobs])
    return CrystalBatch.cat(found[number] for number in range(len(jobs)))[order.argsort()]
