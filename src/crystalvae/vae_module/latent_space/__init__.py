"""What one does in a latent space: reconstruct, embed, search, walk between crystals, and steer by a property."""
