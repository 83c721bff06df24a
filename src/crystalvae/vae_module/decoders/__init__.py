"""From one latent vector an atom back to crystals."""
