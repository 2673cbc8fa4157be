"""Export of checkpoints to ONNX graphs and engine directories."""
