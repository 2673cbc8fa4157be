"""Video in, pictures and masks out."""
