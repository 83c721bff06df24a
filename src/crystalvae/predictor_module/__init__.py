"""Properties from latents, and gradient search for crystals of a wanted property."""
