"""Commands, one thin module each: parse, forward, print."""
