"""Arrays, kernels, streams, events and graphs of a CUDA device; imports CUDA when one opens."""
