"""Measure the time of single parts."""
