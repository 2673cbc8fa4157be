"""Engines run by onnxruntime."""
