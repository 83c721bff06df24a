"""Conditions: what a crystal is or should be, as encoders, decoders and priors are given it."""
