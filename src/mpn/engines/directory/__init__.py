"""The engine directory on disk: its manifest, files and parity record."""
