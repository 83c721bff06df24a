"""What a crystal is or shall be, as encoders, decoders and priors are told it."""
