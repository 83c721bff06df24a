"""crystalvae: a continuous latent space of inorganic crystals."""
