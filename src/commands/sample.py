"""Sample crystals from a checkpoint and write them to a folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from src.commands import arguments
from src.commands.device import choose_device
from src.data.batch import MAX_ATOMIC_NUMBER, CrystalBatch
from src.data.writers import FORMATS, write_crystals
from src.errors import ConfigError
from src.evaluation.validity import describe
from src.vae_module.build import to_plain
from src.vae_module.checkpoint import package_versions
from src.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)


def sample(config: DictConfig) -> str:
    """Sample as `config` says; returns what to tell the user at the end."""
    from src.data.output_dir import check_output_dir

    count = arguments.positive("num_samples", config.num_samples)
    batch_size = arguments.positive("batch_size", config.batch_size)
    seed = arguments.whole("seed", config.seed)
    temperature = arguments.number("temperature", config.temperature)
    formats = _formats(config.formats)
    output_dir = arguments.path("output_dir", config.output_dir)
    ckpt_path = arguments.path("ckpt_path", config.ckpt_path)
    check_output_dir(output_dir, overwrite=config.overwrite)
    device = choose_device(config.device)
    module = VAEModule.load_from_checkpoint(ckpt_path, map_location=device)
    generator = torch.Generator().manual_seed(seed)
    template = sample_template(
        module,
        count,
        num_atoms=to_plain(config.num_atoms),
        composition=config.composition,
        formula_units=config.formula_units,
        generator=generator,
    )
    log.info("decoding standard normal noise: this checkpoint holds no learned prior")
    started = time.perf_counter()
    crystals = _sample_batches(module, template, batch_size, temperature, generator)
    seconds = time.perf_counter() - started
    facts = describe(crystals)
    info = {
        "ckpt_path": str(config.ckpt_path),
        "seed": seed,
        "temperature": temperature,
        "latents": "standard normal noise",
        "versions": package_versions(),
    }
    write_crystals(crystals, output_dir, table=facts, formats=formats, overwrite=config.overwrite, info=info)
    valid = sum(facts["valid"].tolist())
    return (
        f"{count} crystals in {output_dir.absolute()}: {' + '.join(formats) or 'no structure files'} and samples.csv; "
        f"{valid} ({valid / count:.1%}) structurally valid (every distance at least 0.5 Å, volume at least 0.1 Å^3); "
        f"decoded in {seconds:.1f} s on {device}"
    )


def sample_template(
    module: VAEModule,
    count: int,
    *,
    num_atoms: int | Sequence[int] | None,
    composition: str | None,
    formula_units: int | None,
    generator: torch.Generator,
) -> CrystalBatch:
    """Return crystals of which only what is asked for is known: atom counts, and elements in structure prediction.

    Raises `ConfigError` for what cannot be asked of this model.
    """
    seen = {int(size): int(crystals) for size, crystals in module.statistics.get("num_atoms", {}).items()}
    if composition is not None:
        return _composition_template(module, count, composition, formula_units, num_atoms, seen)
    if not module.atom_type_predict:
        raise ConfigError("this checkpoint predicts structures for given elements: say which, composition=LiFePO4")
    if formula_units is not None:
        raise ConfigError("formula_units: only has a meaning together with composition=")
    if num_atoms is None:
        if not seen:
            raise ConfigError("this checkpoint does not know how many atoms crystals have: say it with num_atoms=")
        sizes, weights = zip(*sorted(seen.items()), strict=True)
        drawn = torch.multinomial(torch.tensor(weights).double(), count, replacement=True, generator=generator)
        return CrystalBatch.empty(torch.tensor(sizes)[drawn])
    counts = [num_atoms] * count if isinstance(num_atoms, int) else list(num_atoms)
    if len(counts) != count:
        raise ConfigError(
            f"num_atoms: got {len(counts)} numbers for num_samples={count}; expected one each, or one number"
        )
    for size in counts:
        arguments.positive("num_atoms", size)
    _warn_unseen(set(counts), seen)
    return CrystalBatch.empty(counts)


def _composition_template(
    module: VAEModule,
    count: int,
    formula: str,
    formula_units: int | None,
    num_atoms: int | Sequence[int] | None,
    seen: dict[int, int],
) -> CrystalBatch:
    if module.atom_type_predict:
        raise ConfigError(
            f"composition={formula}: this checkpoint predicts the elements itself and cannot be told them; train one "
            "for structure prediction (experiment=mp_20/vae_csp) and use that"
        )
    if num_atoms is not None:
        raise ConfigError("num_atoms and composition exclude each other: say the size of the cell with formula_units=")
    unit = parse_composition(formula)
    if formula_units is not None:
        sizes = [arguments.positive("formula_units", formula_units)]
        _warn_unseen({sizes[0] * len(unit)}, seen)
    else:
        sizes = list(range(1, max(seen, default=0) // len(unit) + 1)) or [1]
        _warn_unseen({size * len(unit) for size in sizes} if sizes == [1] else set(), seen)
    chosen = [sizes[index % len(sizes)] for index in range(count)]
    atoms = [number for size in chosen for number in sorted(unit * size)]
    return CrystalBatch.empty([size * len(unit) for size in chosen]).replace(atom_types=torch.tensor(atoms))


def parse_composition(formula: str) -> list[int]:
    """Return the atomic numbers of one formula unit; `ConfigError` for anything but whole numbers of known elements."""
    from pymatgen.core import Composition, Element

    try:
        amounts = {str(symbol): amount for symbol, amount in Composition(formula, strict=True).items()}
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"composition={formula}: not a chemical formula ({reason}); expected one such as LiFePO4"
        ) from error
    unit: list[int] = []
    for symbol, amount in amounts.items():
        if not Element.is_valid_symbol(symbol) or Element(symbol).Z > MAX_ATOMIC_NUMBER:
            raise ConfigError(f"composition={formula}: unknown element {symbol}; expected H to Es")
        if amount != round(amount) or amount < 1:
            raise ConfigError(
                f"composition={formula}: {amount:g} atoms of {symbol}; expected whole numbers, at least 1"
            )
        unit += [Element(symbol).Z] * round(amount)
    if not 1 <= len(unit) <= 1000:
        raise ConfigError(f"composition={formula}: {len(unit)} atoms; expected 1 to 1000")
    return unit


def _sample_batches(
    module: VAEModule, template: CrystalBatch, batch_size: int, temperature: float, generator: torch.Generator
) -> CrystalBatch:
    from src.vae_module.sampling import sample_crystals

    parts: list[CrystalBatch] = []
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress, torch.no_grad():
        task = progress.add_task("sampling", total=len(template))
        for start in range(0, len(template), batch_size):
            part = template[start : start + batch_size].to(module.device)
            parts.append(sample_crystals(module.vae, part, temperature=temperature, generator=generator).to("cpu"))
            progress.advance(task, len(part))
    return CrystalBatch.cat(parts)


def _warn_unseen(sizes: set[int], seen: dict[int, int]) -> None:
    unknown = sorted(sizes - set(seen)) if seen else []
    if unknown:
        log.warning(
            "the model never saw crystals of %s atoms in training (it saw %d to %d): expect less of these",
            ", ".join(map(str, unknown[:10])), min(seen), max(seen),
        )  # fmt: skip


def _formats(value: object) -> list[str]:
    formats = [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else None
    if formats is None or not set(formats) <= set(FORMATS):
        raise ConfigError(
            f"formats: got {value}; expected a list of some of {', '.join(FORMATS)}, such as [cif,extxyz]"
        )
    return formats
