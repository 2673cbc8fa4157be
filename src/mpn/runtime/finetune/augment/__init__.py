"""Synthetic training pairs made of one frame and its mask."""
