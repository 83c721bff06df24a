"""Recordings of crystals in motion: the type, reading and writing, and dynamics that make them."""

from crystalvae.data.trajectories.embedded import embedded_trajectories
from crystalvae.data.trajectories.read import read_trajectories, read_trajectory
from crystalvae.data.trajectories.trajectory import Trajectory

__all__ = ["Trajectory", "embedded_trajectories", "read_trajectories", "read_trajectory"]
