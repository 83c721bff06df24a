"""Crystals by their symmetry: space groups, Wyckoff sites, one description for each crystal, and projections on it."""
