"""The discrete bottleneck: each atom's latent is a tuple of codes from codebooks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystalvae.checks import check_count, check_number
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.bottlenecks.base import Bottleneck, Posterior
from crystalvae.vae_module.bottlenecks.codebook import Codebooks


class QuantizedPosterior:
    """The certain posterior of quantised latents: the nearest codes, with the gradient of what was quantised.

    `continuous` (N, L) is what the encoder said, `encoding_indices` (N, G) the numbers of the nearest codes in G
    codebooks, `codes` (N, L) those codes, `mean` the same with the straight-through gradient: that of `continuous`.
    """

    def __init__(
        self, continuous: Float[Tensor, "N L"], codes: Float[Tensor, "N L"], encoding_indices: Int[Tensor, "N G"]
    ) -> None:
        self.continuous, self.codes, self.encoding_indices = continuous, codes, encoding_indices
        self.mean = straight_through(continuous, codes)

    @property
    def var(self) -> Float[Tensor, "N L"]:
        """Zero: the codes are certain."""
        return torch.zeros_like(self.mean)

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "N L"]:  # noqa: ARG002  certain
        """Return the codes."""
        return self.mean

    def reparameterize(self, noise: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:  # noqa: ARG002  certain
        """Return the codes, whatever the noise."""
        return self.mean

    def mode(self) -> Float[Tensor, "N L"]:
        """Return the codes."""
        return self.mean


class Quantized(NamedTuple):
    """Vectors that were quantised: the codes (N, L), the numbers of the codes (N, G), and what the loss gets.

    The codes hand their gradient to the vectors (straight-through).
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor


