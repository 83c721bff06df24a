"""Are crystals distributed as those of a reference: coverage and Wasserstein distances."""
