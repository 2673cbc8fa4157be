"""The engine directory on disk: its manifest, files, parity report and inspection."""
