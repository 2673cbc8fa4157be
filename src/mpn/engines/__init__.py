"""What an engine directory holds, and how to run it. No torch, no onnx."""
