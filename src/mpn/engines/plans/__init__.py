"""Plans: what they depend on, how they are built, where they lie. No torch, no onnx."""
