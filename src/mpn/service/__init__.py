"""The HTTP service of ``mpn serve``: sessions that segment videos of clients."""
