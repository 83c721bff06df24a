"""What training minimises: reconstruction, the price of the latent, and how its weight changes with time."""
