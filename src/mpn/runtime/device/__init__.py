"""The stages of a frame in CUDA: streams, state in device memory, graphs."""
