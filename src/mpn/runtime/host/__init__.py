"""The frame backend in NumPy and OpenCV: the reference."""
