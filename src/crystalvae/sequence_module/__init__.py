"""Sequences: a recurrent VAE over windows of trajectories, and the motifs that recur in them."""

from crystalvae.sequence_module.losses import (
    cluster_loss,
    future_reconstruction_loss,
    gaussian,
    kl_annealing,
    kullback_leibler_loss,
    reconstruction_loss,
)
from crystalvae.sequence_module.sequence_module import SequenceModule
from crystalvae.sequence_module.sequence_vae import SequenceVAE

__all__ = [
    "SequenceModule",
    "SequenceVAE",
    "cluster_loss",
    "future_reconstruction_loss",
    "gaussian",
    "kl_annealing",
    "kullback_leibler_loss",
    "reconstruction_loss",
]
