"""Export of the fine-tuning step as an ONNX graph."""
