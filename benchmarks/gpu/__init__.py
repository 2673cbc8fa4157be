"""Run the sections of gpu_check.py."""
