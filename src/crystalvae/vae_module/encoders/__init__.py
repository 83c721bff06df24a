"""From crystals to one hidden vector an atom."""
