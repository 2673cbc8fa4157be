"""Training recipes of the three networks (needs torch)."""
