"""Stages of a frame in NumPy and OpenCV, the reference of those in CUDA."""
