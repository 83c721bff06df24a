"""Sample crystals from a checkpoint and write them to a folder."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext

from omegaconf import DictConfig

from crystalvae import checks
from crystalvae.checkpoints import bundled
from crystalvae.checkpoints.format import package_versions
from crystalvae.commands.analogy import asks_for_analogy, sample_by_analogy
from crystalvae.commands.device import choose_device
from crystalvae.commands.ranks import Ranks, joined_processes
from crystalvae.commands.relaxing import Relaxer
from crystalvae.commands.sampling import described, sample_all, sample_request
from crystalvae.data.writers import FORMATS, write_crystals
from crystalvae.errors import ConfigError
from crystalvae.evaluation.validity.contacts import sample_facts
from crystalvae.prior_module.latent_flow import LatentFlow
from crystalvae.prior_module.replay import replayed
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

    count = checks.check_count("num_samples", config.num_samples)
    request = sample_request(config, count)
    formats = checks.check_choices("formats", config.formats, FORMATS)
    cif_symmetry = checks.check_switch("cif_symmetry", config.cif_symmetry)
    output_dir = checks.check_path("output_dir", config.output_dir)
    ckpt_path = checks.check_path("ckpt_path", config.ckpt_path)
    check_output_dir(output_dir, overwrite=config.overwrite)
    relaxer = Relaxer.from_config(config)
    device = choose_device(config.device, local_rank=ranks.local_rank)
    module = VAEModule.load_from_checkpoint(bundled.find(ckpt_path), map_location=device)
    started = time.perf_counter()
    with _graphs(module) if config.cuda_graphs else nullcontext():
        crystals = sample_all(module, request, ranks=ranks)
    seconds = time.perf_counter() - started
    if not ranks.main:
        return ""
    outcomes = None
    if relaxer is not None:
        crystals, outcomes = relaxer(crystals)
    facts = sample_facts(crystals)
    latents = module.source.own_prior
    info = {
        "ckpt_path": str(config.ckpt_path),
        "seed": request.seed,
        "latents": latents,
        **described(request, module),
        "num_atoms": request.num_atoms,
        "composition": request.composition,
        "formula_units": request.formula_units,
        "batch_size": request.batch_size,
        "seconds": round(seconds, 3),
        "relaxation": None if relaxer is None else relaxer.settings(),
        "device": str(device),
        "processes": ranks.world_size,
        "versions": package_versions(),
    }
    table = facts if outcomes is None else facts.join(outcomes)
    write_crystals(
        crystals, output_dir, table=table, formats=formats, overwrite=config.overwrite, info=info,
        cif_symmetry=cif_symmetry,
    )  # fmt: skip
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


def _graphs(module: VAEModule) -> AbstractContextManager[None]:
    """Return the context in which the prior's network is replayed; `ConfigError` where there is none."""
    if not isinstance(module.prior, LatentFlow):
        raise ConfigError(
            "cuda_graphs: got true, but this model holds no learned prior whose network could be replayed"
        )
    return replayed(module.prior.denoiser)
