"""The suite: one folder a package of mpn, imported as ``tests.<package>``."""
