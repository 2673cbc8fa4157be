"""Training recipes (torch). Data rolled out through the network itself, as at run time."""
