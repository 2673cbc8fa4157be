"""Hold the engine directory ``engines/``, which mpn-runtime opens by default."""
