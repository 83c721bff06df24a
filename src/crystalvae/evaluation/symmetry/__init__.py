"""Which space groups crystals have."""
