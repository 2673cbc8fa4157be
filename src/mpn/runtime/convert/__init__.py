"""Convert the results of a run to formats of other programs."""