class VQBottleneck(Bottleneck):
    """Vector quantisation with G = `num_codebooks` codebooks of K = `codebook_size` codes: G · log2 K bits per atom.

    Each codebook quantises its share of the `latent_dim` numbers. Gradients pass straight through to the encoder; the
    loss gets `commitment_loss` |z - sg(e)|² and, unless the codes are moving averages (`ema`), `codebook_loss`
    |sg(z) - e|², both means over atoms and latent dimensions. `decay` is of the moving averages: of the codes where
    `ema`, and of their usage. A code that is used less than `revive_below` times the average is moved to a random atom
    of the batch; null: never. Latents from elsewhere (a prior, arithmetic of your own) are quantised before decoding.

    Source: van den Oord et al., "Neural Discrete Representation Learning" (2017), eq. 3 and appendix A.1; revival as in
    Dhariwal et al., "Jukebox" (2020), section 3.1.
    """

    own_prior = "the usage frequencies of the codes, each atom and codebook on its own"

    def __init__(
        self,
        *,
        latent_dim: int,
        num_codebooks: int = 8,
        codebook_size: int = 256,
        commitment_weight: float = 0.25,
        codebook_weight: float | None = None,
        ema: bool = True,
        decay: float = 0.99,
        revive_below: float | None = 0.03,
    ) -> None:
        check_count("latent_dim", latent_dim)
        check_count("bottleneck.num_codebooks", num_codebooks)
        check_count("bottleneck.codebook_size", codebook_size, at_least=2)
        if latent_dim % num_codebooks:
            raise ConfigError(
                f"bottleneck.num_codebooks: got {num_codebooks} for latent_dim {latent_dim}; expected a divisor of it"
            )
        if not isinstance(ema, bool):
            raise ConfigError(f"bottleneck.ema: got {ema!r}; expected true or false")
        if ema and codebook_weight is not None:
            raise ConfigError(
                f"bottleneck.codebook_weight: got {codebook_weight} together with ema=true, where codes are moving "
                "averages and have no loss; set it to null, or ema=false"
            )
        if not 0.0 < decay < 1.0:
            raise ConfigError(f"bottleneck.decay: got {decay}; expected a number between 0 and 1")
        if revive_below is not None and not 0.0 < revive_below < 1.0:
            raise ConfigError(
                f"bottleneck.revive_below: got {revive_below}; expected a share in (0, 1), or null: never"
            )
        super().__init__(latent_dim=latent_dim, input_dim=latent_dim, output_dim=latent_dim)
        self.revive_below = revive_below
        self.codebooks = Codebooks(
            count=num_codebooks, size=codebook_size, width=latent_dim // num_codebooks, ema=ema, decay=decay
        )
        check_number("bottleneck.commitment_weight", commitment_weight)
        self.penalty_weights = {"commitment_loss": float(commitment_weight)}
        if not ema:
            weight = 1.0 if codebook_weight is None else codebook_weight
            check_number("bottleneck.codebook_weight", weight)
            self.penalty_weights["codebook_loss"] = float(weight)

    def posterior(self, parameters: Float[Tensor, "N I"], crystals: CrystalBatch) -> QuantizedPosterior:  # noqa: ARG002
        """Return the nearest codes."""
        return self._nearest(parameters)

    def quantize(self, vectors: Float[Tensor, "N L"]) -> Quantized:
        """Replace vectors, such as what `CrystalVAE.quant_conv` gives, with the nearest codes.

        The loss is what training adds for them: commitment and codebook loss, weighted, means over N.
        """
        posterior = self._nearest(vectors)
        penalties = self.penalties(posterior, atoms=len(vectors))
        loss = torch.stack([self.penalty_weights[name] * value for name, value in penalties.items()]).sum()
        return Quantized(posterior.mean, posterior.encoding_indices, loss)

    def _nearest(self, vectors: Float[Tensor, "N L"]) -> QuantizedPosterior:
        indices = self.codebooks.nearest(vectors)
        return QuantizedPosterior(vectors, self.codebooks.lookup(indices), indices)

    def features(self, latents: Float[Tensor, "N L"], crystals: CrystalBatch) -> Float[Tensor, "N O"]:  # noqa: ARG002
        """Quantise latents: codes stay what they are."""
        return straight_through(latents, self.codebooks.lookup(self.codebooks.nearest(latents)))

    def kl(
        self,
        posterior: Posterior,  # noqa: ARG002
        latents: Float[Tensor, "N L"],  # noqa: ARG002
        crystals: CrystalBatch,  # noqa: ARG002
    ) -> Float[Tensor, "N L"] | None:
        """Return None: against a uniform prior over codes it is constant, log `codebook_size` a codebook."""
        return None

    def penalties(self, posterior: Posterior, *, atoms: float) -> dict[str, Tensor]:
        """Return `commitment_loss` and, where codes learn by gradients, `codebook_loss`."""
        posterior = _quantized(posterior)
        numbers = atoms * self.latent_dim
        losses = {"commitment_loss": (posterior.continuous - posterior.codes.detach()).square().sum() / numbers}
        if not self.codebooks.ema:
            losses["codebook_loss"] = (posterior.continuous.detach() - posterior.codes).square().sum() / numbers
        return losses

    @torch.no_grad()
    def metrics(
        self,
        posterior: Posterior,
        latents: Float[Tensor, "N L"],  # noqa: ARG002
        crystals: CrystalBatch,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Return `perplexity` and `codes_used` (a share) of the codes of this batch, means over codebooks.

        Perplexity is exp(-Σ p log p): `codebook_size` where all codes are equally frequent, 1 where one is all.
        """
        indices = _quantized(posterior).encoding_indices
        taken = torch.nn.functional.one_hot(indices, self.codebooks.size).float().mean(dim=0)
        return {
            "perplexity": torch.special.entr(taken).sum(dim=-1).exp().mean(),
            "codes_used": (taken > 0).float().mean(),
        }

    def update(self, posterior: Posterior, batch: TrainingBatch) -> None:
        """Move codes and count their usage, as `Codebooks.update`."""
        posterior = _quantized(posterior)
        continuous, indices = posterior.continuous.detach(), posterior.encoding_indices
        self.codebooks.update(continuous, indices, batch, revive=self.revive_below)

    def sample_latents(
        self, crystals: CrystalBatch, *, temperature: float, generator: torch.Generator | None
    ) -> Float[Tensor, "N L"]:
        """Draw codes from the frequencies with which training used them, as `Codebooks.draw`."""
        indices = self.codebooks.draw(crystals.num_nodes, temperature=temperature, generator=generator)
        return self.codebooks.lookup(indices)


def straight_through(continuous: Float[Tensor, "N L"], codes: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:
    """Return `codes`, whose gradient is handed to `continuous` as it is (Bengio et al. 2013)."""
    return continuous + (codes - continuous).detach()


def _quantized(posterior: Posterior) -> QuantizedPosterior:
    assert isinstance(posterior, QuantizedPosterior)  # noqa: S101  this bottleneck makes no other
    return posterior
