"""Torch modules of the three networks, and reading of their checkpoints."""
