"""Sequences: a recurrent VAE over windows of trajectories, and the motifs that recur in them."""
