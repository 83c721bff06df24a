"""Do predictions match their targets: reconstruction and structure prediction."""
