"""Offline training of OSVOS."""
