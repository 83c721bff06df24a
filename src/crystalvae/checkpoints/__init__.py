"""Checkpoints as plain data: their format, upgrades, published formats, trusted parts and bundled models."""
