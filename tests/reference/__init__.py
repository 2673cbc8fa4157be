"""Hold slow and obvious versions of the product that tests compare with."""
