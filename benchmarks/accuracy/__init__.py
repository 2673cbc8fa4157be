"""Measure J, F and flow error on data with ground truth."""
