"""Crystals as tensors: the batch type, lattice geometry, readers and writers, data sets."""
