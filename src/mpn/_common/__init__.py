"""Helpers that every package of mpn uses; they import only errors and types."""
