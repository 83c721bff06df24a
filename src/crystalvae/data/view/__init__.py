"""Crystals as pictures that turn: what the report and notebooks draw, and the viewer both bring along."""
