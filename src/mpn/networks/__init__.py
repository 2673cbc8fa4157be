"""torch modules of the three networks, one network a file, and the checkpoints that fill them."""
