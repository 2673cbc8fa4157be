"""Engines on Intel's OpenVINO."""
