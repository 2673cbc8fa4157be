"""The measurements of ``mpn bench``."""
