"""A prior that says space groups and sites first, and then geometry: its crystals are symmetric by construction."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crystalvae.checks import check_count
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.symmetric.projection import AtomSites, project
from crystalvae.errors import ConfigError
from crystalvae.prior_module.analogues import Analogues
from crystalvae.prior_module.asked_symmetry import asked_sites, asked_space_groups
from crystalvae.prior_module.conditioned_genes import ConditionedGenes
from crystalvae.prior_module.element_similarity import ElementSimilarity
from crystalvae.prior_module.flow import SamplerOptions
from crystalvae.prior_module.gene_drawing import GeneDrawer
from crystalvae.prior_module.gene_lookup import GeneLookup
from crystalvae.prior_module.gene_ranker import GeneRanker
from crystalvae.prior_module.genes import Genes
from crystalvae.prior_module.hints import Hints
from crystalvae.prior_module.latent_flow import LatentFlow
from crystalvae.vae_module.conditions.values import Values, told
from crystalvae.vae_module.distribution import normal_noise
from crystalvae.vae_module.latent_source import Autoencoder, Drawn, DrawOptions
from crystalvae.vae_module.layers.precision import full_precision

log = logging.getLogger(__name__)


class SymmetricFlow(LatentFlow):
    """A flow over the latents of crystals in the symmetric description, told their genes; a model proposes these.

    `gene` {d_model, nhead, num_layers, dropout, max_atoms} describes the gene model, `ranking` {d_model, num_layers,
    dropout} the network that puts genes of known crystals in order for a formula (`GeneRanker`; None: their votes
    alone), trained for `epochs`; the other keywords are those of `LatentFlow`. The flow is also told of a training
    crystal with the same sites and similar elements where there is one (`Analogues`). It needs a VAE that is given
    elements.
    """

    genes_given = True

    def __init__(self, *, gene: Mapping[str, Any], ranking: Mapping[str, Any] | None = None, **flow: Any) -> None:
        if flow.get("composition") is not None or not flow["elements_given"]:
            raise ConfigError(
                "prior.gene: genes take the place of compositions, for a VAE that is given elements; set "
                "composition=null, or prior_module/prior=flow"
            )
        super().__init__(**flow)
        self.gene = ConditionedGenes(conditions=self.names, classes=flow.get("classes"), **gene)
        self.analogues = Analogues()
        ranking = dict(ranking or {})
        self.ranking_epochs = check_count("prior.ranking.epochs", ranking.pop("epochs", 1))
        self.ranker = GeneRanker(**ranking).requires_grad_(requires_grad=False) if ranking else None
        self._drawer: GeneDrawer | None = None

    @property
    def proposes_elements(self) -> bool:
        """Genes have elements."""
        return True

    @torch.enable_grad()
    def fit_known(self, crystals: CrystalBatch) -> None:
        """Keep crystals as known ones, and learn from them how alike elements are and how genes rank, unless that is.

        The crystals are those of the training set in the symmetric description; learning takes some ten minutes for
        MP-20.
        """
        self.analogues.fit(crystals)
        if self.ranker is not None and bool(self.ranker.fitted):
            return
        similarity = ElementSimilarity()
        lookup = GeneLookup(self.analogues.genes(), similarity)
        losses = lookup.fit()
        log.info("how alike elements are: -log p of a gene by votes %.3f nats, %.3f at first", losses[-1], losses[0])
        self.analogues.similarity.load_state_dict(similarity.state_dict())
        if self.ranker is not None:
            host = crystals.detach().to("cpu")
            losses = self.ranker.cpu().fit(host, self.analogues, lookup, epochs=self.ranking_epochs)
            log.info("ranking of genes: -log p %.3f nats, %.3f at first", losses[-1], losses[0])
        self._drawer = None

    def gene_loss(self, crystals: CrystalBatch, values: Values, given: Bool[Tensor, "B"] | None) -> Float[Tensor, "B"]:
        """Return -log p(gene) in nats, given the formula or (not `given`) the number of atoms; None: mean of both."""
        genes = Genes.of(crystals)
        if given is None:
            return self.gene.of_both_tasks(genes, values)
        return self.gene.negative_log_likelihood(genes, values, given)

    @torch.no_grad()
    def hints(self, crystals: CrystalBatch, vae: Autoencoder, *, noise: Float[Tensor, "B"] | None = None) -> Hints:
        """Return what the flow is told of crystals with genes.

        The crystal that each may be like is the nearest one, or drawn with uniform `noise` (see `Analogues.find`);
        NaN stands for none.
        """
        with full_precision(crystals.lattices):  # geometry needs more digits than bfloat16 has
            models = self.analogues.find(crystals, Genes.of(crystals), noise=noise)
        latents = self.standardize(vae.encode(models.crystals).mode())
        return Hints(AtomSites.of(crystals), latents, models.elements, models.distance)

    # ---- as a source of latents (`GeneSource`) -----------------------------------------------------------------------

    def check(self, options: DrawOptions) -> None:
        """Raise `ConfigError` for a temperature, options of the sampler and space groups that cannot be."""
        self.check_sampler(options)
        _ = asked_space_groups(space_group=options.space_group, crystal_system=options.crystal_system)
        _ = asked_sites(options.space_group, options.wyckoff)

    def draw(self, crystals: CrystalBatch, *, options: DrawOptions, generator: torch.Generator) -> Drawn:  # noqa: ARG002
        """Raise `ConfigError`: estimates go through the VAE, in `draw_through`."""
        raise ConfigError("this prior draws through the VAE: use VAEModule.sample")

    @torch.no_grad()
    def propose(self, crystals: CrystalBatch, *, options: DrawOptions, generator: torch.Generator) -> CrystalBatch:
        """Return crystals with genes, elements and the order of atoms that follows, those that have genes as they are.

        Those of one formula get different genes, the likeliest first, whatever the generator (`GeneDrawer`).
        """
        temperature = self.sampler_options(options.sampler).composition_temperature
        return self._genes().with_genes(
            crystals, told(crystals, self.names), options, temperature=temperature, generator=generator
        )

    @torch.no_grad()
    def draw_through(
        self, vae: Autoencoder, crystals: CrystalBatch, *, options: DrawOptions, generator: torch.Generator
    ) -> Drawn:
        """Draw latents for crystals with genes, estimates being projected through the VAE where that is asked for."""
        sampler, values = self.sampler_options(options.sampler), told(crystals, self.names)
        placed = crystals.replace(conditions={})
        chosen = None
        if sampler.analogues == "drawn":
            chosen = torch.rand(len(placed), generator=generator, device=generator.device)
        elif sampler.analogues == "none":
            chosen = torch.full((len(placed),), torch.nan)
        hints = self.hints(placed, vae, noise=chosen)
        latents = hints.latents * self.latent_std + self.latent_mean
        # Where the last estimate is the known crystal, so is the result: nothing has to be drawn.
        settled = sampler.trust > sampler.times()[-2]
        rows = (hints.elements[placed.ptr[:-1]] == 0).nonzero()[:, 0] if settled else torch.arange(len(placed))
        if len(rows):
            atoms = torch.isin(placed.batch, rows.to(placed.device))
            part = placed[rows]
            latents[atoms] = self._drawn(
                vae,
                part,
                {name: given[rows] for name, given in values.items()},
                Hints(AtomSites.of(part), hints.latents[atoms], hints.elements[atoms], hints.distance[rows]),
                sampler,
                generator,
            )
        return Drawn(latents, placed, symmetric=True, redraws=sampler.redraws)

    def _drawn(
        self,
        vae: Autoencoder,
        placed: CrystalBatch,
        values: Values,
        hints: Hints,
        sampler: SamplerOptions,
        generator: torch.Generator,
    ) -> Float[Tensor, "N L"]:
        def projected(clean: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:
            found = vae.to_crystals(vae.decode(clean * self.latent_std + self.latent_mean, placed), placed)
            return self.standardize(vae.encode(project(found, hints.sites)).mode())

        return self.sample_latents(
            placed,
            values,
            options=sampler,
            noise=partial(normal_noise, (placed.num_nodes, self.latent_dim), placed.device, generator),
            hints=hints,
            projected=projected if sampler.projection else None,
        )

    def possible(self, atomic_numbers: Sequence[int], options: DrawOptions) -> bool:
        """Say whether atoms of these elements can be in the space groups and on the sites asked for."""
        return self._genes().possible(atomic_numbers, options)

    def size_weights(self, sizes: Sequence[int], options: DrawOptions) -> Float[Tensor, "S"]:
        """Return how likely what is asked for is for each number of atoms (`GeneDrawer`)."""
        return self._genes().size_weights(sizes, options)

    def _genes(self) -> GeneDrawer:
        if self._drawer is None:
            self._drawer = GeneDrawer(self.gene, self.analogues, self.ranker)
        return self._drawer
