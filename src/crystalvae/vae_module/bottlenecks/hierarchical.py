"""The hierarchical bottleneck: a latent per atom, and above it latents of the crystal as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalvae.checks import check_count, check_number
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.bottlenecks.base import Bottleneck, Posterior
from crystalvae.vae_module.bottlenecks.hierarchical_config import HierarchicalConfig, Wiring
from crystalvae.vae_module.distribution import DiagonalGaussianDistribution, normal_noise
from crystalvae.vae_module.layers.pooling import mean_over_atoms
from crystalvae.vae_module.layers.precision import full_precision


class HierarchicalPosterior(DiagonalGaussianDistribution):
    """Independent Gaussians of all levels, (N, L): those of an atom, then those of its crystal, the same for its atoms.

    Draws are the same for all atoms of a crystal, too: the noise of its first atom counts.
    """

    def __init__(self, parameters: Float[Tensor, "N TwoL"], crystals: CrystalBatch, atom_dim: int) -> None:
        super().__init__(parameters)
        self._first, self._atom_dim = crystals.ptr[:-1][crystals.batch], atom_dim

    def reparameterize(self, noise: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:
        """Return μ + σ·ε for given standard normal ε, of which atoms of a crystal share the deeper levels'."""
        shared = torch.cat((noise[:, : self._atom_dim], noise[self._first, self._atom_dim :]), dim=-1)
        return super().reparameterize(shared)


