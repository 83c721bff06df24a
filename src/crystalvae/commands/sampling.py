"""What the commands that sample share: a request from their config, and processes with a progress bar that meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Generator

from crystalvae import checks, sampling
from crystalvae.build import to_plain
from crystalvae.commands.ranks import ALONE, Ranks
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.sampling import SampleRequest
from crystalvae.vae_module.draw_crystals import Job, Spread, Work, one_by_one
from crystalvae.vae_module.vae_module import VAEModule


def sample_request(config: DictConfig, number: int) -> SampleRequest:
    """Return the request for `number` crystals that a config describes; `ConfigError` for what cannot be."""
    return SampleRequest(
        number=number,
        num_atoms=_counts(to_plain(config.get("num_atoms"))),
        composition=config.get("composition"),
        formula_units=config.get("formula_units"),
        temperature=checks.check_number("temperature", config.temperature),
        conditions=_mapping("conditions", config.conditions),
        chemical_system=to_plain(config.chemical_system),
        chemical_system_subsets=checks.check_switch("chemical_system_subsets", config.chemical_system_subsets),
        space_group=config.space_group,
        crystal_system=config.crystal_system,
        wyckoff=to_plain(config.wyckoff),
        sampler=_mapping("sampler", config.sampler),
        batch_size=checks.check_count("batch_size", config.batch_size),
        seed=checks.check_seed("seed", config.seed),
    )


def described(request: SampleRequest, module: VAEModule) -> dict[str, object]:
    """Return what was asked, as plain data for `samples.json`; what was not is left out, but for the temperature."""
    asked = {
        "conditions": dict(request.conditions or {}),
        "sampler": dict(request.sampler or {}),
        "chemical_system": list(request.elements or ()),
        "chemical_system_subsets": request.chemical_system_subsets,
        "space_group": request.space_group,
        "crystal_system": request.crystal_system,
        "wyckoff": request.wyckoff,
    }
    temperature = {"temperature": request.temperature} if module.prior is None else {}
    return {**temperature, **{name: value for name, value in asked.items() if value}}


def sample_all(
    module: VAEModule,
    request: SampleRequest,
    *,
    template: CrystalBatch | None = None,
    generator: Generator | None = None,
    ranks: Ranks = ALONE,
) -> CrystalBatch:
    """Sample as `sampling.sample` does, with a progress bar, on the CPU.

    Of several processes each does some of the batches, the main one gets all crystals, the others none. The crystals
    are those of one process: each batch has random numbers of its own.
    """
    crystals = sampling.sample(module, request, template=template, generator=generator, spread=shared_by(ranks))
    return crystals.to("cpu")


def shared_by(ranks: Ranks) -> Spread:
    """Return what does batches in several processes, in turn, and collects their crystals in the main one."""

    def spread(work: Work, jobs: Sequence[Job]) -> list[CrystalBatch]:
        numbers = [number for number in range(len(jobs)) if ranks.mine(number)]
        own = [jobs[number] for number in numbers]
        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not ranks.main) as progress:
            task = progress.add_task("sampling", total=sum(len(job.rows) for job in own))
            parts = one_by_one(work, own, advance=lambda done: progress.advance(task, done))
        found = dict(ranks.collect(list(zip(numbers, parts, strict=True))))
        return [found[number] for number in range(len(jobs))] if found else []

    return spread


def _mapping(key: str, value: object) -> dict[str, Any]:
    plain = to_plain(value)
    if plain is None:
        return {}
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{key}: got {plain!r}; expected names with values, such as {key}.NAME=VALUE")
    return {str(name): entry for name, entry in plain.items() if entry is not None}


def _counts(value: object) -> int | list[int] | None:
    if value is None:
        return None
    if isinstance(value, list):
        return [checks.check_count("num_atoms", entry) for entry in value]
    return checks.check_count("num_atoms", value)
