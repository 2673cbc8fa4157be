"""Training of the propagation network."""
