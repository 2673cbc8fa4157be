"""Engines run by TensorRT and TensorRT for RTX."""
