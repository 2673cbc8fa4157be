"""Segment videos frame by frame. Never imports torch."""
