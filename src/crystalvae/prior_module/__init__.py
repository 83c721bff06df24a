"""The learned prior over latents: elements first, then the latents of the atoms given them."""
