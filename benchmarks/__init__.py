"""Measure accuracy and speed; docs/benchmarks.md lists the commands."""
