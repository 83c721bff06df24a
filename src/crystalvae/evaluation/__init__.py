"""Measures of crystals: reconstruction, validity."""
