"""One thin file a command: parse, forward, print."""
