"""Compare the pipeline with the same pipeline in eager PyTorch."""
