"""Provide helpers that every package of mpn uses; only errors and types lie below."""
