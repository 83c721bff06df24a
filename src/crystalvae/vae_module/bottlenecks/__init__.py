"""What stands between encoder and decoder: what the latent is, what it costs, and where new latents come from."""
