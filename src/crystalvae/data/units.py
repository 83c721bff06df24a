"""Units."""

GRAM_PER_CM3 = 1.66053906660
"""One dalton per Å^3 in g/cm^3 (CODATA 2018)."""
