"""Are crystals unique, and new with respect to the training set."""
