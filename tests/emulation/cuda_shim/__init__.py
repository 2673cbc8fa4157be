"""Run the CUDA kernels of the package on the CPU: see shim.h."""
