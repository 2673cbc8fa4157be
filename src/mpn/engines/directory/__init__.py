"""The engine directory on disk: manifest, files, parity report and inspection."""
