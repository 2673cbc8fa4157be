"""Stable addresses of single operations; the code is in :mod:`mpn.runtime.host.ops`."""
