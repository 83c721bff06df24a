"""New crystals from a latent source and a VAE, batch by batch: the only place where crystals are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from crystalvae.checks import check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.contacts import MIN_CONTACT, contacts
from crystalvae.data.symmetric.projection import project
from crystalvae.data.symmetric.source import SPACE_GROUP
from crystalvae.errors import ConfigError
from crystalvae.vae_module.decoders.heads import DecodedCrystals
from crystalvae.vae_module.latent_source import DrawOptions, GeneSource, LatentSource
from crystalvae.vae_module.vae import CrystalVAE


@dataclass(frozen=True, eq=False)
class Job:
    """A batch to draw: its rows of the request, and a generator of its own."""

    rows: Int[Tensor, "b"]
    generator: torch.Generator


Work = Callable[[Job], CrystalBatch]
Spread = Callable[[Work, Sequence[Job]], list[CrystalBatch]]
"""What does the work: returns the crystals of all jobs, in their order (or none, in a process that is not the main)."""


def one_by_one(
    work: Work, jobs: Sequence[Job], *, advance: Callable[[int], object] = lambda _done: None
) -> list[CrystalBatch]:
    """Do all jobs here; `advance` is called after each with the number of its crystals."""
    parts = []
    for job in jobs:
        parts.append(work(job))
        advance(len(job.rows))
    return parts


def batches_by_size(num_atoms: Int[Tensor, "B"], batch_size: int, generator: torch.Generator) -> list[Job]:
    """Return batches of crystals of similar size, which can be drawn anywhere and in any order.

    One batch takes the generator as it is: drawing several one by one gives what drawing them together does.
    """
    rows = num_atoms.argsort(stable=True).split(batch_size)
    if len(rows) == 1:
        return [Job(rows[0], generator)]
    seeds = torch.randint(2**62, (len(rows),), generator=generator, device=generator.device).tolist()
    own = [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]
    return [Job(part, source) for part, source in zip(rows, own, strict=True)]


@torch.no_grad()
def draw_crystals(
    vae: CrystalVAE,
    source: LatentSource,
    asked: CrystalBatch,
    *,
    options: DrawOptions,
    generator: torch.Generator,
    batch_size: int = 512,
    spread: Spread = one_by_one,
) -> CrystalBatch:
    """Draw crystals with the atom counts, the elements where they are not 0, and the conditions of `asked`.

    They come back in its order, on the VAE's device. The result depends on the generator's seed and on `batch_size`,
    not on the device where the generator is on the CPU.

    Raises `ConfigError` for elements or options that the source does not allow.
    """
    check_count("batch_size", batch_size)
    source.check(options)
    device = vae.quant_conv.weight.device
    if isinstance(source, GeneSource) and bool(
        (asked.atom_types > 0).any()
    ):  # all of one formula together, so that genes differ
        asked = source.propose(asked.to(device), options=options, generator=generator).to(asked.device)
    jobs = batches_by_size(asked.num_atoms.cpu(), batch_size, generator)

    def work(job: Job) -> CrystalBatch:
        part = asked[job.rows.to(asked.device)].to(device)
        return draw_batch(vae, source, part, options=options, generator=job.generator).to("cpu")

    parts = spread(work, jobs)
    if not parts:
        return CrystalBatch.empty([], device=device)
    order = torch.cat([job.rows for job in jobs])
    return CrystalBatch.cat(parts)[order.argsort()].to(device)


def draw_batch(
    vae: CrystalVAE, source: LatentSource, asked: CrystalBatch, *, options: DrawOptions, generator: torch.Generator
) -> CrystalBatch:
    """Draw the crystals of one batch, those with atoms too close again where the source wants that."""
    crystals, redraws = _draw_once(vae, source, asked, options=options, generator=generator)
    for _ in range(redraws):
        close = torch.from_numpy(contacts(crystals) < MIN_CONTACT).to(crystals.device)
        if not bool(close.any()):
            break
        rows = close.nonzero()[:, 0]
        again, _ = _draw_once(vae, source, asked[rows], options=options, generator=generator)
        place = torch.arange(len(close), device=close.device)
        place[rows] = len(close) + torch.arange(len(rows), device=close.device)
        crystals = CrystalBatch.cat([crystals, again])[place]
    return crystals


def _draw_once(
    vae: CrystalVAE, source: LatentSource, asked: CrystalBatch, *, options: DrawOptions, generator: torch.Generator
) -> tuple[CrystalBatch, int]:
    """Return crystals, and how often those with atoms too close are to be drawn again: not where genes are given.

    A gene that is wrong for its formula has short contacts however often it is drawn.
    """
    genes_given = SPACE_GROUP in asked.properties
    if isinstance(source, GeneSource):
        asked = source.propose(asked, options=options, generator=generator)
        drawn = source.draw_through(vae, asked, options=options, generator=generator)
    else:
        drawn = source.draw(asked, options=options, generator=generator)
    decoded = vae.decode(drawn.latents, drawn.crystals)
    if options.elements is not None:
        decoded = only_elements(decoded, options.elements)
    crystals = vae.to_crystals(decoded, drawn.crystals)
    if drawn.symmetric:
        crystals = project(crystals.replace(properties=drawn.crystals.properties))
    elif drawn.order is not None:
        order = drawn.order
        crystals = crystals.replace(atom_types=crystals.atom_types[order], frac_coords=crystals.frac_coords[order])
    return crystals, 0 if genes_given else drawn.redraws


def only_elements(decoded: DecodedCrystals, elements: Sequence[int]) -> DecodedCrystals:
    """Return what was decoded with every other element made impossible, where elements were decoded."""
    if decoded.atom_logits is None:
        return decoded
    forbidden = torch.ones(decoded.atom_logits.shape[1], dtype=torch.bool, device=decoded.atom_logits.device)
    forbidden[torch.tensor(sorted(set(elements)), device=forbidden.device)] = False
    return replace(decoded, atom_logits=decoded.atom_logits.masked_fill(forbidden, -torch.inf))


def check_elements(template: CrystalBatch, *, proposed: bool) -> None:
    """Raise `ConfigError` unless all atoms have elements, or none has where they are `proposed` by a prior."""
    unknown = template.atom_types == 0
    if not bool(unknown.any()) or (proposed and bool(unknown.all())):
        return
    if proposed:
        raise ConfigError("composition: some atoms have element 0; expected elements for all atoms, or for none")
    raise ConfigError(
        "sample: this model predicts structures for given elements; expected a batch with atom_types, got element 0"
    )
