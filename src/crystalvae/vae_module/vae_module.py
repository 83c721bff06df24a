"""The Lightning module: trains a `CrystalVAE`, and is what research code loads and calls."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from crystalvae.build import build, to_plain
from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.checkpoints.trusted import trusting
from crystalvae.data.augmentation import Augmentation, InputNoise
from crystalvae.data.batch import CrystalBatch
from crystalvae.errors import ConfigError
from crystalvae.vae_module.bottlenecks.base import DEFAULT_BOTTLENECK, Bottleneck
from crystalvae.vae_module.conditions.injection import Conditioning, tell, told
from crystalvae.vae_module.decoders.transformer import DecodedCrystals
from crystalvae.vae_module.latent_space.inputs import as_crystals
from crystalvae.vae_module.latent_space.operations import LatentOperations
from crystalvae.vae_module.objectives.elbo import ELBO, check_weights
from crystalvae.vae_module.objectives.reconstruction import CoordLoss
from crystalvae.vae_module.sampling import draw_template, sample_crystals
from crystalvae.vae_module.training import VAETraining
from crystalvae.vae_module.vae import CrystalVAE

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure
    from torch_geometric.data import Batch

log = logging.getLogger(__name__)


class VAEModule(LatentOperations, VAETraining):
    """A crystal VAE with its objective, its augmentation and its optimiser.

    All arguments are plain config, and are kept in the checkpoint: `encoder`, `decoder` and `bottleneck` (None: the
    Gaussian) with a `_target_` each; `loss_weights` for atom_types, frac_coords, lengths, angles and kl; `objective`
    with a `_target_`, which turns the parts into the loss (None: `ELBO`); `augmentation` {translate, rotate}; `noise`
    as `InputNoise`; `optimizer` and `scheduler` with a `_target_` that takes the parameters, or the optimiser and the
    number of steps; `prior` with a `_target_` where a prior was trained for these latents (`crystalvae.prior_module`);
    `condition` as `Conditioning` where encoder and decoder are told conditions.
    """

    def __init__(
        self,
        *,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        latent_dim: int,
        bottleneck: Mapping[str, Any] | Bottleneck | None = None,
        atom_type_predict: bool = True,
        coord_loss: CoordLoss = "periodic",
        bound_lattice: bool = True,
        loss_weights: Mapping[str, float] | None = None,
        objective: Mapping[str, Any] | None = None,
        augmentation: Mapping[str, bool] | None = None,
        noise: Mapping[str, float] | None = None,
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        prior: Mapping[str, Any] | None = None,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        arguments = {key: value for key, value in locals().items() if key not in {"self", "__class__"}}
        self.config: dict[str, Any] = {key: to_plain(value) for key, value in arguments.items()}
        self.statistics: dict[str, Any] = {}
        """What the checkpoint knows of the training set: `num_atoms`, {atom count: crystals}, and its name."""
        plain = self.config
        self.condition = Conditioning.of(plain["condition"])
        built_decoder = build("decoder", plain["decoder"], atom_type_predict=atom_type_predict)
        self.vae = CrystalVAE(
            encoder=self.condition.wrap_encoder(build("encoder", plain["encoder"])),
            decoder=self.condition.wrap_decoder(built_decoder),
            bottleneck=build("bottleneck", plain["bottleneck"] or DEFAULT_BOTTLENECK, latent_dim=latent_dim),
            bound_lattice=bound_lattice,
        )
        self.prior = None
        if plain["prior"] is not None:
            given = not self.vae.atom_type_predict
            self.prior = build("prior", plain["prior"], latent_dim=self.latent_dim, elements_given=given)
        self.loss_weights = check_weights(plain["loss_weights"])
        objective = plain["objective"] or {"_target_": f"{ELBO.__module__}.{ELBO.__name__}"}
        self.objective = build(
            "objective", objective, weights=self.loss_weights, coord_loss=coord_loss, latent_dim=self.latent_dim
        )
        self.augmentation = Augmentation.of(plain["augmentation"])
        self.noise = InputNoise(**(plain["noise"] or {}))

    # ---- encode, decode, sample: the research interface --------------------------------------------------------------

    @property
    def latent_dim(self) -> int:
        """Latent numbers an atom."""
        return self.vae.latent_dim

    @property
    def atom_type_predict(self) -> bool:
        """Whether elements are decoded; otherwise they are given (structure prediction)."""
        return self.vae.atom_type_predict

    def encode(self, batch: CrystalBatch | Batch) -> dict[str, Any]:
        """Encode: {"posterior", "x": encoder output (N, D), "atom_types", "num_atoms", "batch", "token_idx"}.

        "conditions" holds what a conditional model was told of the crystals: what they are, as far as that is known.
        """
        crystals = self.condition.known(as_crystals(batch))
        hidden = self.vae.hidden(crystals)
        return {
            "x": hidden,
            "posterior": self.vae.posterior(hidden, crystals),
            "atom_types": crystals.atom_types,
            "num_atoms": crystals.num_atoms,
            "batch": crystals.batch,
            "token_idx": crystals.token_idx,
            "conditions": told(crystals, self.condition.names),
        }

    def decode(self, encoded: Mapping[str, Any]) -> dict[str, Tensor]:
        """Decode latents `encoded["x"]` (N, L) for crystals of `encoded["num_atoms"]` atoms; writes nothing into it.

        Returns "atom_types" (N, 100) logits (absent in structure prediction), "frac_coords" (N, 3), "lattices" (B, 6),
        the same as "lengths" (B, 3), scaled, Å, and "angles" (B, 3), radians, and "coord_vectors" (N, 3, 2) where
        coordinates are decoded on the circle. Structure prediction reads the elements from `encoded["atom_types"]`, and
        a conditional model what it is told from `encoded["conditions"]`, if it is there.
        """
        latents = encoded["x"]
        if latents.shape[-1] != self.latent_dim:
            raise ValueError(
                f'decode: encoded["x"] has {latents.shape[-1]} numbers an atom, expected the {self.latent_dim} of a '
                'latent: set encoded["x"] = encoded["posterior"].sample() (or .mode()) first'
            )
        crystals = CrystalBatch.empty(encoded["num_atoms"], device=latents.device)
        if "atom_types" in encoded:
            crystals = crystals.replace(atom_types=encoded["atom_types"])
        elif self.vae.decoder.atom_type_input:
            raise ValueError('decode: this model is given the elements; expected encoded["atom_types"] (N,)')
        decoded = self.vae.decode(latents, tell(crystals, encoded.get("conditions", {})))
        output = {
            "frac_coords": decoded.frac_coords,
            "lattices": torch.cat((decoded.lengths_scaled, decoded.angles), dim=-1),
            "lengths": decoded.lengths_scaled,
            "angles": decoded.angles,
        }
        if decoded.atom_logits is not None:
            output["atom_types"] = decoded.atom_logits
        if decoded.coord_vectors is not None:
            output["coord_vectors"] = decoded.coord_vectors
        return output

    def reconstruct(self, decoder_out: Mapping[str, Tensor], batch: CrystalBatch | Batch) -> CrystalBatch:
        """Turn what `decode` returned into crystals with the atom counts of `batch` (and its elements if not told)."""
        decoded = DecodedCrystals(
            atom_logits=decoder_out.get("atom_types"),
            frac_coords=decoder_out["frac_coords"],
            coord_vectors=decoder_out.get("coord_vectors"),
            lengths_scaled=decoder_out["lengths"],
            angles=decoder_out["angles"],
        )
        return self.vae.to_crystals(decoded, as_crystals(batch))

    @torch.no_grad()
    def reconstruct_crystals(
        self, crystals: CrystalBatch, *, conditions: Mapping[str, object] | None = None
    ) -> CrystalBatch:
        """Encode and decode with the posterior mean; gradients off, the model as it is.

        A conditional model encodes with what the crystals are, and decodes with the same or with `conditions`.
        """
        crystals = self.condition.known(crystals)
        latents = self.vae.encode(crystals).mode()
        target = crystals if conditions is None else self.condition.asked(crystals, conditions)
        return self.vae.to_crystals(self.vae.decode(latents, target), target)

    @torch.no_grad()
    def sample(
        self,
        batch: CrystalBatch | Batch | int,
        return_atoms: bool = False,
        return_structures: bool = False,
        *,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        **options: Any,
    ) -> CrystalBatch | list[Atoms] | list[Structure]:
        """Sample crystals with the atom counts of `batch` (`CrystalBatch.empty`), and its elements where given.

        For a number n, n crystals are sampled, with atom counts drawn from those of the training set.

        Where the checkpoint holds a learned prior, latents are drawn from it, with `options` as
        `prior_module.sampling.sample_from_module` takes them (conditions, chemical_system, sampler, …). Otherwise
        they come from the bottleneck's own prior at `temperature`, and a conditional model takes `conditions`, such as
        {"crystal_system": "cubic", "band_gap": 1.5}; the log says which. Returns ASE atoms or pymatgen structures where
        asked.
        """
        if return_atoms and return_structures:
            raise ValueError("sample: return_atoms and return_structures exclude each other")
        if isinstance(batch, Integral):
            template = draw_template(self, cast("int", batch), generator, options)
        else:
            template = as_crystals(cast("CrystalBatch | Batch", batch))
        crystals = self.sample_crystals(template, generator=generator, temperature=temperature, **options)
        if return_atoms:
            return crystals.to_atoms()
        return crystals.to_structure() if return_structures else crystals

    @torch.no_grad()
    def sample_crystals(
        self,
        template: CrystalBatch,
        *,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        **options: Any,
    ) -> CrystalBatch:
        """Sample as `sample` does; always returns a `CrystalBatch`."""
        template = template.to(self.device)
        if self.prior is None:
            if conditions := options.pop("conditions", None):
                template = self.condition.asked(template, conditions)
            if options:
                raise ConfigError(f"sample: {', '.join(sorted(options))} need a checkpoint with a learned prior")
            log.info("sampling latents from %s: this model holds no learned prior", self.vae.bottleneck.own_prior)
            return sample_crystals(self.vae, template, temperature=temperature, generator=generator)
        if temperature != 1.0:
            raise ConfigError(f"temperature: got {temperature}; a learned prior has none, only 1.0")
        from crystalvae.prior_module.sampling import sample_from_module

        log.info("sampling latents from the learned prior")
        return sample_from_module(self, template, generator=generator, **options)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the model: config, format version, statistics, package versions."""
        checkpoint[checkpoints.KEY] = checkpoints.metadata("vae", self.config, self.statistics)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the statistics when training resumes."""
        self.statistics = checkpoints.check_metadata(checkpoint, "vae")["statistics"]

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the model alone (no optimiser) as a checkpoint that `load_from_checkpoint` reads, atomically."""
        content: dict[str, Any] = {"state_dict": self.state_dict()}
        self.on_save_checkpoint(content)
        checkpoints.write(content, Path(path))

    @classmethod
    def load_from_checkpoint(  # pyright: ignore[reportIncompatibleMethodOverride]  # fewer, safer arguments
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str = "cpu",
        *,
        weights_only: bool = False,
        trusted_targets: Sequence[str] = (),
    ) -> VAEModule:
        """Load a model from a checkpoint of ours or of the published Chemeleon2 format, ready to use (`eval`).

        `checkpoint_path` may be the name of a bundled model (`bundled.models()`). A checkpoint of a prior holds
        its VAE: `sample` of what is returned then uses that prior. A predictor's holds its VAE, too.

        Nothing in the file is executed either way. `weights_only=True` accepts only plain data, that is, ours;
        `weights_only=False` also converts pickled published checkpoints through a reader that runs nothing.
        `trusted_targets` names further packages, each with a dot at its end, whose encoders, decoders and schedules a
        config may ask for. Raises `CheckpointError` for what is damaged, of another version, or not to be trusted.
        """
        content = checkpoints.read(bundled.find(checkpoint_path), plain_data_only=weights_only)
        with trusting(trusted_targets):
            meta = checkpoints.check_metadata(content, "vae|prior|predictor")
            config, weights = meta["config"], content["state_dict"]
            if meta["kind"] != "vae":
                config, weights = checkpoints.vae_within(meta["kind"], config, weights)
            module = checkpoints.rebuild(cls, config, weights)
        module.statistics = meta["statistics"]
        return module.to(map_location).eval()
