"""Runs the package's CUDA kernels on the CPU: see shim.h."""
