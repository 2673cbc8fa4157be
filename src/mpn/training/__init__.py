"""Training recipes (torch)."""
