"""Motifs: what recurs in trajectories, how often, how long, and what follows what."""
