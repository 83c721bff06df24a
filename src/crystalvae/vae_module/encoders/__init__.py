"""From crystals to one hidden vector per atom."""
