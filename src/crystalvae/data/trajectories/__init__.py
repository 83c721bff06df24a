"""Recordings of crystals in motion: the type, reading and writing, and dynamics that make them."""

from crystalvae.data.trajectories.trajectory import Trajectory

__all__ = ["Trajectory"]
