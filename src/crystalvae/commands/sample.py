"""Sample crystals from a checkpoint and write them to a folder."""

from __future__ import annotations

import logging
import time

import torch
from omegaconf import DictConfig

from crystalvae.build import to_plain
from crystalvae.checkpoints import bundled
from crystalvae.checkpoints.format import package_versions
from crystalvae.commands import arguments
from crystalvae.commands.analogy import asks_for_analogy, sample_by_analogy
from crystalvae.commands.device import choose_device
from crystalvae.commands.ranks import Ranks, joined_processes
from crystalvae.commands.relaxing import Relaxer
from crystalvae.commands.sampling import elements_needed, sample_all, sampling_options
from crystalvae.commands.template import sample_template
from crystalvae.data.writers import write_crystals
from crystalvae.evaluation.validity.structure import describe
from crystalvae.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)


def sample(config: DictConfig) -> str:
    """Sample as `config` says; returns what to tell the user at the end.

    Processes that torchrun started share the work; the main one writes.
    """
    if asks_for_analogy(config):
        return sample_by_analogy(config)
    with joined_processes() as ranks:
        return _sample(config, ranks)


def _sample(config: DictConfig, ranks: Ranks) -> str:
    from crystalvae.output_dir import check_output_dir

    count = arguments.positive("num_samples", config.num_samples)
    batch_size = arguments.positive("batch_size", config.batch_size)
    seed = arguments.whole("seed", config.seed)
    formats = arguments.formats(config.formats)
    output_dir = arguments.path("output_dir", config.output_dir)
    ckpt_path = arguments.path("ckpt_path", config.ckpt_path)
    check_output_dir(output_dir, overwrite=config.overwrite)
    relaxer = Relaxer.from_config(config)
    device = choose_device(config.device, local_rank=ranks.local_rank)
    module = VAEModule.load_from_checkpoint(bundled.find(ckpt_path), map_location=device)
    generator = torch.Generator().manual_seed(seed)
    options = sampling_options(module, config)
    num_atoms = to_plain(config.num_atoms)
    template = sample_template(
        module,
        count,
        num_atoms=num_atoms,
        composition=config.composition,
        formula_units=config.formula_units,
        generator=generator,
        elements=elements_needed(module, options),
    )
    started = time.perf_counter()
    crystals = sample_all(module, template, batch_size, generator, options, ranks=ranks)
    seconds = time.perf_counter() - started
    if not ranks.main:
        return ""
    outcomes = None
    if relaxer is not None:
        crystals, outcomes = relaxer(crystals)
    facts = describe(crystals)
    latents = module.vae.bottleneck.own_prior if module.prior is None else "learned prior"
    info = {
        "ckpt_path": str(config.ckpt_path),
        "seed": seed,
        "latents": latents,
        **options,
        "num_atoms": num_atoms,
        "composition": config.composition,
        "formula_units": config.formula_units,
        "batch_size": batch_size,
        "seconds": round(seconds, 3),
        "relaxation": None if relaxer is None else relaxer.settings(),
        "device": str(device),
        "processes": ranks.world_size,
        "versions": package_versions(),
    }
    table = facts if outcomes is None else facts.join(outcomes)
    write_crystals(crystals, output_dir, table=table, formats=formats, overwrite=config.overwrite, info=info)
    valid = sum(facts["valid"].tolist())
    relaxed = ""
    if outcomes is not None:
        done, converged = sum(outcomes["relaxed"]), sum(outcomes["converged"])
        relaxed = f"; {done} relaxed with {config.potential.name} ({converged} converged), the rest as sampled"
    unlearned = "" if module.prior is not None else "; no learned prior: see docs/prior.md for samples worth keeping"
    return (
        f"{count} crystals in {output_dir.absolute()}: {' + '.join(formats) or 'no structure files'} and samples.csv; "
        f"{valid} ({valid / count:.1%}) structurally valid (every distance at least 0.5 Å, volume at least 0.1 Å^3); "
        f"sampled from {latents} in {seconds:.1f} s on {device}{relaxed}{unlearned}"
    )
