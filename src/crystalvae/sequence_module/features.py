"""Numbers that describe a frame: latents of a frozen VAE, per atom or per crystal, or plain geometry.

Letters: T frames, N atoms, F features, L latent dimensions of the VAE. Features are standardised with the mean and the
standard deviation of the training part; those that do not vary in it become 0.
"""

from __future__ import annotations

import hashlib
import logging
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from crystalvae.build import to_plain
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.lattice import wrap
from crystalvae.data.trajectories import Trajectory
from crystalvae.errors import ConfigError, DataError
from crystalvae.vae_module.latent_space.embedding import embed
from crystalvae.vae_module.latent_space.index import model_key
from crystalvae.vae_module.latent_space.latents import continuous_latents, decode_latents
from crystalvae.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)

FEATURES_VERSION = 1
"""Raised where features of the same frames change, so that caches of earlier ones are not read."""
_STILL = 1e-6
"""Features whose standard deviation is below this share of their size, or of 1, count as constant."""


class FrameFeatures(nn.Module):
    """Base of the features: `raw` numbers of each frame, and how they are standardised.

    `atom_types` (N,) are the elements of the system that the features describe, atom by atom, None where they describe
    any; trajectories of other atoms are refused.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, num_features: int, atom_types: Sequence[int] | None) -> None:
        super().__init__()
        self.num_features = num_features
        self.atom_types = None if atom_types is None else tuple(int(number) for number in atom_types)
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    per_atom = True
    """Whether the features belong to one system, atom by atom."""
    decodable = True
    """Whether frames can be turned back to crystals."""

    @abstractmethod
    def raw(self, trajectory: Trajectory) -> Float[Tensor, "T F"]:
        """Return the features before standardising."""

    @abstractmethod
    def crystals(self, frames: Float[Tensor, "T F"]) -> CrystalBatch:
        """Return the crystals that standardised features stand for, one per frame."""

    @property
    def names(self) -> list[str]:
        """What each number of a frame is, in a few words."""
        return [f"feature {number}" for number in range(self.num_features)]

    def prepare(self, trajectories: Sequence[Trajectory]) -> None:
        """Take over what else the features need of the training trajectories, before `raw` is first called."""

    def key(self) -> str:
        """Return what the features of a trajectory depend on beside itself, for caches."""
        return f"{type(self).__name__} {FEATURES_VERSION}"

    def fit(self, raw: Float[Tensor, "M F"]) -> None:
        """Take over mean and standard deviation of a training set's raw features.

        Raises `DataError` where none of them varies.
        """
        values = raw.double()
        mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
        still = std <= _STILL * mean.abs().clamp_min(1.0)
        if bool(still.all()):
            raise DataError(
                f"all {len(still)} features are constant over the {len(raw)} frames to train on: there is no motion to "
                "learn from"
            )
        if bool(still.any()):
            log.warning("%d of %d features are constant in the training part: left at 0", int(still.sum()), len(still))
        self.mean.copy_(mean)
        self.std.copy_(torch.where(still, 0.0, std))

    def standardized(self, raw: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
        """Return raw features in units of their standard deviation, from their mean; 0 where they are constant."""
        return torch.where(self.std > 0, (raw - self.mean) / self.std, 0.0)

    def restored(self, frames: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
        """Return raw features of standardised ones."""
        return self.mean + self.std * frames

    def check(self, trajectory: Trajectory) -> None:
        """Raise `DataError` for a trajectory of other atoms, or with numbers that are not finite, naming its frame."""
        if self.atom_types is not None and tuple(trajectory.atom_types.tolist()) != self.atom_types:
            raise DataError(
                f"trajectory {trajectory.id}: has the atoms {trajectory.atom_types.tolist()}; these features are of "
                f"one system, {list(self.atom_types)}, atom by atom. Features per crystal take any: features=embedding"
            )
        finite = trajectory.frac_coords.isfinite().all(dim=-1).all(dim=-1)
        finite &= trajectory.lattices.isfinite().all(dim=-1).all(dim=-1)
        if not bool(finite.all()):
            frame = int((~finite).nonzero()[0])
            raise DataError(f"trajectory {trajectory.id}, frame {frame}: a coordinate or cell that is NaN or infinite")

    @torch.no_grad()
    def of(self, trajectory: Trajectory, *, cache_dir: Path | str | None = None) -> Float[Tensor, "T F"]:
        """Return the raw features of a trajectory, read from the cache where they are there already."""
        self.check(trajectory)
        path = None
        if cache_dir is not None:
            path = Path(cache_dir).expanduser() / f"{_content_key(self.key(), trajectory)}.pt"
            if path.is_file():
                stored = torch.load(path, map_location=self.mean.device, weights_only=True)
                if isinstance(stored, Tensor) and stored.shape == (len(trajectory), self.num_features):
                    return stored
        raw = self.raw(trajectory)
        finite = raw.isfinite().all(dim=-1)
        if not bool(finite.all()):
            frame = int((~finite).nonzero()[0])
            raise DataError(f"trajectory {trajectory.id}, frame {frame}: features that are NaN or infinite")
        if path is not None:
            _write(raw.to("cpu"), path)
        return raw

    def trajectory(
        self,
        frames: Float[Tensor, "T F"],
        *,
        id: str,  # noqa: A002  the name of the field
        step: float = 1.0,
    ) -> Trajectory:
        """Decode standardised features to a trajectory of the system's atoms, `step` fs from frame to frame.

        Coordinates are unwrapped: each frame's are taken within half a cell of those of the frame before.
        """
        crystals = self.crystals(frames).to("cpu")
        coords = crystals.frac_coords.double().unflatten(0, (len(frames), -1))
        moves = coords.diff(dim=0)
        unwrapped = torch.cat((coords[:1], coords[:1] + (moves - moves.round()).cumsum(dim=0)))
        return Trajectory(
            id=id,
            atom_types=torch.tensor(self.atom_types),
            frac_coords=unwrapped,
            lattices=crystals.lattices.double(),
            times=torch.arange(len(frames), dtype=torch.float64) * step,
        )


class GeometryFeatures(FrameFeatures):
    """The strain of the cell (6 numbers) and each atom's displacement in Å (3 numbers per atom).

    Both are taken from a reference, the first frame of the first training trajectory, and do not depend on how the
    crystal is turned: with lattice = reference · D, strain is ½ (D Dᵀ - I), and displacements are differences of
    fractional coordinates in the reference's cell, without their mean over atoms. Each trajectory's first frame is
    brought next to the reference by whole cells.
    """

    reference_coords: Tensor
    reference_lattice: Tensor

    def __init__(self, *, atom_types: Sequence[int]) -> None:
        super().__init__(num_features=6 + 3 * len(atom_types), atom_types=atom_types)
        self.register_buffer("reference_coords", torch.zeros(len(atom_types), 3, dtype=torch.float64))
        self.register_buffer("reference_lattice", torch.eye(3, dtype=torch.float64))

    @property
    def names(self) -> list[str]:
        """Strains and displacements, atom by atom."""
        from ase.data import chemical_symbols

        atoms = [f"{chemical_symbols[number]}{row}" for row, number in enumerate(self.atom_types or (), start=1)]
        strains = [f"strain {axes}" for axes in ("xx", "yy", "zz", "yz", "xz", "xy")]
        return [*strains, *(f"{atom} {axis}" for atom in atoms for axis in "xyz")]

    def prepare(self, trajectories: Sequence[Trajectory]) -> None:
        """Take over the reference."""
        self.reference_coords.copy_(trajectories[0].frac_coords[0])
        self.reference_lattice.copy_(trajectories[0].lattices[0])

    def key(self) -> str:
        """Return what the features depend on."""
        reference = torch.cat((self.reference_coords, self.reference_lattice)).to("cpu")
        return f"{super().key()} {hashlib.sha256(reference.numpy().tobytes()).hexdigest()}"

    def raw(self, trajectory: Trajectory) -> Float[Tensor, "T F"]:
        """Return strains (xx, yy, zz, yz, xz, xy) and displacements."""
        device = self.mean.device
        coords, lattices = trajectory.frac_coords.to(device).double(), trajectory.lattices.to(device).double()
        deformation = torch.linalg.solve(self.reference_lattice, lattices)
        strain = 0.5 * (deformation @ deformation.mT - torch.eye(3, dtype=torch.float64, device=device))
        moved = coords - self.reference_coords
        moved = moved - moved[:1].round()
        moved = (moved - moved.mean(dim=1, keepdim=True)) @ self.reference_lattice
        six = strain[:, (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]
        return torch.cat((six, moved.flatten(1)), dim=1).float()

    def crystals(self, frames: Float[Tensor, "T F"]) -> CrystalBatch:
        """Return crystals with the symmetric deformation D that gives the strain."""
        raw = self.restored(frames).double()
        rows = torch.stack((raw[:, [0, 5, 4]], raw[:, [5, 1, 3]], raw[:, [4, 3, 2]]), dim=1)
        values, vectors = torch.linalg.eigh(torch.eye(3, dtype=torch.float64, device=raw.device) + 2.0 * rows)
        deformation = vectors @ torch.diag_embed(values.clamp_min(1e-6).sqrt()) @ vectors.mT
        moved = torch.linalg.solve(self.reference_lattice.T, raw[:, 6:].unflatten(1, (-1, 3)).mT).mT
        coords = self.reference_coords + moved
        return _as_crystals(coords, self.reference_lattice @ deformation, self.atom_types or ())


class VAEFeatures(FrameFeatures):
    """Features that a frozen VAE gives; `vae` is its plain config, `latents` how many latents a frame has."""

    def __init__(self, *, vae: Mapping[str, Any], latents: int, atom_types: Sequence[int] | None) -> None:
        module = VAEModule(**{**to_plain(vae), "prior": None})
        super().__init__(num_features=latents * module.latent_dim, atom_types=atom_types)
        self.vae_module = module
        self.vae_module.requires_grad_(requires_grad=False).eval()

    def key(self) -> str:
        """Return what the features depend on: the VAE's weights."""
        return f"{super().key()} {model_key(self.vae_module.vae)}"

    def train(self, mode: bool = True) -> VAEFeatures:
        """Switch to training; the VAE stays as it is used, in evaluation."""
        super().train(mode)
        self.vae_module.eval()
        return self

    def load_vae(self, vae: VAEModule) -> None:
        """Take over the weights and statistics of a trained VAE."""
        self.vae_module.vae.load_state_dict(vae.vae.state_dict())
        self.vae_module.statistics = vae.statistics

    def parts(self, trajectory: Trajectory) -> Iterator[CrystalBatch]:
        """Give the frames in batches of about 4,000 atoms, on the device of the VAE, with a progress bar."""
        size = max(1, 4096 // trajectory.num_atoms)
        starts = range(0, len(trajectory), size)
        shown = track(starts, f"encoding {trajectory.id}", console=Console(stderr=True), transient=True)
        for start in shown:
            yield trajectory.frames(slice(start, start + size)).to(self.mean.device)


class LatentFeatures(VAEFeatures):
    """The latents (posterior means) of all atoms, side by side: F = N · L; they decode to crystals."""

    def __init__(self, *, vae: Mapping[str, Any], atom_types: Sequence[int]) -> None:
        super().__init__(vae=vae, latents=len(atom_types), atom_types=atom_types)

    def raw(self, trajectory: Trajectory) -> Float[Tensor, "T F"]:
        """Return latents, atom by atom."""
        vae = self.vae_module.vae
        latents = [continuous_latents(vae, part, "sequence features") for part in self.parts(trajectory)]
        return torch.cat(latents).reshape(len(trajectory), -1)

    @torch.no_grad()
    def crystals(self, frames: Float[Tensor, "T F"]) -> CrystalBatch:
        """Return decoded crystals."""
        vae, atom_types = self.vae_module.vae, self.atom_types or ()
        latents = self.restored(frames).reshape(len(frames) * len(atom_types), -1)
        template = CrystalBatch.empty([len(atom_types)] * len(frames), device=frames.device)
        elements = torch.tensor(atom_types, device=frames.device).repeat(len(frames))
        return decode_latents(vae, latents, template.replace(atom_types=elements))


class EmbeddingFeatures(VAEFeatures):
    """Mean and standard deviation over atoms of their latents: F = 2 · L, for crystals of any atoms.

    They do not decode: what is generated from them are embeddings.
    """

    per_atom = False
    decodable = False

    def __init__(self, *, vae: Mapping[str, Any], atom_types: Sequence[int] | None = None) -> None:
        if atom_types is not None:
            raise ConfigError("atom_types: embeddings per crystal belong to no system; expected null")
        super().__init__(vae=vae, latents=2, atom_types=None)

    def raw(self, trajectory: Trajectory) -> Float[Tensor, "T F"]:
        """Return one embedding a frame."""
        module = self.vae_module
        parts = self.parts(trajectory)
        return torch.cat([embed(module.vae, part, every_origin=module.any_origin) for part in parts])

    def crystals(self, frames: Float[Tensor, "T F"]) -> CrystalBatch:
        """Raise `ConfigError`: there is no way back."""
        raise ConfigError(
            f"{len(frames)} frames: embeddings per crystal do not decode to crystals; generation returns the "
            "embeddings only. Train on features=latents or features=geometry for trajectories"
        )


def _as_crystals(coords: Tensor, lattices: Tensor, atom_types: Sequence[int]) -> CrystalBatch:
    frames, atoms = coords.shape[:2]
    return CrystalBatch(
        atom_types=torch.tensor(atom_types, device=coords.device).repeat(frames),
        frac_coords=wrap(wrap(coords).float()).reshape(-1, 3),
        lattices=lattices.float(),
        num_atoms=torch.full((frames,), atoms, dtype=torch.long, device=coords.device),
    )


def _content_key(features: str, trajectory: Trajectory) -> str:
    digest = hashlib.sha256(features.encode())
    for values in (trajectory.atom_types, trajectory.frac_coords, trajectory.lattices):
        digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.to("cpu").contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def _write(values: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save(values, partial)
    partial.replace(path)
