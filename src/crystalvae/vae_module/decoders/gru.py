"""The GRU decoder: the latent vectors of a crystal as a sequence."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from crystalvae.data.batch import CrystalBatch
from crystalvae.vae_module.decoders.heads import CrystalReadOff, DecodedCrystals
from crystalvae.vae_module.layers.gru import AtomGRU
from crystalvae.vae_module.layers.modulation import per_atom


class GRUDecoder(CrystalReadOff):
    """Run along the latent vectors of a crystal in both directions and read off elements, coordinates and the lattice.

    The order of the atoms matters, as for `GRUEncoder`: permuting the latents does not permute the decoded atoms.
    Further options are those of `CrystalReadOff`.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_layers: int,
        dropout: float = 0.0,
        d_condition: int | None = None,
        **read_off: Any,
    ) -> None:
        super().__init__(d_model=d_model, d_condition=d_condition, **read_off)
        self.gru = AtomGRU(
            part="decoder", d_model=d_model, num_layers=num_layers, dropout=dropout, d_condition=d_condition
        )
        self._add_heads()

    def forward(
        self, tokens: Float[Tensor, "N D"], crystals: CrystalBatch, condition: Float[Tensor, "B C"] | None = None
    ) -> DecodedCrystals:
        """Decode hidden vectors; of `crystals` only the atom counts are read, and the elements where they are given.

        `condition`: the condition vector of each crystal.
        """
        hidden = self.gru(self.add_elements(tokens, crystals), crystals, per_atom(condition, crystals.batch))
        return self.read_off(hidden, crystals)
