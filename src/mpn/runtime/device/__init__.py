"""The pipeline's frame on a device: streams, state in device memory, graphs."""
