"""Engine directories and the engines in them; imports neither torch nor onnx."""
