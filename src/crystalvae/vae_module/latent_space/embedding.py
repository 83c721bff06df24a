"""One vector per crystal, for search and plots."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from crystalvae.data.augmentation import translate
from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.layers.pooling import mean_over_atoms
from crystalvae.vae_module.vae import CrystalVAE


@torch.no_grad()
def embed(
    vae: CrystalVAE, crystals: CrystalBatch, *, every_origin: bool = True, batch_size: int = 512
) -> Float[Tensor, "B TwoL"]:
    """Return mean and standard deviation over a crystal's atoms of their latents (posterior means), side by side.

    An atom's latent depends on where the origin of the cell was put. With `every_origin` each atom of the rarest
    element (of those the lightest) becomes the origin in turn and the vectors are averaged, so that neither the choice
    of the origin nor the order of atoms matters (the order does to encoders that read a list, such as `gru`).
    """
    parts = []
    for start in range(0, len(crystals), batch_size):
        part = crystals[start : start + batch_size]
        views, owner = rarest_origins(part) if every_origin else (part, torch.arange(len(part), device=part.device))
        latents = vae.encode(views).mode()
        mean = mean_over_atoms(latents, views)
        spread = mean_over_atoms((latents - mean[views.batch]).square(), views).sqrt()
        total = latents.new_zeros(len(part), 2 * latents.shape[-1])
        total.index_add_(0, owner, torch.cat((mean, spread), dim=-1))
        parts.append(total / torch.bincount(owner, minlength=len(part))[:, None])
    return torch.cat(parts)


def rarest_origins(crystals: CrystalBatch) -> tuple[CrystalBatch, Tensor]:
    """Return each crystal once for each atom of its rarest element, that atom at the origin, and whose view it is."""
    classes = int(crystals.atom_types.max()) + 1
    counts = torch.bincount(crystals.batch * classes + crystals.atom_types, minlength=len(crystals) * classes)
    present = counts.view(len(crystals), classes)
    # By count, then by atomic number; absent elements last.
    rank = torch.where(present > 0, present * classes, torch.iinfo(present.dtype).max // 2)
    rarest = (rank + torch.arange(classes, device=rank.device)).argmin(dim=1)
    origins = (crystals.atom_types == rarest[crystals.batch]).nonzero().squeeze(-1)
    owner = crystals.batch[origins]
    return translate(crystals[owner], -crystals.frac_coords[origins]), owner
