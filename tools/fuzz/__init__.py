"""Read damaged files with the readers of the package."""
