"""Building, storing and reporting TensorRT plans."""
