"""Are crystals stable under an interatomic potential."""
