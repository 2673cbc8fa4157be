"""Keep stable import paths of operations that :mod:`mpn.runtime.host.ops` holds."""
