"""Arrays, kernels, streams, events and graphs; CUDA is imported with the device."""
