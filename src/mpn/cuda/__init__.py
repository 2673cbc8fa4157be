"""Everything that touches a CUDA device."""