class LadderBottleneck(Bottleneck):
    """A hierarchy of latents from modules of any make: z_1 of each atom, z_2 … z_depth of each crystal.

    Features are the `features` numbers that `quant_conv` gives each atom. With L_1 = `latent_dim` and L_2 … L_depth =
    `crystal_dims`, rows N (atoms) for level 1 and B (crystals) for the others:

    - `encoders[0]`: features of atoms → (N, 2 L_1); `encoders[k]`: their mean over each crystal → (B, 2 L_k+1); mean
      and log-variance side by side. With `wiring` "chained" `encoders[1]` reads the mean over each crystal of what
      `encoders[0]` gave (B, 2 L_1), and `encoders[k]` what `encoders[k - 1]` gave (B, 2 L_k). Either way
      q(z | x) = Π q(z_k | x).
    - `decoders[-1]`: z_depth → h_depth; `decoders[k]`: z_k+1 beside h_k+2 → h_k+1; h_1 has `decoded` numbers per atom,
      which `post_quant_conv` hands to the crystal's decoder.
    - `priors[k]`: z_k+2 → mean and log-variance of p(z_k+1 | z_k+2), with one row per crystal; without priors, and for
      the deepest level, N(0, I).

    A latent is one tensor (N, L_1 + … + L_depth), in which the atoms of a crystal repeat its numbers; where they
    differ, their mean is decoded. `hierarchical_kl` as `HierarchicalConfig`. Sources: Sønderby et al., "Ladder
    Variational Autoencoders" (2016), eqs. 1 to 3, with its independent q; learned priors as in Maaløe et al. (2019).
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        crystal_dims: Sequence[int],
        features: int,
        decoded: int,
        encoders: Sequence[nn.Module] | nn.ModuleList,
        decoders: Sequence[nn.Module] | nn.ModuleList,
        depth: int,
        priors: Sequence[nn.Module] | nn.ModuleList | None = None,
        hierarchical_kl: bool = True,
        wiring: Wiring = "direct",
    ) -> None:
        HierarchicalConfig(
            encoders=encoders,
            decoders=decoders,
            priors=priors,
            depth=depth,
            hierarchical_kl=hierarchical_kl,
            wiring=wiring,
        )  # says what is wrong
        check_count("latent_dim", latent_dim)
        check_count("bottleneck.features", features)
        check_count("bottleneck.decoded", decoded)
        if len(crystal_dims) != depth - 1:
            raise ConfigError(
                f"bottleneck.crystal_dims: got {list(crystal_dims)} with depth {depth}; expected depth - 1 numbers"
            )
        for position, size in enumerate(crystal_dims):
            check_count(f"bottleneck.crystal_dims[{position}]", size)
        super().__init__(latent_dim=latent_dim + sum(crystal_dims), input_dim=features, output_dim=decoded)
        self.dims, self.depth = (latent_dim, *crystal_dims), depth
        self.encoders, self.decoders = nn.ModuleList(encoders), nn.ModuleList(decoders)
        self.priors = None if priors is None else nn.ModuleList(priors)
        self.wiring: Wiring = wiring
        self.level_weight = 1.0 / depth if hierarchical_kl else 1.0
        above = "standard normal noise, level by level" if priors is None else "its learned priors"
        self.own_prior = f"{above}: the crystal's latents first, then its atoms'"

    # ---- encode and decode -------------------------------------------------------------------------------------------

    def posterior(self, parameters: Float[Tensor, "N I"], crystals: CrystalBatch) -> HierarchicalPosterior:
        """Return the Gaussians of all levels for the features of each atom."""
        means, logvars, given = [], [], parameters
        for level, encoder in enumerate(self.encoders):
            output = encoder(given)
            mean, logvar = self._halves("encoders", level, output, crystals)
            if level == 0:
                given = mean_over_atoms(output if self.wiring == "chained" else parameters, crystals)
            elif self.wiring == "chained":
                given = output
            means.append(mean if level == 0 else mean[crystals.batch])
            logvars.append(logvar if level == 0 else logvar[crystals.batch])
        return HierarchicalPosterior(torch.cat((*means, *logvars), dim=-1), crystals, self.dims[0])

    def features(self, latents: Float[Tensor, "N L"], crystals: CrystalBatch) -> Float[Tensor, "N O"]:
        """Decode from the deepest latent down."""
        levels, above = self._levels(latents, crystals), None
        for level in reversed(range(self.depth)):
            given = levels[level]
            if above is not None:
                given = torch.cat((given, above[crystals.batch] if level == 0 else above), dim=-1)
            above = self.decoders[level](given)
        assert above is not None  # noqa: S101  depth is at least 1
        if above.shape != (crystals.num_nodes, self.output_dim):
            expected = (crystals.num_nodes, self.output_dim)
            raise ConfigError(f"bottleneck.decoders[0]: returned shape {tuple(above.shape)}; expected {expected}")
        return above

    def _levels(self, latents: Float[Tensor, "N L"], crystals: CrystalBatch) -> list[Tensor]:
        """Return z_1 (N, L_1) and the deeper latents (B, L_k)."""
        first, *deeper = latents.split(self.dims, dim=-1)
        return [first, *(mean_over_atoms(values, crystals) for values in deeper)]

    def _halves(self, name: str, level: int, output: Tensor, crystals: CrystalBatch) -> tuple[Tensor, Tensor]:
        atoms = level == 0 and name == "encoders"
        expected = (crystals.num_nodes if atoms else crystals.num_graphs, 2 * self.dims[level])
        if output.shape != expected:
            raise ConfigError(
                f"bottleneck.{name}[{level}]: returned shape {tuple(output.shape)}; expected {expected}, mean and "
                f"log-variance of {self.dims[level]} numbers side by side"
            )
        mean, logvar = output.float().chunk(2, dim=-1)
        return mean, logvar

    # ---- prior -------------------------------------------------------------------------------------------------------

    def _prior(self, level: int, above: Tensor, crystals: CrystalBatch) -> DiagonalGaussianDistribution | None:
        """Return p(z of this level | z of the level above), one row per crystal; None for N(0, I)."""
        if self.priors is None or level == self.depth - 1:
            return None
        with full_precision(above):
            output = self.priors[level](above)
        self._halves("priors", level, output, crystals)
        return DiagonalGaussianDistribution(output)

    def kl_levels(
        self, posterior: Posterior, latents: Float[Tensor, "N L"], crystals: CrystalBatch
    ) -> list[Float[Tensor, "N L_k"]]:
        """Return KL(q(z_k | x) ‖ p(z_k | z_k+1)) of each level by atom and number, in full.

        That of a crystal is shared evenly by its atoms, so that all of it adds up over the atoms.
        """
        assert isinstance(posterior, HierarchicalPosterior)  # noqa: S101  made above
        drawn = self._levels(latents, crystals)
        means, logvars = (values.split(self.dims, dim=-1) for values in (posterior.mean, posterior.logvar))
        share, result = 1.0 / crystals.num_atoms[crystals.batch, None].to(latents.dtype), []
        for level in range(self.depth):
            own = DiagonalGaussianDistribution(torch.cat((means[level], logvars[level]), dim=-1))
            prior = self._prior(level, drawn[level + 1], crystals) if level < self.depth - 1 else None
            if prior is not None:
                prior = DiagonalGaussianDistribution(prior.parameters[crystals.batch])
            divergence = own.kl_per_dimension(prior)
            result.append(divergence if level == 0 else share * divergence)
        return result

    def kl(self, posterior: Posterior, latents: Float[Tensor, "N L"], crystals: CrystalBatch) -> Float[Tensor, "N L"]:
        """Return the levels' KL by atom and number, each level weighted as `hierarchical_kl` says."""
        return self.level_weight * torch.cat(self.kl_levels(posterior, latents, crystals), dim=-1)

    @torch.no_grad()
    def metrics(self, posterior: Posterior, latents: Float[Tensor, "N L"], crystals: CrystalBatch) -> dict[str, Tensor]:
        """Return the KL of each level in full: nats per atom for level 1, nats per crystal for the others."""
        levels = self.kl_levels(posterior, latents, crystals)
        counts = (crystals.num_nodes, *([crystals.num_graphs] * (self.depth - 1)))
        return {f"kl_level_{k + 1}": values.sum() / counts[k] for k, values in enumerate(levels)}

    def sample_latents(
        self, crystals: CrystalBatch, *, temperature: float, generator: torch.Generator | None
    ) -> Float[Tensor, "N L"]:
        """Draw the deepest latent first, then each level given the one above, deviations times `temperature`."""
        check_number("temperature", temperature)
        parts: list[Tensor] = []
        above = None
        for level in reversed(range(self.depth)):
            prior = None if above is None else self._prior(level, above, crystals)
            rows = crystals.num_nodes if level == 0 else crystals.num_graphs
            values = temperature * normal_noise((rows, self.dims[level]), crystals.device, generator)
            if prior is not None:
                mean, std = (part[crystals.batch] if level == 0 else part for part in (prior.mean, prior.std))
                values = mean + std * values
            parts.insert(0, values if level == 0 else values[crystals.batch])
            above = values
        return torch.cat(parts, dim=-1)


