"""From one latent vector per atom back to crystals."""