class HierarchicalBottleneck(LadderBottleneck):
    """A hierarchy of `depth` levels whose modules are feed-forward networks of `width` hidden dimensions.

    Deeper levels have `crystal_dim` numbers each. `learned_priors`: whether p(z_k | z_k+1) is learnt;
    otherwise N(0, I). `hierarchical_kl` and `wiring` as `HierarchicalConfig`.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        depth: int = 2,
        crystal_dim: int = 16,
        width: int = 128,
        learned_priors: bool = True,
        hierarchical_kl: bool = True,
        wiring: Wiring = "direct",
    ) -> None:
        check_count("latent_dim", latent_dim)
        check_count("bottleneck.depth", depth)
        check_count("bottleneck.crystal_dim", crystal_dim)
        check_count("bottleneck.width", width)
        if not isinstance(learned_priors, bool):
            raise ConfigError(f"bottleneck.learned_priors: got {learned_priors!r}; expected true or false")
        if learned_priors and depth == 1:
            raise ConfigError(
                "bottleneck.learned_priors: got true with depth 1, which has no level above; set it false"
            )
        dims = [latent_dim, *([crystal_dim] * (depth - 1))]
        priors = [LevelMLP(dims[k + 1], width, 2 * dims[k], zero=True) for k in range(depth - 1)]
        super().__init__(
            latent_dim=latent_dim,
            crystal_dims=dims[1:],
            features=width,
            decoded=width,
            encoders=[
                LevelMLP(2 * dims[k - 1] if k and wiring == "chained" else width, width, 2 * size)
                for k, size in enumerate(dims)
            ],
            decoders=[LevelMLP(size + (width if k < depth - 1 else 0), width, width) for k, size in enumerate(dims)],
            depth=depth,
            priors=priors if learned_priors else None,
            hierarchical_kl=hierarchical_kl,
            wiring=wiring,
        )


class LevelMLP(nn.Sequential):
    """A linear map, SiLU, a linear map; `zero` starts with the output 0, as a prior N(0, I).

    `config` says how to build it again.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, *, zero: bool = False) -> None:
        self.config = {
            "_target_": f"{LevelMLP.__module__}.{LevelMLP.__name__}",
            "inputs": inputs,
            "hidden": hidden,
            "outputs": outputs,
            "zero": zero,
        }
        last = nn.Linear(hidden, outputs)
        if zero:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(inputs, hidden), nn.SiLU(), last)
